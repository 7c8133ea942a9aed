"""Gradients of a whole tiny decoder equal finite differences in fp64, and every weight gets one."""

import pytest
import torch
from torch.func import functional_call

from mmvl.text_backbone.packed import Packed


def test_gradients_equal_finite_differences(make_config, make_decoder):
    config = make_config(
        hidden_size=6, num_attention_heads=3, num_key_value_heads=1, head_dim=4, vocab_size=7, intermediate_size=4,
        num_local_experts=3, shared_intermediate_size=3,
    )  # fmt: skip
    decoder = make_decoder(config, torch.float64)
    names, parameters = zip(*decoder.named_parameters(), strict=True)
    ids = torch.tensor([1, 2, 3, 4, 5, 6, 0, 3, 3, 1])
    packed = Packed.from_lengths((6, 1, 3), "cpu")

    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder = decoder

        def forward(self):
            out = self.decoder(self.decoder.embed(ids), packed)
            logits = self.decoder.logits(out.hidden_TD)
            return torch.nn.functional.cross_entropy(logits, ids.roll(-1)) + 0.1 * out.balance_loss

    model = Loss()

    def loss(*values):
        return functional_call(model, {f"decoder.{n}": v for n, v in zip(names, values, strict=True)})

    # fast mode compares one random direction of all parameters at once, so draw several
    for seed in range(3):
        torch.manual_seed(seed)
        assert torch.autograd.gradcheck(loss, parameters, fast_mode=True, atol=1e-6, rtol=1e-4)


def test_every_weight_gets_a_gradient_even_of_an_idle_expert(make_config, make_decoder):
    decoder = make_decoder(make_config(num_experts_per_tok=1))
    out = decoder(decoder.embed(torch.tensor([5])), Packed.from_lengths((1,), "cpu"))
    assert (out.expert_counts_LE.sum(1) == 1).all() and out.expert_counts_LE.shape == (3, 5)
    decoder.logits(out.hidden_TD)[0, 3].backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_training_lowers_the_loss_in_bf16(make_config, make_decoder):
    decoder = make_decoder(make_config(), torch.bfloat16)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=3e-3)
    ids = torch.arange(60) % 13
    packed = Packed.from_lengths((40, 20), "cpu")
    losses = []
    for _ in range(30):
        out = decoder(decoder.embed(ids), packed)
        loss = torch.nn.functional.cross_entropy(decoder.logits(out.hidden_TD), (ids + 1) % 13)
        (loss + 0.01 * out.balance_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] > 3 and losses[-1] < 1


def gradients_of(decoder, x_TD, weight_TD, lengths):
    """Gradients of sum(hidden * weight) to the weights and the embeddings of a packed row."""
    decoder.zero_grad()
    x_TD = x_TD.clone().requires_grad_()
    (decoder(x_TD, Packed.from_lengths(lengths, "cpu")).hidden_TD * weight_TD).sum().backward()
    return {name: p.grad.clone() for name, p in decoder.model.layers.named_parameters()} | {"x": x_TD.grad}


@pytest.mark.parametrize("recomputed", [(), (0, 1, 2)])
def test_a_packed_row_gives_the_sum_of_its_documents_gradients(make_config, make_decoder, recomputed):
    """Whether or not layers compute their activations again in the backward pass."""
    decoder, lengths = make_decoder(make_config(), torch.float64), (7, 1, 70, 3)
    generator = torch.Generator().manual_seed(0)
    x_TD, weight_TD = torch.randn(2, sum(lengths), 24, generator=generator, dtype=torch.float64)
    alone = [
        gradients_of(decoder, x, w, (len(x),))
        for x, w in zip(x_TD.split(lengths), weight_TD.split(lengths), strict=True)
    ]
    decoder.recomputed = frozenset(recomputed)
    together = gradients_of(decoder, x_TD, weight_TD, lengths)
    torch.testing.assert_close(together.pop("x"), torch.cat([g.pop("x") for g in alone]), rtol=1e-9, atol=1e-12)
    assert all(together[name].abs().max() > 0 for name in together)
    expected = {name: sum(g[name] for g in alone) for name in together}
    torch.testing.assert_close(together, expected, rtol=1e-9, atol=1e-10)
