"""Choose the next token of every sequence of a step, greedy or drawn, in one pass over the batch, on the device.

S sequences, V vocabulary, N likeliest. Each row depends on its own logits, settings and random numbers only, so that a
request samples the same alone or in any batch, and the n-th token of an answer has its own random number, so that it
samples the same with a draft or without. Nothing here waits for the device.

To draw takes ten times the memory of the logits, so that of a large vocabulary only some rows are drawn at once.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from mmvl.engine.sampling_params import SamplingParams

NOT_FINITE = -1  # in place of a token whose logits are not numbers
AT_ONCE = 1 << 24  # logits of the rows that are drawn, or copied for log probabilities, at once
# Bytes a logit: the logits, and what a row that is penalised keeps; of the rows sampled at once, beside these, copies
# for log probabilities and of those drawn, and then either the sort (numbers and ids; what a GPU takes to make them) or
# ids, two of fp64 and three of bool.
LOGIT, PENALISED, COPIES, SORTED, SORTING, DRAWING = 4, 5, 8, 12, 32, 27


def sampling_bytes(rows: int, vocab_size: int) -> int:
    """About what the logits of a step that samples so many rows, and sampling from them, take of a GPU at most."""
    at_once = min(rows, rows_at_once(vocab_size))
    return vocab_size * (rows * (LOGIT + PENALISED) + at_once * (COPIES + max(SORTED + SORTING, DRAWING)))


def rows_at_once(vocab_size: int) -> int:
    """How many rows of logits are drawn, or copied for log probabilities, at once."""
    return max(AT_ONCE // vocab_size, 1)


class SamplerState:
    """What sampling remembers of one request: its random numbers and, if penalised, the tokens it has seen.

    end_ids: ids that may not come before `min_tokens`. The generator lives on the CPU, whatever the model's device: one
    uniform number a token is all it gives.
    """

    def __init__(self, params: SamplingParams, prompt_ids: Sequence[int], end_ids: Sequence[int] = ()):
        self.params, self.end_ids = params, sorted(end_ids)
        self._generator = torch.Generator()
        self.seed = secrets.randbits(63) if params.seed is None else params.seed
        self._generator.manual_seed(self.seed)
        self._uniforms: list[float] = []
        self._prompt_ids = prompt_ids
        self._in_prompt_V: torch.Tensor | None = None
        self._counts_V: torch.Tensor | None = None

    def uniform(self, number: int) -> float:
        """The random number of the answer's token `number` (from 0), in [0, 1)."""
        missing = number + 1 - len(self._uniforms)
        if missing > 0:  # one at a time, so that it does not matter how many are asked for together
            self._uniforms += [
                torch.rand((), generator=self._generator, dtype=torch.float64).item() for _ in range(missing)
            ]
        return self._uniforms[number]

    def penalise(self, logits_V: torch.Tensor) -> torch.Tensor:
        """The logits with this request's penalties."""
        if self._counts_V is None:
            self._counts_V = torch.zeros(logits_V.shape, dtype=torch.int32, device=logits_V.device)
            self._in_prompt_V = torch.zeros(logits_V.shape, dtype=torch.bool, device=logits_V.device)
            ids = [i for i in set(self._prompt_ids) if i < logits_V.shape[0]]
            self._in_prompt_V.index_fill_(0, _index(ids, logits_V.device), True)
        params, said_V = self.params, self._counts_V > 0
        if params.repetition_penalty != 1.0:
            logits_V = apply_repetition_penalty(logits_V, said_V | self._in_prompt_V, params.repetition_penalty)
        return logits_V - params.presence_penalty * said_V - params.frequency_penalty * self._counts_V

    def note(self, token_1: torch.Tensor) -> None:
        """Count a chosen token (1,), on the device."""
        self._counts_V.index_add_(0, token_1.clamp(min=0), torch.ones_like(token_1, dtype=torch.int32))


class Row(NamedTuple):
    """Whose logits a row holds: the request's state, how many tokens its answer has before, and which may come now."""

    state: SamplerState
    number: int
    mask_V: torch.Tensor | None = None  # bool, on the CPU, at least as long as the valid vocabulary


