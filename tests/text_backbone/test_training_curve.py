"""200 steps of training a small decoder by the Triton kernels give the loss curve that the references give.

The metric: both curves are averaged over windows of 10 steps; the largest difference of two windows, relative to the
reference's, is the distance of the curves. Weights, batches and optimizer are the same; only the kernels differ.
"""

import os

import pytest
import torch
import torch.nn.functional as F

from mmvl.text_backbone.decoder import Decoder
from mmvl.text_backbone.packed import Packed

STEPS, WINDOW, VOCAB, TOKENS = 200, 10, 64, 4096
# fp32 differs by the order of sums, bf16 by rounding as well; training lets both grow. What rounding alone does (the
# reference in bf16 against the reference in fp32) is measured beside it.
ALLOWED = {torch.float32: 0.02, torch.bfloat16: 0.03}


def make_batch(step: int) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Documents of phrases out of a book of 32, with a few errors: what is next depends on what was before."""
    generator = torch.Generator().manual_seed(10)
    draw = lambda low, high, size=(): torch.randint(low, high, size, generator=generator)  # noqa: E731
    book = [draw(0, VOCAB, (int(draw(3, 9)),)) for _ in range(32)]
    generator.manual_seed(step)
    lengths, ids = [], []
    while sum(lengths) < TOKENS:
        length = min(int(draw(1, 400)), TOKENS - sum(lengths))
        text = torch.cat([book[i] for i in draw(0, len(book), (length // 3 + 1,)).tolist()])[:length]
        wrong = torch.rand(length, generator=generator) < 0.02
        ids.append(torch.where(wrong, draw(0, VOCAB, (length,)), text))
        lengths.append(length)
    return torch.cat(ids), tuple(lengths)


def train(config, dtype: torch.dtype, device: str, steps: int = STEPS) -> torch.Tensor:
    """The loss of every step (steps,). Weights are `dtype`; the optimizer holds fp32 copies of them."""
    decoder = Decoder(config)
    decoder.init_weights(seed=0)
    decoder.to(device)
    masters = [p.detach().float().clone() for p in decoder.parameters()]
    decoder.to(dtype)
    weights = list(decoder.parameters())
    optimizer = torch.optim.AdamW(masters, lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1)
    losses = []
    for step in range(steps):
        ids, lengths = make_batch(step)
        packed = Packed.from_lengths(lengths, device)
        starts = packed.cu_seqlens_S1[:-1].long()
        targets = ids.roll(-1).to(device)
        targets[starts - 1] = -100  # the last token of a document does not predict the first of the next
        out = decoder(decoder.embed(ids.to(device)), packed)
        loss = F.cross_entropy(decoder.logits(out.hidden_TD), targets)
        grads = torch.autograd.grad(loss + 0.01 * out.balance_loss, weights)
        for master, grad in zip(masters, grads, strict=True):
            master.grad = grad.float()
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(weights, masters)
        losses.append(loss.detach())
    return torch.stack(losses).cpu()


def distance(curve: torch.Tensor, reference: torch.Tensor) -> float:
    a, b = (x.view(-1, WINDOW).mean(1) for x in (curve, reference))
    return ((a - b).abs() / b).max().item()


@pytest.fixture(scope="module")
def config(make_config):
    """The heads, experts and width of mmvl-tiny, three layers deep."""
    return make_config(
        hidden_size=256, num_attention_heads=8, num_key_value_heads=2, head_dim=32, rotary_dim=16, vocab_size=VOCAB,
        intermediate_size=160, num_local_experts=8, attn_type_list=(0, 0, 1), tie_word_embeddings=True,
        layernorm_full_attention_alpha=1.57, layernorm_full_attention_beta=1.0, layernorm_linear_attention_alpha=1.57,
        layernorm_linear_attention_beta=1.0, layernorm_mlp_alpha=1.57, layernorm_mlp_beta=1.0,
    )  # fmt: skip


@pytest.mark.skipif(not torch.cuda.is_available(), reason="200 steps need a GPU: Triton's interpreter takes hours")
@pytest.mark.parametrize("dtype", ALLOWED, ids=["fp32", "bf16"])
def test_the_curves_of_kernels_and_references_overlap(config, dtype, monkeypatch, capsys):
    curve = train(config, dtype, "cuda")
    monkeypatch.setenv("MMVL_KERNELS", "reference")
    reference = train(config, dtype, "cuda")
    rounding = distance(reference, train(config, torch.float32, "cuda")) if dtype != torch.float32 else 0.0
    apart = distance(curve, reference)
    with capsys.disabled():
        print(
            f"\n{dtype}: loss {reference[:WINDOW].mean():.3f} -> {reference[-WINDOW:].mean():.3f} by the references, "
            f"{curve[-WINDOW:].mean():.3f} by the kernels; distance of the curves {apart:.2e}, rounding {rounding:.2e}"
        )
    if folder := os.environ.get("MMVL_CURVES"):  # to draw them
        torch.save({"kernels": curve, "reference": reference}, f"{folder}/curves-{str(dtype)[6:]}.pt")
    assert reference[-WINDOW:].mean() < 0.5 * reference[:WINDOW].mean(), "it learned nothing: the test shows nothing"
    assert apart < ALLOWED[dtype]


def test_the_metric_and_the_data(config):
    curve = torch.linspace(4, 1, STEPS)
    assert distance(curve, curve) == 0
    assert distance(1.05 * curve, curve) == pytest.approx(0.05, rel=1e-4)
    late = curve.clone()
    late[-WINDOW:] *= 1.1  # a difference at the end alone is seen
    assert distance(late, curve) == pytest.approx(0.1, rel=1e-4)
    ids, lengths = make_batch(3)
    assert sum(lengths) == len(ids) == TOKENS and ids.max() < VOCAB
    assert torch.equal(ids, make_batch(3)[0]) and not torch.equal(ids, make_batch(4)[0])
    first, second = (train(config, torch.float32, "cpu", steps=1) for _ in range(2))
    assert torch.equal(first, second)
