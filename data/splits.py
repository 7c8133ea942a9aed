"""The one place that says which samples are trained on: importers and `mmvl eval` both ask `split_of`.

A sample's split hangs on its key alone, so it does not move when others are added, left out or put in another order.
The key names the thing itself (the scan, the chart, the table), so that every question on it falls on the same side.
"""

from mmvl.data.order import derive

DEVELOPMENT_ONE_IN = 8
SPLITS = ("train", "development", "all")


def split_of(key: str) -> str:
    """ "development" for one key in eight, which training never sees; "train" for the others.

    By BLAKE2b of the key: the same on every machine and Python version. ValueError for an empty key.
    """
    if not key:
        raise ValueError("a sample without a key belongs to no split")
    return "development" if derive("split", key) % DEVELOPMENT_ONE_IN == 0 else "train"


def in_split(key: str, split: str) -> bool:
    """Whether a key is in `split`, one of SPLITS; "all" takes every key. ValueError for another name."""
    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r}; there are: {', '.join(SPLITS)}")
    return split == "all" or split_of(key) == split
