"""Choose the next token of every sequence of a step, greedy or drawn, in one pass over the batch.

S sequences, V vocabulary. Each row depends on its own logits, settings and random numbers only, so that a request
samples the same alone or in any batch.
"""

import secrets
from collections.abc import Sequence

import torch

from mmvl.engine.sampling_params import SamplingParams


class SamplerState:
    """What sampling remembers of one request: its random generator and, if penalised, the tokens it has seen.

    The generator lives on the CPU, whatever the model's device: one uniform number a token is all it gives.
    """

    def __init__(self, params: SamplingParams, prompt_ids: Sequence[int]):
        self.params = params
        self.generator = torch.Generator()
        self.seed = secrets.randbits(63) if params.seed is None else params.seed
        self.generator.manual_seed(self.seed)
        self._prompt_ids = prompt_ids
        self._seen_V: torch.Tensor | None = None

    def uniform(self) -> float:
        return torch.rand((), generator=self.generator, dtype=torch.float64).item()

    def seen_V(self, like_V: torch.Tensor) -> torch.Tensor:
        """Boolean (V,): the ids of the prompt and of the answer so far."""
        if self._seen_V is None:
            self._seen_V = torch.zeros(like_V.shape, dtype=torch.bool, device=like_V.device)
            ids = [i for i in set(self._prompt_ids) if i < like_V.shape[0]]
            self._seen_V[torch.tensor(ids, dtype=torch.int64, device=like_V.device)] = True
        return self._seen_V

    def note(self, token_id: int) -> None:
        if self._seen_V is not None:
            self._seen_V[token_id] = True


class Sampler:
    """Sampler(valid_vocab_size, banned_ids): ids that the tokenizer does not have, and `banned_ids`, are never chosen.

    The head has more rows than the tokenizer has tokens (padding for even shards): those rows are not words.
    """

    def __init__(self, valid_vocab_size: int, banned_ids: Sequence[int] = ()):
        self.valid_vocab_size = valid_vocab_size
        self.banned_ids = sorted(i for i in set(banned_ids) if i < valid_vocab_size)

    def __call__(self, logits_SV: torch.Tensor, states: Sequence[SamplerState]) -> list[int]:
        """logits_SV (S, V) fp32 (overwritten), one state a row -> S token ids.

        `RuntimeError` if the logits are not numbers.
        """
        assert logits_SV.shape[0] == len(states), (logits_SV.shape, len(states))
        logits_SV = logits_SV[:, : self.valid_vocab_size]
        for banned in self.banned_ids:
            logits_SV[:, banned] = float("-inf")
        penalised = [row for row, state in enumerate(states) if state.params.repetition_penalty != 1.0]
        for row in penalised:
            seen_V = states[row].seen_V(logits_SV[row])
            logits_SV[row] = apply_repetition_penalty(logits_SV[row], seen_V, states[row].params.repetition_penalty)

        best_S, chosen_S = logits_SV.max(dim=-1)
        chosen = chosen_S.tolist()
        if not all(abs(value) < float("inf") for value in best_S.tolist()):  # NaN compares false as well
            raise RuntimeError("the model's logits are not finite: its weights or its precision are broken")
        drawn = [row for row, state in enumerate(states) if state.params.temperature > 0]
        if drawn:
            uniforms = [states[row].uniform() for row in drawn]
            rows_SV = logits_SV if len(drawn) == len(states) else logits_SV[drawn]
            for row, token in zip(drawn, draw(rows_SV, [states[r].params for r in drawn], uniforms), strict=True):
                chosen[row] = token
        for row in penalised:
            states[row].note(chosen[row])
        return chosen


def apply_repetition_penalty(logits_V: torch.Tensor, seen_V: torch.Tensor, penalty: float) -> torch.Tensor:
    """CTRL's penalty (arXiv 1909.05858, 4.1, with Hugging Face's sign rule): seen ids become less likely."""
    penalised_V = torch.where(logits_V > 0, logits_V / penalty, logits_V * penalty)
    return torch.where(seen_V, penalised_V, logits_V)


def draw(logits_SV: torch.Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> list[int]:
    """Temperature, then top-k, then top-p over what top-k left, then min-p; then invert the cumulative distribution.

    logits_SV (S, V) fp32; `uniforms` S numbers in [0, 1): the whole randomness. -> S ids.
    The token that crosses top_p is kept (Holtzman et al. 2019), so at least one always is.
    """
    device, vocab = logits_SV.device, logits_SV.shape[1]
    settings_S5 = torch.tensor(
        [
            (p.temperature, p.top_k or vocab, p.top_p if p.top_p < 1 else 2.0, p.min_p, u)
            for p, u in zip(params, uniforms, strict=True)
        ],
        dtype=torch.float64,
    ).to(device)
    temperature_S1, top_k_S1, top_p_S1, min_p_S1, uniform_S1 = settings_S5.split(1, dim=1)
    # Stable: equal logits keep their order of ids, on every device.
    sorted_SV, ids_SV = logits_SV.sort(dim=-1, descending=True, stable=True)
    # The largest is subtracted first, so that a tiny temperature cannot overflow.
    scaled_SV = (sorted_SV.double() - sorted_SV[:, :1].double()) / temperature_S1
    scaled_SV = scaled_SV.masked_fill(torch.arange(vocab, device=device) >= top_k_S1, float("-inf"))
    probs_SV = scaled_SV.softmax(dim=-1)
    before_SV = probs_SV.cumsum(dim=-1) - probs_SV
    kept_SV = (before_SV < top_p_S1) & (probs_SV >= min_p_S1 * probs_SV[:, :1]) & (probs_SV > 0)
    # Sorted, so what is kept is the front of each row: ranks 0 .. count - 1.
    cumulative_SV = (probs_SV * kept_SV).cumsum(dim=-1)
    rank_S1 = torch.searchsorted(cumulative_SV, uniform_S1 * cumulative_SV[:, -1:], right=True)
    rank_S1 = torch.minimum(rank_S1, kept_SV.sum(dim=-1, keepdim=True) - 1)
    return ids_SV.gather(1, rank_S1)[:, 0].tolist()
