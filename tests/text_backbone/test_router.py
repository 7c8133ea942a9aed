"""The router decides in fp32, also in a 16-bit model, and the block reports what it decided."""

import torch

from mmvl.text_backbone.moe import SparseMoe
from mmvl.text_backbone.packed import Packed


def test_close_experts_are_told_apart_in_bf16(make_config):
    """Two experts whose logits are equal once rounded to bf16: fp32 still sees which one is larger."""
    torch.manual_seed(0)
    config = make_config(num_local_experts=2, num_experts_per_tok=1)
    moe = SparseMoe(config)
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        moe.gate.weight[:, 0] = 400.0  # a large part that both share
    moe.bfloat16()
    x = torch.randn(400, config.hidden_size).bfloat16()
    x[:, 0] = 1.0
    _, balance, counts = moe(x)
    logits = x.double() @ moe.gate.weight.detach().double().T
    assert (logits.bfloat16().diff() == 0).float().mean() > 0.1  # the test would notice 16-bit logits
    assert counts.tolist() == logits.argmax(1).bincount(minlength=2).tolist()
    expected = 2 * (counts / 400).double() @ logits.softmax(1).mean(0)
    assert balance.dtype == torch.float32 and abs(balance.item() - expected.item()) < 1e-5


def test_the_decoders_balance_loss_is_the_mean_over_its_layers(make_config, make_decoder):
    decoder = make_decoder(make_config(num_local_experts=4, num_experts_per_tok=4))
    out = decoder(decoder.embed(torch.arange(30)), Packed.from_lengths((30,), "cpu"))
    assert abs(out.balance_loss.item() - 4) < 1e-5  # every expert gets every token: top_k in each of three layers
    assert out.expert_counts_LE.tolist() == [[30] * 4] * 3
    decoder = make_decoder(make_config())
    balances = []
    for layer in decoder.model.layers:
        layer.block_sparse_moe.register_forward_hook(lambda _, inputs, output: balances.append(output[1].item()))
    out = decoder(decoder.embed(torch.arange(30)), Packed.from_lengths((30,), "cpu"))
    assert len(set(balances)) == 3 and abs(out.balance_loss.item() - sum(balances) / 3) < 1e-5


def test_one_expert_is_a_plain_mlp(make_config, rmse_ratio):
    torch.manual_seed(0)
    moe = SparseMoe(make_config(num_local_experts=1, num_experts_per_tok=1))
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(9, 24)
    y, balance, counts = moe(x)
    w1, w3, w2 = (w[0] for w in (moe.experts.w1, moe.experts.w3, moe.experts.w2))
    assert rmse_ratio(y, (torch.nn.functional.silu(x @ w1.T) * (x @ w3.T)) @ w2.T) < 1e-6
    assert counts.tolist() == [9] and abs(balance.item() - 1) < 1e-6
