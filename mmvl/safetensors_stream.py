"""Safetensors files written tensor by tensor and read range by range: none is ever whole in memory, nor mapped into it.

Source: the format's description in the README of huggingface/safetensors: 8 bytes with the header's length (little
endian), the header in JSON, the tensors one after the other. The bytes are those that `safetensors.torch.save_file`
writes of the same tensors.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path

import torch
from torch import Tensor

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


def write_safetensors(
    path: Path,
    layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    tensor: Callable[[str], Tensor],
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Write a file and return its bytes once they are on the disk (fsync).

    Args:
        layout: dtype and shape of every tensor.
        tensor: gives a tensor by name when its turn has come; on any device, of the dtype and shape promised.

    Raises:
        OSError: the disk is full, or cannot be written.
    """
    names = sorted(layout, key=lambda name: (-layout[name][0].itemsize, name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name in names:
        dtype, shape = layout[name]
        end = at + prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            t = tensor(name)
            assert (t.dtype, tuple(t.shape)) == (layout[name][0], tuple(layout[name][1])), name
            if t.numel():
                f.write(memoryview(t.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy()))
        f.flush()
        os.fsync(f.fileno())
    return 8 + len(text) + at


class FlatReader:
    """A file whose tensors are read as ranges of their flat values: `reader[name][first:last]`; close it when done.

    Raises:
        ValueError: not a safetensors file.
    """

    def __init__(self, path: Path):
        self._file = path.open("rb")
        try:
            length = int.from_bytes(self._file.read(8), "little")
            if length > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            self._header = json.loads(self._file.read(length))
        except (ValueError, UnicodeDecodeError) as e:
            self._file.close()
            raise ValueError(f"{path} is not a safetensors file ({e})") from e
        self._header.pop("__metadata__", None)
        self._data = 8 + length

    def __iter__(self):
        return iter(self._header)

    def __getitem__(self, name: str) -> FlatTensor:
        return FlatTensor(self._file, self._data, self._header[name])

    def close(self) -> None:
        self._file.close()


class FlatTensor:
    """One tensor of a `FlatReader`, flat: `shape` is its number of elements, slicing reads them; `dims` are its own.

    Raises:
        ValueError: a dtype that is not read here.
    """

    def __init__(self, file, data: int, about: dict):
        if about["dtype"] not in _DTYPES:
            raise ValueError(f"the dtype {about['dtype']} is not supported")
        self._file, self._start = file, data + about["data_offsets"][0]
        self.dtype, self.dims = _DTYPES[about["dtype"]], tuple(about["shape"])
        self.shape = (prod(self.dims),)

    def __getitem__(self, part: slice) -> Tensor:
        first, last, _ = part.indices(self.shape[0])
        out = torch.empty(max(0, last - first), dtype=self.dtype)
        if len(out):
            self._read(memoryview(out.view(torch.uint8).numpy()), first)
        return out

    def columns(self, start: int, rows: int, width: int, part: slice) -> Tensor:
        """Of a matrix of `rows` rows of `width` elements that begins at element `start`, the columns of `part`."""
        out = torch.empty(rows, part.stop - part.start, dtype=self.dtype)
        row = out.shape[1] * self.dtype.itemsize
        flat = memoryview(out.view(-1).view(torch.uint8).numpy())
        for r in range(rows):
            self._read(flat[r * row : (r + 1) * row], start + r * width + part.start)
        return out

    def _read(self, into: memoryview, first: int) -> None:
        self._file.seek(self._start + first * self.dtype.itemsize)
        if self._file.readinto(into) != len(into):
            raise ValueError(f"{self._file.name} ends early")