@dataclass(frozen=True)
class Logprobs:
    """Of the rows that asked, in order: (R,) rows; (R,) of the chosen; (R, N) values and ids of the likeliest."""

    rows: tuple[int, ...]
    chosen_R: torch.Tensor
    values_RN: torch.Tensor
    ids_RN: torch.Tensor

    @classmethod
    def joined(cls, parts: Sequence["Logprobs | None"], step: int) -> "Logprobs | None":
        """Those of parts of a batch of `step` rows each."""
        found = [(n * step, part) for n, part in enumerate(parts) if part is not None]
        if not found:
            return None
        rows = tuple(first + row for first, part in found for row in part.rows)
        of_all = [[part.chosen_R, part.values_RN, part.ids_RN] for _, part in found]
        return cls(rows, *(torch.cat(column) for column in zip(*of_all, strict=True)))


class Sampler:
    """Sampler(valid_vocab_size, banned_ids): ids from the first on, and `banned_ids`, are never chosen.

    The head has more rows than the tokenizer has tokens (padding for even shards): those rows are not words.
    """

    def __init__(self, valid_vocab_size: int, banned_ids: Sequence[int] = ()):
        self.valid_vocab_size = valid_vocab_size
        self.banned_ids = sorted(i for i in set(banned_ids) if i < valid_vocab_size)
        self._banned: torch.Tensor | None = None  # the same, where the logits are

    def __call__(self, logits_SV: torch.Tensor, rows: Sequence[Row]) -> tuple[torch.Tensor, Logprobs | None]:
        """logits_SV (S, V) fp32 (overwritten), one row each -> S token ids on the device, and log probabilities.

        The id is `NOT_FINITE` where the logits are not finite numbers, or a mask leaves nothing.
        """
        assert logits_SV.shape[0] == len(rows), (logits_SV.shape, len(rows))
        logits_SV = logits_SV[:, : self.valid_vocab_size]
        if self._banned is None or self._banned.device != logits_SV.device:
            self._banned = _index(self.banned_ids, logits_SV.device)
        asked = [row.state.params for row in rows]
        most = max((params.logprobs or 0 for params in asked), default=0)
        copied = sum(params.temperature > 0 or params.logprobs is not None for params in asked)
        at_once = rows_at_once(logits_SV.shape[1])
        step = at_once if copied > at_once else len(rows)  # greedy rows take nothing, and parts take launches
        parts = [self._sample(logits_SV[n : n + step], rows[n : n + step], most) for n in range(0, len(rows), step)]
        if len(parts) == 1:
            return parts[0]
        tokens, logprobs = zip(*parts, strict=True)
        return torch.cat(tokens), Logprobs.joined(logprobs, step)

    def _sample(self, logits_SV: torch.Tensor, rows: Sequence[Row], most: int) -> tuple[torch.Tensor, Logprobs | None]:
        """Of some rows; `most` likeliest tokens for those who ask for log probabilities."""
        asked = [n for n, row in enumerate(rows) if row.state.params.logprobs is not None]
        # by tensors: a list in brackets is copied to the device by a copy that waits for it
        asked_R = _index(asked, logits_SV.device) if asked else None
        plain_RV = logits_SV.index_select(0, asked_R).log_softmax(-1) if asked else None
        logits_SV.index_fill_(1, self._banned, float("-inf"))
        for n, row in enumerate(rows):
            params = row.state.params
            if params.penalised:
                logits_SV[n] = row.state.penalise(logits_SV[n])
            if row.mask_V is not None:
                allowed_V = row.mask_V[: self.valid_vocab_size].to(logits_SV.device, non_blocking=True)
                logits_SV[n].masked_fill_(~allowed_V, float("-inf"))
            if row.number < params.min_tokens and row.state.end_ids:
                ends = [i for i in row.state.end_ids if i < self.valid_vocab_size]
                logits_SV[n].index_fill_(0, _index(ends, logits_SV.device), float("-inf"))

        best_S, tokens_S = _largest(logits_SV)
        drawn = [n for n, row in enumerate(rows) if row.state.params.temperature > 0]
        if drawn:
            uniforms = [rows[n].state.uniform(rows[n].number) for n in drawn]
            everyone = len(drawn) == len(rows)
            drawn_R = None if everyone else _index(drawn, logits_SV.device)
            rows_SV = logits_SV if everyone else logits_SV.index_select(0, drawn_R)
            drawn_S = draw(rows_SV, [rows[n].state.params for n in drawn], uniforms)
            tokens_S = drawn_S if everyone else tokens_S.index_copy(0, drawn_R, drawn_S)
        tokens_S = torch.where(best_S.isfinite(), tokens_S, NOT_FINITE)
        for n, row in enumerate(rows):
            if row.state.params.penalised:
                row.state.note(tokens_S[n : n + 1])
        if plain_RV is None:
            return tokens_S, None
        values_RN, ids_RN = plain_RV.topk(min(most, plain_RV.shape[1]), dim=-1)
        chosen_R = plain_RV.gather(1, tokens_S.index_select(0, asked_R)[:, None].clamp(min=0))[:, 0]
        return tokens_S, Logprobs(tuple(asked), chosen_R, values_RN, ids_RN)


