"""The weights in a model directory under their released names, read part by part: no file is ever whole in memory.

Quantised matrices (see quantize.py) lie beside their scales; they are read as they are stored, or dequantised.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmvl.config import VLConfig
from mmvl.json_files import read_json
from mmvl.kernels.experts_quantized import dequantize_weight, quantize_weight
from mmvl.safetensors_stream import FlatReader, FlatTensor
from mmvl.text_backbone.config import TextConfig
from mmvl.weight_names import SCALE, TEXT_PREFIX, FlatViews, from_native, released_names

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_KIND_OF = {torch.int8: "int8", torch.uint8: "int4", torch.float8_e4m3fn: "fp8"}
FETCH_AGAIN = "fetch or save the model again"
Box = tuple[slice, ...]  # the part of a tensor that is wanted, one slice a dim


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory, by its index if it has one.

    Raises:
        FileNotFoundError: no weights, or a file that the index names is missing.
    """
    if (directory / INDEX).is_file():
        weight_map = read_json(directory / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{directory / INDEX} has no weight_map; {FETCH_AGAIN}")
        files = [directory / name for name in sorted(set(weight_map.values()))]
        if any(f.parent != directory for f in files):
            raise ValueError(f"{directory / INDEX} names files outside of {directory}; refused")
    else:
        files = [directory / WEIGHTS]
    missing = [f.name for f in files if not f.is_file()]
    if missing:
        raise FileNotFoundError(f"no weights in {directory}: {some(missing)} missing; {FETCH_AGAIN}")
    return files


def some(items: list[str], most: int = 6) -> str:
    """The first of many names, for a message."""
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


class StoredTensors:
    """Every tensor of a directory's files under the name that it has there: `stored[name]` is a `FlatTensor`.

    Use it in a `with` block: the files stay open.

    Raises:
        FileNotFoundError, ValueError: a file is missing, corrupt, or cut short.
    """

    def __init__(self, directory: Path):
        self._stack = ExitStack()
        self._tensors: dict[str, FlatTensor] = {}
        try:
            for path in weight_files(directory):
                try:
                    with safe_open(path, framework="pt"):  # the library checks the header against the file
                        pass
                    reader = self._stack.enter_context(closing(FlatReader(path)))
                    self._tensors |= {name: reader[name] for name in reader}
                except (SafetensorError, ValueError) as e:
                    raise ValueError(f"{path} is not a readable safetensors file ({e}); {FETCH_AGAIN}") from e
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> StoredTensors:
        return self

    def __exit__(self, *error) -> None:
        self._stack.close()

    def __iter__(self):
        return iter(self._tensors)

    def __getitem__(self, name: str) -> FlatTensor:
        return self._tensors[name]

    def plain(self, name: str) -> Tensor:
        """The whole of a tensor; dequantised to fp32 if it is in int8 or fp8 beside its scale."""
        tensor = self[name][:].view(self[name].dims)
        if name + SCALE not in self._tensors:
            return tensor
        scale = self[name + SCALE][:].view(self[name + SCALE].dims)
        return dequantize_weight(tensor[None], scale[None], tensor.shape[1], _KIND_OF[tensor.dtype])[0]


class WeightFiles(StoredTensors):
    """The same, but under the released names of a model of `config`, whatever dialect the files are in.

    Raises:
        FileNotFoundError, ValueError: a file is missing, corrupt, cut short, or does not hold the model's tensors.
    """

    def __init__(self, directory: Path, config: VLConfig | TextConfig):
        super().__init__(directory)
        self.config = config
        try:
            self._flat = FlatViews({name: self[name].dims for name in self})
            self._views = from_native(self._flat.views, config)
            self.names = released_names(config)
            self._forget_tied_head(config)
            self._check(str(directory))
        except BaseException:
            self._stack.close()
            raise

    def kind(self, name: str) -> str | None:
        """How a tensor is quantised: int8, int4, fp8, or None."""
        return _KIND_OF.get(self.dtype(name)) if name + SCALE in self._views else None

    def dtype(self, name: str) -> torch.dtype:
        return self[self._flat.origin(self._views[name])[0]].dtype

    def stored(self, name: str, box: Box | None = None) -> Tensor:
        """A tensor, or of a vector or matrix the part in `box`, as it is stored, on the CPU."""
        view = self._views[name]
        stored, start = self._flat.origin(view)
        shape = tuple(view.shape)
        if box is None:
            return self[stored][start : start + prod(shape)].view(shape)
        first, last = box[0].start, box[0].stop
        width = prod(shape[1:])
        start += first * width
        if len(shape) == 1 or box[1] == slice(0, shape[1]):
            return self[stored][start : start + (last - first) * width].view(last - first, *shape[1:])
        return self[stored].columns(start, last - first, width, box[1])

    def plain(self, name: str, box: Box | None = None) -> Tensor:
        """The same, dequantised to fp32 if it is quantised."""
        kind = self.kind(name)
        if kind is None:
            return self.stored(name, box)
        scale = self.stored(name + SCALE)
        if box is not None:
            assert kind != "int4"  # experts, which are never cut
            scale = scale[box[0]]
        weight = self.stored(name, box)
        columns = weight.shape[1] if kind != "int4" else self.names[name][1]
        return dequantize_weight(weight[None], scale[None], columns, kind)[0]

    def _forget_tied_head(self, config) -> None:
        """Some tools write a tied head out as well; one that differs stays, and is refused as surplus."""
        vision = isinstance(config, VLConfig)
        if (config.text if vision else config).tie_word_embeddings:
            prefix = TEXT_PREFIX if vision else ""
            head, embedding = f"{prefix}lm_head.weight", f"{prefix}model.embed_tokens.weight"
            if head in self._views and embedding in self._views:
                if torch.equal(self.stored(head), self.stored(embedding)):
                    del self._views[head]

    def _check(self, where: str) -> None:
        shapes, want = {name: tuple(view.shape) for name, view in self._views.items()}, dict(self.names)
        for name in self.names.keys() & shapes.keys():
            kind = _KIND_OF.get(self.dtype(name))
            if kind is not None:
                like = torch.empty(1, *self.names[name], device="meta")
                quantized, scale = (t.shape[1:] for t in quantize_weight(like, kind)) if like.ndim == 3 else ((), ())
                want[name], want[name + SCALE] = tuple(quantized), tuple(scale)
        check_shapes(shapes, want, where)


def check_shapes(shapes: dict[str, tuple[int, ...]], want: dict[str, tuple[int, ...]], where: str) -> None:
    """Refuse missing, surplus and misshapen tensors, all listed in one message.

    Raises:
        ValueError
    """
    problems = []
    if missing := sorted(want.keys() - shapes.keys()):
        problems.append(f"{len(missing)} missing: {some(missing)}")
    if surplus := sorted(shapes.keys() - want.keys()):
        problems.append(f"{len(surplus)} surplus: {some(surplus)}")
    wrong = [
        f"{name} is {list(shapes[name])}, config.json says {list(shape)}"
        for name, shape in sorted(want.items())
        if name in shapes and tuple(shapes[name]) != tuple(shape)
    ]
    if wrong:
        problems.append(f"{len(wrong)} misshapen: {some(wrong)}")
    if problems:
        raise ValueError(f"the tensors in {where} do not fit its config.json: " + "; ".join(problems))
