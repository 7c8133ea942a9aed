"""Packed batches: offsets, positions, refusals."""

import pytest
import torch

from mmvl.text_backbone.packed import Packed


def test_positions_and_offsets():
    packed = Packed.from_lengths([3, 1, 2], "cpu", starts=[0, 7, 100])
    assert packed.cu_seqlens_S1.tolist() == [0, 3, 4, 6] and packed.cu_seqlens_S1.dtype == torch.int32
    assert packed.positions_T.tolist() == [0, 1, 2, 7, 100, 101] and packed.positions_T.dtype == torch.int64
    assert packed.last_S.tolist() == [2, 3, 5] and packed.num_tokens == 6


@pytest.mark.parametrize("lengths, starts", [([], None), ([2, 0], None), ([2], [1, 2]), ([2], [-1])])
def test_nonsense_is_refused(lengths, starts):
    with pytest.raises(ValueError):
        Packed.from_lengths(lengths, "cpu", starts=starts)


def test_wrong_number_of_embeddings_is_refused(make_config, make_decoder):
    decoder = make_decoder(make_config())
    with pytest.raises(ValueError, match="3 embeddings for a packed batch of 2 tokens"):
        decoder(decoder.embed(torch.tensor([1, 2, 3])), Packed.from_lengths([2], "cpu"))
