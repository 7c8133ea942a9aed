"""Safetensors files written tensor by tensor: neither the file nor the model is ever whole in memory.

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
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
}


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
