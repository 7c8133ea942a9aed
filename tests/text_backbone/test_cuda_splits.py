"""On a GPU, by its kernels: any split of a sequence, beside any others, equals one shot and equals the CPU."""

import pytest
import torch

from mmvl.text_backbone.cache import HybridCache
from mmvl.text_backbone.packed import Packed

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SPLITS = [[[1] * 70, [30, 1, 1, 80], [64, 3, 65]], [[200], [1, 199], [100, 1, 1, 98]]]


def run(decoder, sequences, chunks, device, page_size):
    cache = HybridCache(
        decoder.config, max_sequences=8, max_tokens=2048, page_size=page_size, device=device,
        dtype=next(decoder.parameters()).dtype,
    )  # fmt: skip
    slots, hidden = [cache.allocate() for _ in sequences], [[] for _ in sequences]
    for r in range(max(map(len, chunks))):
        now = [s for s in range(len(chunks)) if r < len(chunks[s])]
        packed = cache.pack([(slots[s], chunks[s][r]) for s in now])
        ids = torch.cat([sequences[s][cache.length(slots[s]) :][: chunks[s][r]] for s in now]).to(device)
        out = decoder(decoder.embed(ids), packed, cache).hidden_TD
        for s, part in zip(now, out.split(packed.lengths), strict=True):
            hidden[s].append(part)
    return [torch.cat(parts) for parts in hidden], [cache.state(slot) for slot in slots]


@pytest.mark.parametrize("page_size", [64, 7])
@pytest.mark.parametrize("postnorm", [True, False], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("chunks", SPLITS, ids=["ragged", "whole beside parts"])
@torch.no_grad()
def test_any_split_equals_the_cpu(chunks, postnorm, page_size, make_config, make_decoder, rmse_ratio):
    config = make_config(head_dim=32, rotary_dim=16, postnorm=postnorm)
    exact, decoder = make_decoder(config), make_decoder(config).cuda()
    sequences = [torch.arange(sum(c)) * 7 % 61 for c in chunks]
    hidden, states = run(decoder, sequences, chunks, "cuda", page_size)
    for ids, out, state in zip(sequences, hidden, states, strict=True):
        expected, expected_state = run(exact, [ids], [[len(ids)]], "cpu", 64)
        assert rmse_ratio(out, expected[0]) < 1e-4 and rmse_ratio(state, expected_state[0]) < 1e-4
        alone = decoder(decoder.embed(ids.cuda()), Packed.from_lengths([len(ids)], "cuda")).hidden_TD
        assert rmse_ratio(out, alone) < 1e-4
