"""Which settings an engine can be given; what each means is told where they are taken, in engine.py."""

import inspect
from collections.abc import Callable, Iterable
from numbers import Integral

from mmvl.engine.graph_rule import LARGEST

_RANGES = {
    "max_sequences": (1, None),
    "max_cached_tokens": (1, None),
    "max_batch_tokens": (1, None),
    "draft_tokens": (0, None),
    "swap_bytes": (0, None),
    "graph_tokens": (0, LARGEST),
    "expert_workspace": (1, None),
}


def check_numbers(**settings: object) -> None:
    """Raises ValueError for the first that is neither None nor a whole number of its range."""
    for name, value in settings.items():
        least, most = _RANGES[name]
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if value is not None and not (whole and least <= value <= (value if most is None else most)):
            can_be = f"it can be {least} to {most:,}" if most else f"it must be a whole number from {least} on"
            raise ValueError(f"{name} is {value!r}; {can_be}")


def refuse_unknown(names: Iterable[str], function: Callable) -> None:
    """Raises ValueError if there are any; `function` takes those that are known, by keyword."""
    if names := ", ".join(names):
        known = ", ".join(inspect.getfullargspec(function).kwonlyargs)
        raise ValueError(f"an engine has no setting {names}; there are: {known}")