def _largest(logits_SV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of every row the largest number and where it is; not a number where one is none."""
    if logits_SV.is_cuda:
        return logits_SV.max(dim=-1)
    # on a CPU `max` wakes all threads for two rows already, and they go on waiting where a decode step wants to be
    tokens_S = logits_SV.argmax(dim=-1)
    return logits_SV.gather(1, tokens_S[:, None])[:, 0], tokens_S


def _index(numbers: Sequence[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int64).to(device, non_blocking=True)


def apply_repetition_penalty(logits_V: torch.Tensor, seen_V: torch.Tensor, penalty: float) -> torch.Tensor:
    """CTRL's penalty (arXiv 1909.05858, 4.1, with Hugging Face's sign rule): seen ids become less likely."""
    penalised_V = torch.where(logits_V > 0, logits_V / penalty, logits_V * penalty)
    return torch.where(seen_V, penalised_V, logits_V)


def draw(logits_SV: torch.Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> torch.Tensor:
    """Temperature, then top-k, then top-p over what top-k left, then min-p; then invert the cumulative distribution.

    logits_SV (S, V) fp32; `uniforms` S numbers in [0, 1): the whole randomness. -> S ids (int64).
    The token that crosses top_p is kept (Holtzman et al. 2019), so at least one always is. What is inverted is in the
    order of ids, not of probabilities: there two tokens that are almost equal would change places with the last bit of
    a logit, and the draw with them.
    """
    device, vocab = logits_SV.device, logits_SV.shape[1]
    settings_S5 = torch.tensor(
        [
            (p.temperature, p.top_k or vocab, p.top_p if p.top_p < 1 else 2.0, p.min_p, u)
            for p, u in zip(params, uniforms, strict=True)
        ],
        dtype=torch.float64,
    ).to(device, non_blocking=True)
    temperature_S1, top_k_S1, top_p_S1, min_p_S1, uniform_S1 = settings_S5.split(1, dim=1)
    # Stable: equal logits keep their order of ids, on every device.
    sorted_SV, ids_SV = logits_SV.sort(dim=-1, descending=True, stable=True)
    scaled_SV = sorted_SV.double()
    del sorted_SV
    # The largest is subtracted first, so that a tiny temperature cannot overflow.
    scaled_SV.sub_(scaled_SV[:, :1].clone()).div_(temperature_S1)
    scaled_SV.masked_fill_(torch.arange(vocab, device=device) >= top_k_S1, float("-inf"))
    probs_SV = scaled_SV.softmax(dim=-1)
    before_SV = torch.cumsum(probs_SV, dim=-1, out=scaled_SV).sub_(probs_SV)
    kept_SV = before_SV < top_p_S1
    kept_SV &= probs_SV >= min_p_S1 * probs_SV[:, :1]
    kept_SV &= probs_SV > 0
    by_id_SV = before_SV.scatter_(1, ids_SV, probs_SV.mul_(kept_SV))  # every id is there once
    cumulative_SV = torch.cumsum(by_id_SV, dim=-1, out=probs_SV)
    drawn_S1 = torch.searchsorted(cumulative_SV, uniform_S1 * cumulative_SV[:, -1:], right=True)
    last_S1 = vocab - 1 - (by_id_SV > 0).view(torch.uint8).flip(-1).argmax(dim=-1, keepdim=True)
    return torch.minimum(drawn_S1, last_S1)[:, 0]
