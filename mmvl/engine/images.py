"""Image tokens for the chunks of a step: missing tiles go through the ViT together, and what was seen is kept.

An image is encoded when its first token's turn comes, so that a prompt of a thousand pages never has them all on the
device; images of those who wait fill up the batch. I image tokens, D model width.
"""

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from torch import Tensor

from mmvl.engine.memory import is_out_of_memory
from mmvl.engine.request import Request
from mmvl.engine.scheduler import Work
from mmvl.model import ImageBatch, VLModel
from mmvl.vision.tiling import TiledImage


class ImageEncoder:
    """Encodes, and keeps what was used last by content and tiling, at most `max_bytes` of it beside what a step needs.

    fill_tiles: where fewer tiles than this are to be encoded, images of later chunks and of waiting requests join in.
    """

    def __init__(self, model: VLModel, *, max_bytes: int, fill_tiles: int):
        self._model, self._max_bytes, self._fill_tiles = model, max_bytes, fill_tiles
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._bytes = 0

    def prepare(self, works: Sequence[Work], waiting: Iterable[Request]) -> dict[Request, Exception]:
        """Encode what the chunks need. -> the requests whose images cannot be encoded for want of memory, and why."""
        needed: dict[str, TiledImage] = {}
        for work in works:
            for image in self._images(work):
                if image.digest in self._kept:
                    self._kept.move_to_end(image.digest)
                else:
                    needed[image.digest] = image
        if not needed:
            return {}
        failed = self._encode([*needed.values(), *self._more(needed, works, waiting)])
        if not failed:
            return {}
        return {w.request: failed[i.digest] for w in works for i in self._images(w) if i.digest in failed}

    def rows(self, work: Work) -> tuple[list[Tensor], list[int]]:
        """The image tokens of a chunk, in pieces (I, D), and their places in it; after `prepare`."""
        rows, places = work.request.image_rows(work.start, work.start + work.count)
        if not rows:
            return [], []
        ends, pieces = work.request.image_ends, []
        for number in range(bisect_right(ends, rows.start), bisect_left(ends, rows.stop) + 1):
            image = work.request.prompt.images[number]
            begin = ends[number] - image.num_tokens
            pieces.append(self._kept[image.digest][max(rows.start - begin, 0) : rows.stop - begin])
        return pieces, places

    def trim(self) -> None:
        """Drop what was used least recently, down to the budget; after a step's chunks were embedded."""
        while self._bytes > self._max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= dropped.nbytes

    def _images(self, work: Work) -> list[TiledImage]:
        rows, _ = work.request.image_rows(work.start, work.start + work.count)
        if not rows:
            return []
        ends = work.request.image_ends
        return work.request.prompt.images[bisect_right(ends, rows.start) : bisect_left(ends, rows.stop) + 1]

    def _more(self, needed: dict[str, TiledImage], works: Sequence[Work], waiting: Iterable[Request]):
        """Images that will be needed soon, while tiles are few."""
        tiles = sum(len(image.tiles_N3TT) for image in needed.values())
        seen = set(needed)
        for request in (*(work.request for work in works), *waiting):
            behind = bisect_left(request.image_positions, request.num_cached)
            for image in request.prompt.images[bisect_right(request.image_ends, behind) :]:
                if tiles >= self._fill_tiles:
                    return
                if image.digest not in seen and image.digest not in self._kept:
                    tiles += len(image.tiles_N3TT)
                    seen.add(image.digest)
                    yield image

    def _encode(self, images: Sequence[TiledImage]) -> dict[str, Exception]:
        """Through the ViT together; one by one where the memory is too small for that. -> what failed, by digest."""
        try:
            batch = ImageBatch.from_images(images).to(self._model.device)
            pieces = self._model.embed_images(batch).split([image.num_tokens for image in images])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(images) == 1:
                return {images[0].digest: error}
            failed: dict[str, Exception] = {}
            for image in images:
                failed |= self._encode([image])
            return failed
        for image, piece in zip(images, pieces, strict=True):
            # A clone, so that the entry does not keep alive the whole batch that it is a slice of.
            self._kept[image.digest] = piece.clone() if len(images) > 1 else piece
            self._bytes += piece.nbytes
        return {}
