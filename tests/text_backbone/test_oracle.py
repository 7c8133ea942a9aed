"""The whole decoder against an oracle that shares nothing with it: numpy, fp64, one token and one head at a time.

Weights go to the oracle under their released names, so the layout of every tensor is part of what is compared.
"""

import numpy as np
import pytest
import torch

from mmvl.text_backbone.names import to_released
from mmvl.text_backbone.packed import Packed

CONFIGS = {
    "post-norm, partial rotary": {},
    "pre-norm": {"postnorm": False},
    "shared expert": {"shared_intermediate_size": 12},
    "tied head, whole rotary, power-of-2 heads": {
        "tie_word_embeddings": True, "rotary_dim": 8, "num_attention_heads": 4,
    },
    "one layer, one head, top 1": {
        "num_hidden_layers": 1, "attn_type_list": (0,), "num_attention_heads": 1, "num_key_value_heads": 1,
        "num_experts_per_tok": 1,
    },
    "lightning and softmax swapped": {"attn_type_list": (1, 0, 1)},
}  # fmt: skip


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def norm(x, weight, eps):
    return x / np.sqrt(np.mean(x * x) + eps) * weight


def slopes_of(heads):
    """ALiBi: a geometric sequence for powers of two; otherwise the next sequence's every other slope is appended."""
    power = 1
    while power * 2 <= heads:
        power *= 2
    first = 2.0 ** (-(2.0 ** -(np.log2(power) - 3)))
    slopes = [first * first**i for i in range(power)]
    return slopes if power == heads else slopes + slopes_of(2 * power)[0::2][: heads - power]


def rotate(x, position, rotary_dim, theta):
    out = x.copy()
    for i in range(rotary_dim // 2):
        # the angle is fp32 by definition
        inverse = np.float32(1.0) / np.float32(theta) ** np.float32(2 * i / rotary_dim)
        angle = float(np.float32(position) * inverse)
        a, b = x[i], x[i + rotary_dim // 2]
        out[i] = a * np.cos(angle) - b * np.sin(angle)
        out[i + rotary_dim // 2] = b * np.cos(angle) + a * np.sin(angle)
    return out


class Oracle:
    """Reads one document token by token."""

    def __init__(self, config, weights):
        self.c = config
        self.w = {name: tensor.double().numpy() for name, tensor in weights.items()}
        self.memory = {}

    def lightning(self, l, h):
        c, K = self.c, self.c.head_dim
        names = ("qkv_proj", "output_gate", "norm", "out_proj")
        w = {n: self.w[f"model.layers.{l}.self_attn.{n}.weight"] for n in names}
        qkv = w["qkv_proj"] @ h
        qkv = qkv * sigmoid(qkv)
        states = self.memory.setdefault(l, np.zeros((c.num_attention_heads, K, K)))
        depth = 1 - l / (c.num_hidden_layers - 1) + 1e-5 if c.num_hidden_layers > 1 else 1 + 1e-5
        out = []
        for head, slope in enumerate(slopes_of(c.num_attention_heads)):
            q, k, v = (qkv[(3 * head + part) * K : (3 * head + part + 1) * K] for part in range(3))
            states[head] = np.exp(-slope * depth) * states[head] + np.outer(k, v)
            out.append(q @ states[head])
        return w["out_proj"] @ (sigmoid(w["output_gate"] @ h) * norm(np.concatenate(out), w["norm"], 1e-6))

    def softmax(self, l, h, position):
        c, K = self.c, self.c.head_dim
        w = {n: self.w[f"model.layers.{l}.self_attn.{n}.weight"] for n in ("q_proj", "k_proj", "v_proj", "o_proj")}
        keys, values = self.memory.setdefault(l, ([], []))
        k = (w["k_proj"] @ h).reshape(-1, K)
        keys.append([rotate(x, position, c.rotary_dim, c.rope_theta) for x in k])
        values.append((w["v_proj"] @ h).reshape(-1, K))
        out = []
        for head, q in enumerate((w["q_proj"] @ h).reshape(-1, K)):
            q = rotate(q, position, c.rotary_dim, c.rope_theta)
            group = head // (c.num_attention_heads // c.num_key_value_heads)
            scores = np.array([q @ k[group] for k in keys]) / np.sqrt(K)
            weights = np.exp(scores - scores.max())
            out.append(sum(p * v[group] for p, v in zip(weights / weights.sum(), values, strict=True)))
        return w["o_proj"] @ np.concatenate(out)

    def moe(self, l, m):
        logits = self.w[f"model.layers.{l}.block_sparse_moe.gate.weight"] @ m
        probs = np.exp(logits - logits.max())
        chosen = np.argsort(-probs)[: self.c.num_experts_per_tok]
        out = np.zeros_like(m)
        for e in chosen:
            w1, w2, w3 = (self.w[f"model.layers.{l}.block_sparse_moe.experts.{e}.w{i}.weight"] for i in (1, 2, 3))
            gate = w1 @ m
            out += probs[e] / probs[chosen].sum() * (w2 @ (gate * sigmoid(gate) * (w3 @ m)))
        if self.c.shared_intermediate_size:
            at = f"model.layers.{l}.shared_mlp"
            gate = self.w[f"{at}.gate_proj.weight"] @ m
            shared = self.w[f"{at}.down_proj.weight"] @ (gate * sigmoid(gate) * (self.w[f"{at}.up_proj.weight"] @ m))
            share = sigmoid(self.w[f"model.layers.{l}.coefficient.weight"] @ m)
            out = out * (1 - share) + shared * share
        return out

    def token(self, token, position):
        c = self.c
        x = self.w["model.embed_tokens.weight"][token]
        for l, kind in enumerate(c.attn_type_list):
            at = f"model.layers.{l}"
            h = norm(x, self.w[f"{at}.input_layernorm.weight"], c.rms_norm_eps)
            attended = self.softmax(l, h, position) if kind else self.lightning(l, h)
            alpha = c.layernorm_full_attention_alpha if kind else c.layernorm_linear_attention_alpha
            beta = c.layernorm_full_attention_beta if kind else c.layernorm_linear_attention_beta
            x = (h if c.postnorm else x) * alpha + attended * beta
            m = norm(x, self.w[f"{at}.post_attention_layernorm.weight"], c.rms_norm_eps)
            x = (m if c.postnorm else x) * c.layernorm_mlp_alpha + self.moe(l, m) * c.layernorm_mlp_beta
        x = norm(x, self.w["model.norm.weight"], c.rms_norm_eps)
        head = "model.embed_tokens.weight" if c.tie_word_embeddings else "lm_head.weight"
        return self.w[head] @ x


@pytest.mark.parametrize("overrides", CONFIGS.values(), ids=CONFIGS)
def test_decoder_equals_the_oracle(overrides, make_config, make_decoder, rmse_ratio):
    config = make_config(**overrides)
    lengths = (35, 1, 20)
    ids = torch.randint(0, config.vocab_size, (sum(lengths),), generator=torch.Generator().manual_seed(1))
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-6)):
        decoder = make_decoder(config, dtype)
        expected = []
        for document in ids.split(lengths):
            oracle = Oracle(config, to_released(decoder.state_dict()))
            expected += [oracle.token(token, position) for position, token in enumerate(document.tolist())]
        with torch.no_grad():
            logits = decoder.logits(decoder(decoder.embed(ids), Packed.from_lengths(lengths, "cpu")).hidden_TD)
        assert logits.dtype == dtype
        assert rmse_ratio(logits, torch.from_numpy(np.array(expected))) < tolerance
