"""From token ids, one by one, to text that may be shown at once.

Two things hold text back: a byte-level token may end in the middle of a UTF-8 character, and the text so far may be
the beginning of a stop string.
"""

import codecs
import json
from collections.abc import Sequence

from tokenizers import Tokenizer


class TokenBytes:
    """The bytes that each token of a byte-level BPE stands for; special tokens stand for none.

    `ValueError` for a tokenizer of another kind (this model family's is byte-level).
    """

    def __init__(self, tokenizer: Tokenizer):
        decoder = json.loads(tokenizer.to_str()).get("decoder") or {}
        if decoder.get("type") != "ByteLevel":
            raise ValueError(
                f"tokenizer.json decodes by {decoder.get('type', 'nothing')!r}: mmvl streams byte-level BPE only"
            )
        self._tokenizer = tokenizer
        self._added = tokenizer.get_added_tokens_decoder()
        self._byte_of = _byte_level_alphabet()
        self._known: dict[int, bytes] = {}

    def __getitem__(self, token_id: int) -> bytes:
        if token_id not in self._known:
            self._known[token_id] = self._look_up(token_id)
        return self._known[token_id]

    def _look_up(self, token_id: int) -> bytes:
        if token_id in self._added:
            added = self._added[token_id]
            return b"" if added.special else added.content.encode()
        token = self._tokenizer.id_to_token(token_id)
        assert token is not None, f"id {token_id} is not in the tokenizer"
        if all(character in self._byte_of for character in token):
            return bytes(self._byte_of[character] for character in token)
        return token.encode()


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: a printable Latin-1 byte is itself, the others are moved to U+0100 and up."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet |= {chr(256 + n): byte for n, byte in enumerate(others)}
    return alphabet


class TextStream:
    """The text of one answer. `push(id)` and `finish()` return what may be shown now; `stopped` tells of a stop string.

    What was returned, joined, is the answer: the bytes of its tokens as UTF-8 (invalid bytes become U+FFFD), without
    special tokens, cut before the first stop string, and without an unfinished last character.
    """

    def __init__(self, token_bytes: TokenBytes, stop: Sequence[str] = ()):
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def push(self, token_id: int) -> str:
        assert not self.stopped, "the stream has met a stop string"
        text = self._held + self._decoder.decode(self._token_bytes[token_id])
        if not self._stop:
            return text
        found = [position for position in (text.find(stop) for stop in self._stop) if position >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back for a stop string that did not come."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop` (and not all of it)."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
