"""Fixtures of the text backbone tests: small decoders with random weights that make every part matter."""

import pytest
import torch

from mmvl.text_backbone.config import TextConfig
from mmvl.text_backbone.decoder import Decoder


@pytest.fixture(scope="session")
def make_config():
    """A small config with everything unequal (heads, alphas, partial rotary); keywords override fields."""

    def make(**overrides):
        fields = dict(
            hidden_size=24, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2, head_dim=8, rotary_dim=4,
            vocab_size=61, intermediate_size=16, num_local_experts=5, num_experts_per_tok=2, attn_type_list=(0, 1, 0),
            rope_theta=1000.0, postnorm=True, layernorm_full_attention_alpha=1.8, layernorm_full_attention_beta=0.9,
            layernorm_linear_attention_alpha=1.7, layernorm_linear_attention_beta=1.1, layernorm_mlp_alpha=1.6,
            layernorm_mlp_beta=0.8,
        )  # fmt: skip
        return TextConfig(**fields | overrides)

    return make


@pytest.fixture(scope="session")
def make_decoder():
    """A decoder for a config, its norm weights away from 1 and its routers decided."""

    def make(config, dtype=torch.float32, seed=0):
        decoder = Decoder(config)
        decoder.init_weights(seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in decoder.named_parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
                if name.endswith(("gate.weight", "coefficient.weight")):
                    parameter.mul_(20)
        return decoder.to(dtype)

    return make


@pytest.fixture(scope="session")
def rmse_ratio():
    """||out - ref|| / ||ref||, in fp64."""

    def ratio(out, ref):
        out, ref = out.detach().double().cpu(), ref.detach().double().cpu()
        return ((out - ref).norm() / ref.norm().clamp(min=1e-30)).item()

    return ratio
