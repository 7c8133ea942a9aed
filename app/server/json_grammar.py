"""Answers that are JSON by force: llguidance turns a JSON schema into the tokens that may come next.

The mask is made on the CPU, on the engine's thread, once a token; the engine keeps all other tokens from being drawn.
"""

import json
import re
from collections.abc import Sequence

import llguidance
import numpy as np
import torch

from mmvl.app.server.errors import invalid
from mmvl.app.server.protocol import JsonSchemaFormat, ResponseFormat, TextFormat
from mmvl.processor import Processor

MAX_SCHEMA = 64 << 10  # characters of JSON
# The layout of Python's json.dumps, which most models have read most; free white space would let a weak model pad on
# for ever.
_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_ANY_OBJECT = {"type": "object"}
# A schema comes from a stranger and its masks are made while all others wait: a quarter of the library's own limits.
_LIMITS = llguidance.LLParserLimits(
    step_max_items=12_500,
    step_lexer_fuel=50_000,
    initial_lexer_fuel=250_000,
    max_items_in_row=500,
    max_lexer_states=60_000,
)
_KEYWORD = re.compile(r'"([a-zA-Z$]{1,30})"')
_KEYWORDS = frozenset(
    "not if then else oneOf allOf anyOf contains minContains maxContains uniqueItems dependentRequired multipleOf "
    "dependentSchemas unevaluatedItems unevaluatedProperties propertyNames patternProperties contentEncoding format "
    "pattern $anchor $dynamicRef $recursiveRef $ref".split()
)


class Grammars:
    """Compiles response formats for one model; `mask` gives each request an object of its own."""

    def __init__(self, processor: Processor):
        self._processor = processor
        self._tokenizer: llguidance.LLTokenizer | None = None  # made when first needed: 200,000 tokens take a while

    def mask(self, response_format: ResponseFormat | None) -> "JsonMask | None":
        """None for plain text. Raises ApiError (400) for a schema that cannot be kept to. May take some 10 ms."""
        if response_format is None or isinstance(response_format, TextFormat):
            return None
        schema = _ANY_OBJECT
        if isinstance(response_format, JsonSchemaFormat):
            schema = response_format.json_schema.schema_
        try:
            text = json.dumps(schema)
        except RecursionError:
            raise invalid("The schema is nested too deeply.", "response_format", "invalid_schema") from None
        if len(text) > MAX_SCHEMA:
            raise invalid(f"The schema is longer than {MAX_SCHEMA >> 10} KiB.", "response_format")
        if self._tokenizer is None:
            self._tokenizer = llguidance.LLTokenizer(
                self._processor.tokenizer.to_str(),
                n_vocab=self._processor.valid_vocab_size,
                eos_token=list(self._processor.eos_ids),
            )
        grammar = llguidance.LLMatcher.grammar_from_json_schema(text, overrides=_LAYOUT)
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0, limits=_LIMITS)
        if matcher.is_error():
            # The library's text may repeat the schema; of it only keywords of the standard are told.
            unknown = sorted(set(_KEYWORD.findall(matcher.get_error())) & _KEYWORDS)
            which = f": it uses {', '.join(unknown)}" if unknown else ""
            raise invalid(f"This server cannot keep to that JSON schema{which}.", "response_format", "invalid_schema")
        return JsonMask(matcher, self._processor)


class JsonMask:
    """A `mmvl.engine.sampling_params.LogitMask` for one answer. `failed` tells that the grammar grew too complex."""

    def __init__(self, matcher: llguidance.LLMatcher, processor: Processor):
        self._matcher, self._vocab, self._end = matcher, processor.valid_vocab_size, list(processor.eos_ids)
        self._seen: list[int] = []

    @property
    def failed(self) -> bool:
        return self._matcher.is_error()

    def copy(self) -> "JsonMask":
        """For another answer to the same request, before this one has begun."""
        other = object.__new__(JsonMask)
        other.__dict__ = self.__dict__ | {"_matcher": self._matcher.deep_copy(), "_seen": []}
        return other

    def next_mask(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Boolean (V,): the tokens that may follow; once the JSON is whole, or has failed, the end tokens alone.

        Tokens that were there at the last call and are not now (a draft that was refused) are taken back.
        """
        ids = list(token_ids)
        kept = len(self._seen)
        while self._seen[:kept] != ids[:kept]:
            kept -= 1
        self._matcher.rollback(len(self._seen) - kept)
        self._matcher.consume_tokens(ids[kept:])
        self._seen = ids
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        mask_V = torch.from_numpy(np.unpackbits(bits, bitorder="little")[: self._vocab].astype(bool))
        if self.failed or not mask_V.any():
            mask_V = torch.zeros(self._vocab, dtype=torch.bool)
            mask_V[self._end] = True
        return mask_V
