"""What a prefix is, as a hash: its tokens, and where an image stands its content and tiling instead."""

import hashlib
from array import array
from collections.abc import Sequence

from mmvl.processor import Prompt

_ROOT = b"mmvl"


class PrefixKeys:
    """Keys of the prefixes of one growing sequence; equal keys mean equal content, for all that hashes can promise.

    Made from a prompt, continued by `extend`. A key is that of the whole pages before and of the tokens behind them, so
    that a key costs one hash of at most a page once its pages are hashed.
    """

    def __init__(self, prompt: Prompt, image_token_id: int, page_size: int):
        self.page_size = page_size
        self._content = array("q", prompt.token_ids)
        self._chain = [_ROOT]
        images = iter(prompt.images)
        position = 0
        while prompt.images and (image := next(images, None)) is not None:
            position = prompt.token_ids.index(image_token_id, position)
            # No token has a negative id; 62 bits of the digest, counted on so that each of its tokens is another one.
            first = -1 - (int(image.digest[:15], 16) << 2)
            self._content[position : position + image.num_tokens] = array(
                "q", range(first, first - image.num_tokens, -1)
            )
            position += image.num_tokens

    def __len__(self) -> int:
        return len(self._content)

    def extend(self, ids: Sequence[int]) -> None:
        """The sequence goes on with these tokens."""
        self._content.extend(ids)

    def pages(self, length: int) -> list[bytes]:
        """Hashes of the first 0, 1, 2, ... whole pages, of those within `length` tokens."""
        while len(self._chain) <= length // self.page_size:
            self._chain.append(self._hash(len(self._chain) - 1, len(self._chain) * self.page_size))
        return self._chain[: length // self.page_size + 1]

    def at(self, length: int) -> bytes:
        """The key of the first `length` tokens."""
        last_page = self.pages(length)[-1]
        if length % self.page_size == 0:
            return last_page
        return b"and" + self._hash(length // self.page_size, length)

    def _hash(self, pages: int, stop: int) -> bytes:
        piece = self._content[pages * self.page_size : stop]
        return hashlib.blake2b(self._chain[pages] + piece.tobytes(), digest_size=16).digest()
