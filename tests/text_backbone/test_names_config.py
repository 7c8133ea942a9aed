"""Names and settings of the released model, in both dialects."""

import json
import math

import pytest
import torch

from mmvl.text_backbone.config import TextConfig
from mmvl.text_backbone.decoder import Decoder
from mmvl.text_backbone.lightning import alibi_slopes, layer_slopes
from mmvl.text_backbone.names import from_native, from_released, released_names, to_native, to_released

ALPHA = 3.5565588200778455
RELEASED = {
    "architectures": ["MiniMaxText01ForCausalLM"], "model_type": "minimax_text_01", "hidden_size": 6144,
    "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, "rotary_dim": 64,
    "rope_theta": 10000000, "vocab_size": 200064, "hidden_act": "silu", "intermediate_size": 9216,
    "num_local_experts": 32, "num_experts_per_tok": 2, "attn_type_list": ([0] * 7 + [1]) * 10, "postnorm": True,
    "layernorm_full_attention_alpha": ALPHA, "layernorm_full_attention_beta": 1.0,
    "layernorm_linear_attention_alpha": ALPHA, "layernorm_linear_attention_beta": 1.0, "layernorm_mlp_alpha": ALPHA,
    "layernorm_mlp_beta": 1.0, "rms_norm_eps": 1e-05, "max_position_embeddings": 10240000,
    "shared_intermediate_size": 0, "shared_moe_mode": "sigmoid", "sliding_window": None, "attention_dropout": 0.0,
    "initializer_range": 0.02, "router_aux_loss_coef": 0.001, "router_jitter_noise": 0.0,
    "output_router_logits": False, "tie_word_embeddings": False, "use_cache": True, "bos_token_id": None,
    "eos_token_id": None, "torch_dtype": "bfloat16",
}  # fmt: skip


def test_released_names():
    names = released_names(TextConfig.from_dict(RELEASED))
    assert len(names) == 8243
    assert sum(math.prod(shape) for shape in names.values()) == 456_089_655_296
    assert names["model.layers.7.self_attn.k_proj.weight"] == (1024, 6144)
    assert names["model.layers.79.block_sparse_moe.experts.31.w2.weight"] == (6144, 9216)
    assert names["model.layers.0.self_attn.qkv_proj.weight"] == (24576, 6144)


@pytest.mark.parametrize("overrides", [{}, {"shared_intermediate_size": 12, "tie_word_embeddings": True}])
def test_names_are_those_of_the_decoder_and_back(overrides, make_config, make_decoder):
    config = make_config(**overrides)
    state_dict = make_decoder(config).state_dict()
    released = to_released(state_dict)
    assert {name: tuple(tensor.shape) for name, tensor in released.items()} == released_names(config)
    for back in (from_released(released), from_native(to_native(state_dict))):
        assert back.keys() == state_dict.keys()
        assert all(torch.equal(back[name], tensor) for name, tensor in state_dict.items())


def test_a_missing_expert_is_named(make_config, make_decoder):
    released = to_released(make_decoder(make_config()).state_dict())
    del released["model.layers.1.block_sparse_moe.experts.2.w3.weight"]
    with pytest.raises(ValueError, match=r"layers\.1.*w3: no tensor for experts \[2\]"):
        from_released(released)


@pytest.mark.parametrize("shape", [(24,), (5, 1, 24), (5, 24)])
def test_misshapen_native_experts_keep_their_name(shape):
    name = "model.layers.0.mlp.experts.gate_up_proj"
    assert from_native({name: torch.zeros(shape)}).keys() == {name}


def test_both_dialects_give_the_same_config(make_config):
    config = make_config(rotary_dim=8, eos_token_id=3)
    assert TextConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    native = json.loads(json.dumps(config.to_native_dict()))
    assert "attn_type_list" not in native
    assert TextConfig.from_dict(native) == config


