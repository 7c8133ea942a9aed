"""Which settings an engine can be given, checked before a model is loaded; what each means is told in engine.py."""

from numbers import Integral
from pathlib import Path

import torch

from mmvl.checkpoint import kind_of_experts, load_config
from mmvl.config import VLConfig
from mmvl.engine.graph_rule import LARGEST
from mmvl.engine.memory import check_workspace
from mmvl.kernels.keys_8bit import KINDS, check_device

PREFIX_CACHES = ("exact", "int8", "off")
KV_CACHE_DTYPES = ("auto", *KINDS)
NUMBERS = {  # (least, most)
    "max_sequences": (1, None),
    "max_cached_tokens": (1, None),
    "max_batch_tokens": (1, None),
    "draft_tokens": (0, None),
    "swap_bytes": (0, None),
    "graph_tokens": (0, LARGEST),
    "expert_workspace": (1, None),
}
CHOICES = {
    "kv_cache_dtype": KV_CACHE_DTYPES,
    "prefix_cache": PREFIX_CACHES,
    "behind": (None, True, False),
    "graphs": (True, False),
}


def check_settings(device: torch.device, settings: dict[str, object]) -> None:
    """Raises ValueError, one line, for the first setting that there is not, or that cannot be on this device.

    Whether there is memory for it the engine sees, and of what the model must have `check_for_model` tells.
    """
    for name, value in settings.items():
        if name in NUMBERS:
            _check_number(name, value)
        elif name not in CHOICES:
            raise ValueError(f"an engine has no setting {name}; there are: {', '.join((*NUMBERS, *CHOICES))}")
        elif value not in CHOICES[name]:
            raise ValueError(f"{name} is {value!r}; it can be {', '.join(map(str, CHOICES[name]))}")
        elif value in KINDS and name == "kv_cache_dtype":
            check_device(device, KINDS[value])


def kv_dtype_of(kv_cache_dtype: str, model) -> torch.dtype:
    """What keys and values are kept in. Raises ValueError for an unknown name, or a device that cannot."""
    check_settings(model.device, {"kv_cache_dtype": kv_cache_dtype})
    return KINDS.get(kv_cache_dtype, model.dtype)


def check_for_model(
    settings: dict[str, object], directory: Path, device: torch.device, dtype: torch.dtype, quantize: str | None = None
) -> None:
    """`check_settings`, and what a model directory tells without its weights being read.

    quantize: as `load_model` takes it. Raises ValueError, and for damaged files what `load_model` raises.
    """
    check_settings(device, settings)
    if (workspace := settings.get("expert_workspace")) is not None:
        config = load_config(directory)
        text = config.text if isinstance(config, VLConfig) else config
        check_workspace(workspace, kind_of_experts(directory, quantize, device), text, dtype)


def _check_number(name: str, value: object) -> None:
    least, most = NUMBERS[name]
    if value is None and name != "draft_tokens":
        return  # the engine chooses
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not (whole and least <= value <= (value if most is None else most)):
        can_be = f"it can be {least} to {most:,}" if most else f"it must be a whole number from {least} on"
        raise ValueError(f"{name} is {value!r}; {can_be}")
