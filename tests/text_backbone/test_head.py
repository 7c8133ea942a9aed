"""The head: logits in fp32, also of a 16-bit model, from its own weights or the embedding's."""

import pytest
import torch


@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_logits_of_a_16_bit_model_are_not_rounded(make_config, make_decoder, rmse_ratio, tied):
    decoder = make_decoder(make_config(tie_word_embeddings=tied), torch.bfloat16)
    hidden_TD = torch.randn(50, 24, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight_VD = decoder.model.embed_tokens.weight if tied else decoder.lm_head.weight
    logits_TV = decoder.logits(hidden_TD)
    assert logits_TV.dtype == torch.float32
    assert rmse_ratio(logits_TV, hidden_TD.double() @ weight_VD.double().T) < 1e-6