def test_what_configs_in_the_wild_lack_or_bend():
    config = TextConfig.from_dict(RELEASED)
    assert config.eos_token_id is None and config.lightning_layers[:8] == (0, 1, 2, 3, 4, 5, 6, 8)
    assert config.softmax_layers == (7, 15, 23, 31, 39, 47, 55, 63, 71, 79)
    without_eos = {k: v for k, v in RELEASED.items() if k not in ("eos_token_id", "bos_token_id")}
    assert TextConfig.from_dict(without_eos | {"shared_intermediate_size": [0]}) == config
    partial = {k: v for k, v in RELEASED.items() if k not in ("rotary_dim", "rope_theta")}
    rope = {"rope_type": "default", "rope_theta": 10000000, "partial_rotary_factor": 0.5}
    assert TextConfig.from_dict(partial | {"rope_parameters": rope}) == config
    assert TextConfig.from_dict(partial | {"rope_parameters": rope, "partial_rotary_factor": None}) == config
    bare = {k: v for k, v in RELEASED.items() if k not in ("head_dim", "num_key_value_heads", "rotary_dim")}
    bare = TextConfig.from_dict(bare)
    assert (bare.head_dim, bare.num_key_value_heads, bare.rotary_dim) == (96, 64, 96)
    assert TextConfig.from_dict(RELEASED | {"eos_token_id": [1, 2]}).eos_token_id == (1, 2)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"attn_type_list": [0, 1]}, "2 entries for num_hidden_layers = 80"),
        ({"attn_type_list": None}, "neither attn_type_list nor layer_types"),
        ({"attn_type_list": None, "layer_types": ["mamba"] * 80}, "found mamba"),
        ({"hidden_size": None}, "has no hidden_size"),
        ({"hidden_act": "gelu"}, "hidden_act must be silu"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"rotary_dim": 130}, "rotary_dim must be even and at most head_dim"),
        ({"num_key_value_heads": 5}, "not a multiple"),
        ({"num_experts_per_tok": 33}, "exceeds num_local_experts"),
        ({"shared_intermediate_size": [0, 4]}, "differs between layers"),
        ({"shared_intermediate_size": 4, "shared_moe_mode": "softmax"}, "shared_moe_mode must be 'sigmoid'"),
        ({"rope_scaling": {"type": "yarn"}}, "rope type 'yarn'"),
        ({"vocab_size": 0}, "vocab_size must be positive"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TextConfig.from_dict(RELEASED | change)


def test_slopes():
    assert alibi_slopes(64)[0] == pytest.approx(2 ** (-1 / 8)) and alibi_slopes(64)[63] == pytest.approx(2**-8)
    assert alibi_slopes(6) == pytest.approx([2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])
    assert layer_slopes(8, 0, 9)[0] == pytest.approx(0.5 * (1 + 1e-5))
    assert layer_slopes(8, 8, 9)[7] == pytest.approx(2**-8 * 1e-5, rel=1e-6)
    assert layer_slopes(1, 0, 1) == pytest.approx([2**-8 * (1 + 1e-5)])


def test_initial_weights_depend_on_the_seed_alone(make_config):
    a, b, c = (Decoder(make_config()) for _ in range(3))
    a.init_weights(1)
    b.bfloat16().init_weights(1)
    c.init_weights(2)
    for (name, x), y, z in zip(a.named_parameters(), b.parameters(), c.parameters(), strict=True):
        assert x.isfinite().all() and torch.equal(x.bfloat16(), y), name
        assert x.ndim == 1 or not torch.equal(x, z), name
    # DeepNorm: values and outputs start (8N)^(-1/4) times smaller than queries and keys
    q, k, v = a.model.layers[0].self_attn.qkv_proj.weight.detach().view(6, 3, 8, 24).std((0, 2, 3))
    assert v / q == pytest.approx((8 * 3) ** -0.25, rel=0.1) and k / q == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden_size", "64", "hidden_size must be a whole number, is '64'"),
        ("hidden_size", 64.5, "hidden_size must be a whole number"),
        ("num_local_experts", True, "num_local_experts must be a whole number"),
        ("rms_norm_eps", "tiny", "rms_norm_eps must be a number"),
        ("postnorm", "yes", "postnorm must be true or false"),
    ],
)
def test_values_of_the_wrong_kind_are_named(make_config, key, value, message):
    with pytest.raises(ValueError, match=message):
        TextConfig.from_dict(make_config().to_dict() | {key: value})
