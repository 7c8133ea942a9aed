"""The order in which samples are visited: a pure function of (seed, source, epoch), with no state and no memory.

A permutation of n items is a small Feistel network over the next power of four, walked until it falls below n
(Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). Any position can be asked for alone, so resuming is
remembering a number, and a source of a billion samples costs nothing to shuffle.
"""

import hashlib

_MASK = (1 << 64) - 1
_ROUNDS = 6


def derive(*parts) -> int:
    """64-bit integer from any mix of strings and integers; the same on every machine, process and Python version."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _mix(x: int) -> int:
    """splitmix64's finaliser (Steele, Lea and Flood 2014): every input bit changes about half of the output bits."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


class Permutation:
    """`Permutation(n, seed, source, epoch)[position]` is the index of the sample visited at that position."""

    def __init__(self, n: int, seed: int, source: str, epoch: int):
        if n < 1:
            raise ValueError(f"source '{source}' has no samples, so there is no order to visit them in")
        self.n = n
        self._half = max(1, ((n - 1).bit_length() + 1) // 2)
        key = derive("order", seed, source, epoch)
        self._keys = [_mix(key + r) for r in range(_ROUNDS)]

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, position: int) -> int:
        if not 0 <= position < self.n:
            raise IndexError(position)
        half, low = self._half, (1 << self._half) - 1
        x = position
        while True:
            left, right = x >> half, x & low
            for key in self._keys:
                left, right = right, left ^ (_mix(right ^ key) & low)
            x = (left << half) | right
            if x < self.n:
                return x
