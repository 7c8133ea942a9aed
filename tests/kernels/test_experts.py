"""Router and experts against a loop over tokens in fp64."""

import math

import pytest
import torch

from mmvl.kernels import experts as module
from mmvl.kernels.experts import balance_loss, expert_counts, experts, route, router

T, D, I, E, TOP = 23, 16, 24, 5, 2


def draw(dtype, device="cpu"):
    torch.manual_seed(0)
    x = torch.randn(T, D)
    w1, w3, w2 = torch.randn(E, I, D) * 0.3, torch.randn(E, I, D) * 0.3, torch.randn(E, D, I) * 0.3
    logits = torch.randn(T, E)
    logits[:, 3] = -100.0  # expert 3 gets no token
    return *(a.to(device=device, dtype=dtype) for a in (x, w1, w3, w2)), logits.to(device)


def by_loops(x, w1, w3, w2, logits):
    x, w1, w3, w2, logits = (a.double().cpu() for a in (x, w1, w3, w2, logits))
    out = torch.zeros_like(x)
    for t in range(len(x)):
        probs = [math.exp(a) for a in logits[t].tolist()]
        chosen = sorted(range(E), key=lambda e: -probs[e])[:TOP]
        for e in chosen:
            gate, up = w1[e] @ x[t], w3[e] @ x[t]
            out[t] += probs[e] / sum(probs[c] for c in chosen) * (w2[e] @ (gate / (1 + (-gate).exp()) * up))
    return out


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 6e-3)], ids=["fp32", "bf16"])
def test_equals_a_loop_over_tokens(dtype, tolerance, device, rmse_ratio):
    x, w1, w3, w2, logits = draw(dtype, device)
    weights, indices, _ = route(logits, TOP)
    out = experts(x, w1, w3, w2, weights, indices)
    assert out.dtype == dtype
    # bf16: h = silu(w1 x) * (w3 x) is rounded before the last product, three roundings in all
    assert rmse_ratio(out, by_loops(x, w1, w3, w2, logits)) < tolerance


def test_the_grouped_product_equals_the_loop(monkeypatch, device, rmse_ratio):
    """What CUDA runs in bf16, forward and backward, with an expert that has no token."""
    results = []
    for grouped in (False, True):
        monkeypatch.setattr(module, "_has_grouped_mm", lambda *_, grouped=grouped: grouped)
        x, w1, w3, w2, logits = draw(torch.bfloat16, device)
        leaves = [a.requires_grad_() for a in (x, w1, w3, w2)]
        weights, indices, _ = route(logits, TOP)
        out = experts(*leaves, weights, indices)
        out.float().square().sum().backward()
        results.append([out, *(a.grad for a in leaves)])
        assert all(a.grad[3].count_nonzero() == 0 for a in leaves[1:])
    for looped, grouped in zip(*results, strict=True):
        assert rmse_ratio(grouped, looped) < 6e-3


def test_gradients_equal_finite_differences():
    x, w1, w3, w2, logits = draw(torch.float64)
    x, w1, w3, w2 = x[:5, :4], w1[:, :3, :4], w3[:, :3, :4], w2[:, :4, :3]
    leaves = [a.clone().requires_grad_() for a in (x, w1, w3, w2, logits[:5].double())]

    def run(x, w1, w3, w2, logits):
        weights, indices, _ = route(logits, TOP)
        return experts(x, w1, w3, w2, weights, indices)

    assert torch.autograd.gradcheck(run, leaves)


def test_an_expert_without_a_token_has_a_zero_gradient():
    x, w1, w3, w2, logits = draw(torch.float32)
    leaves = [a.requires_grad_() for a in (w1, w3, w2)]
    weights, indices, _ = route(logits, TOP)
    experts(x, *leaves, weights, indices).sum().backward()
    for a in leaves:
        assert a.grad[3].count_nonzero() == 0
        assert all(a.grad[e].count_nonzero() > 0 for e in (0, 1, 2, 4))


def test_one_token(device, rmse_ratio):
    x, w1, w3, w2, logits = (a[:1] if a.shape[0] == T else a for a in draw(torch.float32, device))
    weights, indices, _ = route(logits, TOP)
    assert rmse_ratio(experts(x, w1, w3, w2, weights, indices), by_loops(x, w1, w3, w2, logits)) < 1e-6


def test_router_weights_are_renormalised_in_fp32():
    weights, indices, probs = route(torch.tensor([[0.0, 1.0, 2.0, -1.0]], dtype=torch.bfloat16), 2)
    assert weights.dtype == probs.dtype == torch.float32
    assert indices.tolist() == [[2, 1]]
    share = 1 / (1 + math.exp(-1))
    assert weights[0].tolist() == pytest.approx([share, 1 - share], rel=1e-6)


@pytest.mark.parametrize("top_k", [0, 6])
def test_more_choices_than_experts_are_refused(top_k):
    with pytest.raises(ValueError, match=f"over 5 experts cannot choose {top_k} of them"):
        router(torch.randn(3, D), torch.randn(E, D), top_k)


def test_no_token_is_balanced():
    x, gate = torch.empty(0, D), torch.randn(E, D, requires_grad=True)
    routing = router(x, gate, TOP)
    assert routing.balance.item() == 0 and routing.weights_Tk.shape == (0, TOP)
    assert routing.counts_E.tolist() == [0] * E
    (routing.balance + routing.weights_Tk.sum()).backward()
    assert not gate.grad.any()


def test_balance_loss_is_top_k_when_balanced_and_more_when_not():
    indices = torch.tensor([[0, 1], [2, 3], [0, 1], [2, 3]])
    assert expert_counts(indices, 5).tolist() == [2, 2, 2, 2, 0]
    even = balance_loss(torch.full((4, 4), 0.25), expert_counts(indices, 4))
    assert even.item() == pytest.approx(2.0)
    # all tokens on experts 0 and 1 with certainty: 4 * (1 * 0.5 + 1 * 0.5)
    skewed = torch.tensor([[0.5, 0.5, 0.0, 0.0]]).repeat(4, 1)
    assert balance_loss(skewed, torch.tensor([4, 4, 0, 0])).item() == pytest.approx(4.0)
