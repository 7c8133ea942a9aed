"""Items from WebDataset shards: those that mmvl makes, and any other with pictures, JSON and text members."""

from collections.abc import Iterator
from pathlib import Path

from mmvl.answer_shards import find_samples
from mmvl.app.batch.items import Item, SpanPicture


class Shards:
    """An item a sample, with the fields of its JSON and its texts (`txt`, ...); of a shard of mmvl's an item a turn,
    with the fields `question` and `answer`. Ids are `shard.tar/key`, and `#2`, `#3`, ... for further turns."""

    requests = False

    def __init__(self, path: Path, reading):
        self._path, self._keep = path, reading.keep
        self._read, self._size = 0, max(1, path.stat().st_size)

    @property
    def fraction(self) -> float:
        return min(1.0, self._read / self._size)

    def __iter__(self) -> Iterator[Item]:
        self._read = 0
        try:
            for sample in find_samples(self._path):
                yield from self._items(sample)
        except ValueError as error:  # the rest of this shard cannot be read; it says so in a row of its own
            yield Item(f"{self._path.name}#damage", error=str(error))

    def _items(self, sample) -> Iterator[Item]:
        id = f"{self._path.name}/{sample.key}"
        pictures = tuple(
            SpanPicture(str(self._path), start, size, f"{name} of {id}") for name, start, size in sample.pictures
        )
        if pictures:
            self._read = pictures[-1].start + pictures[-1].size
        fields = {"key": sample.key} | sample.fields
        for number, (question, answer) in enumerate(sample.turns or [(None, None)], 1):
            asked = fields if question is None else fields | {"question": question, "answer": answer}
            shown = {name: asked.get(name) for name in self._keep}
            yield Item(id if number == 1 else f"{id}#{number}", pictures, asked, shown, error=sample.error)
