"""Lightning attention beside flash-linear-attention (fla), vLLM's and OpenNLPLab's kernels, and transformers' layer.

The work is what the layer asks for: from the projection's output, per head [q | k | v], through SiLU, to the attention
output. The peers are handed q, k and v with SiLU already applied, in the layout they like best, at no cost.
Legend: T tokens, S sequences, H heads, K head dim.
"""

from types import SimpleNamespace

import torch
import torch.nn.functional as F

from mmvl.benchmark.case import Case, Contestant, as_tuple
from mmvl.kernels.lightning_attention import lightning_attention, plan_blocks
from mmvl.kernels.lightning_decode import lightning_decode
from mmvl.text_backbone.lightning import alibi_slopes

CHUNK = 64  # the floor's arithmetic is counted for chunks of this many tokens, the usual size
GRADIENTS = {torch.bfloat16: 1e-2, torch.float32: 1e-5}


def lightning_cases() -> list[Case]:
    wide, narrow = {"H": 64, "K": 128}, {"H": 8, "K": 32}
    tiny = [{"T": T, "H": 2, "K": 16} for T in (40, 70)]
    return [
        Case(
            op="lightning forward",
            about="one sequence, from the qkv projection's output",
            axis="T",
            full=[{"T": T, **wide} for T in (1024, 4096, 16384, 65536, 131072)],
            quick=[{"T": T, **wide} for T in (4096, 131072)],
            tiny=tiny,
            inputs=_sequence,
            reference=_forward_reference,
            part=lambda outputs, i: tuple(o[:, i.heads] for o in outputs),
            contestants=[
                Contestant("mmvl", _ours, ours=True),
                Contestant("fla chunk", _fla("chunk_simple_gla"), _no_batch, "fla", gpu=True),
                Contestant("fla fused_chunk", _fla("fused_chunk_simple_gla"), _no_batch, "fla", gpu=True),
                Contestant("lightning_attn", _opennlp, _heads_first, "lightning_attn", gpu=True),
                Contestant("vLLM", _vllm_prefill, _heads_first, "vllm", gpu=True),
            ],
            bytes=lambda i: 4 * i.q.nbytes,
            flops=lambda i: _flops(i),
            goals={4096: 0.10, 131072: 3.0},
        ),
        Case(
            op="lightning training",
            about="one sequence, forward and backward",
            axis="T",
            full=[{"T": T, **wide} for T in (4096, 16384, 65536)],
            quick=[{"T": 65536, **wide}],
            tiny=tiny,
            **_training(),
            goals={65536: 6.0},
        ),
        Case(
            op="lightning documents",
            about="S documents, forward and backward",
            axis="T",
            full=[{"T": 65536, "S": 300, **narrow}],
            quick=[{"T": 65536, "S": 300, **narrow}],
            tiny=[{"T": 70, "S": 5, "H": 2, "K": 16}],
            **_training(),
        ),
        Case(
            op="lightning decode",
            about="a token of each of S sequences, in place",
            axis="S",
            full=[{"S": S, **wide} for S in (1, 8, 64, 256)],
            quick=[{"S": S, **wide} for S in (1, 64)],
            tiny=[{"S": 3, "H": 2, "K": 16}],
            inputs=_states,
            reference=_decode_reference,
            contestants=[
                Contestant("mmvl", _our_decode, ours=True),
                Contestant(
                    "fla fused_recurrent", _fla_decode, lambda out, i: (out[0].flatten(0, 1), out[1]), "fla", gpu=True,
                    note="writes new states beside the old ones",
                ),
                Contestant("vLLM", _vllm_decode, package="vllm", gpu=True),
            ],
            bytes=lambda i: 2 * i.state.nbytes + 4 * i.q.nbytes,
            flops=lambda i: 5 * i.state.numel(),
            goals={1: 0.005, 8: 0.019, 64: 0.140, 256: 0.560},
        ),
    ]  # fmt: skip


def _training() -> dict:
    return dict(
        inputs=_sequence,
        reference=_training_reference,
        part=lambda outputs, i: tuple(o[:, i.heads] for o in outputs),
        contestants=[
            Contestant("mmvl", _our_training, ours=True),
            Contestant("fla chunk", _fla_training("chunk_simple_gla"), _silu_gradient, "fla", gpu=True),
            Contestant("fla fused_chunk", _fla_training("fused_chunk_simple_gla"), _silu_gradient, "fla", gpu=True),
            Contestant("lightning_attn", _opennlp_training, _silu_gradient, "lightning_attn", gpu=True),
        ],
        bytes=lambda i: 11 * i.q.nbytes,  # q, k, v, o, then q, k, v, do and dq, dk, dv
        flops=lambda i: 3 * _flops(i),  # two products of gradients for one of the forward pass
        tolerance=GRADIENTS,
    )


def _sequence(shape, device, dtype, seed):
    T, S, H, K = shape["T"], shape.get("S", 1), shape["H"], shape["K"]
    generator = torch.Generator(device).manual_seed(seed)
    lengths = [T // S] * S
    for s in range(0, S - 1, 2):  # ragged: pairs of a short and a long one
        lengths[s] -= (s * 7919) % lengths[s]
        lengths[s + 1] += T // S - lengths[s]
    lengths[-1] += T - sum(lengths)
    qkv = torch.randn(T, H, 3 * K, generator=generator, device=device, dtype=dtype)
    return _with_activated(
        SimpleNamespace(
            qkv=qkv,
            grad=torch.randn(T, H, K, generator=generator, device=device, dtype=dtype),
            lengths=tuple(lengths),
            plan=plan_blocks(lengths, device),
            slopes=torch.tensor(alibi_slopes(H), dtype=torch.float32, device=device),
            heads=sorted({0, H // 3, 2 * H // 3, H - 1}),  # compared with the reference: fast and slow decays
        ),
        K,
    )


def _states(shape, device, dtype, seed):
    S, H, K = shape["S"], shape["H"], shape["K"]
    generator = torch.Generator(device).manual_seed(seed)
    qkv = torch.randn(S, H, 3 * K, generator=generator, device=device, dtype=dtype)
    return _with_activated(
        SimpleNamespace(
            qkv=qkv,
            state=torch.randn(S, H, K, K, generator=generator, device=device),
            slots=torch.arange(S, device=device),
            plan=plan_blocks([1] * S, device),
            slopes=torch.tensor(alibi_slopes(H), dtype=torch.float32, device=device),
        ),
        K,
    )


def _with_activated(inputs, K):
    inputs.q, inputs.k, inputs.v = (x.contiguous() for x in F.silu(inputs.qkv).split(K, dim=-1))
    return inputs


def _flops(i) -> float:
    T, H, K = i.q.shape
    return T * H * (2 * CHUNK * K + 4 * K * K)


# Ours and the reference


def _ours(i):
    def run():
        with torch.no_grad():
            return lightning_attention(i.qkv, i.slopes, plan=i.plan, want_state=False)[0]

    return run


def _our_training(i):
    qkv = i.qkv.detach().requires_grad_()

    def run():
        o, _ = lightning_attention(qkv, i.slopes, plan=i.plan, want_state=False)
        return o.detach(), *torch.autograd.grad(o, qkv, i.grad)

    return run


def _our_decode(i):
    def run():
        with torch.no_grad():
            return lightning_decode(i.qkv, i.state, i.slots, i.slopes), i.state

    return run


def _in_fp64(i, qkv):
    return lightning_attention(qkv, i.slopes[i.heads].double(), lengths=i.lengths, want_state=False)[0]


def _forward_reference(i):
    with torch.no_grad():
        return (_in_fp64(i, i.qkv[:, i.heads].double()),)


def _training_reference(i):
    qkv = i.qkv[:, i.heads].double().requires_grad_()
    o = _in_fp64(i, qkv)
    return o.detach(), *torch.autograd.grad(o, qkv, i.grad[:, i.heads].double())


def _decode_reference(i):
    q, k, v = F.silu(i.qkv.double()).split(i.q.shape[-1], dim=-1)
    decay = torch.exp(-i.slopes.double())[:, None, None]
    state = decay * i.state.double() + k[..., :, None] * v[..., None, :]
    return torch.einsum("shk,shkv->shv", q, state), state


# Peers


def _no_batch(output, i):
    return (as_tuple(output)[0].flatten(0, 1),)


def _heads_first(output, i):
    return (as_tuple(output)[0][0].transpose(0, 1),)


def _silu_gradient(output, i):
    """(o, dq, dk, dv) of the activated inputs -> (o, gradient of the projection's output)."""
    o, *grads = (x.reshape(i.q.shape) for x in output)
    sigmoid = torch.sigmoid(i.qkv.float())
    slope = sigmoid * (1 + i.qkv.float() * (1 - sigmoid))
    return o, torch.cat(grads, dim=-1) * slope


def _fla_arguments(i, name):
    more = {}
    if len(i.lengths) > 1:
        more["cu_seqlens"] = torch.tensor([0, *torch.tensor(i.lengths).cumsum(0).tolist()], device=i.q.device)
        if name == "chunk_simple_gla":  # saves it a copy to the host
            more["cu_seqlens_cpu"] = more["cu_seqlens"].cpu()
    return {"g_gamma": -i.slopes, "scale": 1.0, **more}


def _fla(name):
    def prepare(i):
        import fla.ops.simple_gla

        attention, arguments = getattr(fla.ops.simple_gla, name), _fla_arguments(i, name)
        q, k, v = i.q[None], i.k[None], i.v[None]

        def run():
            with torch.no_grad():
                return attention(q, k, v, **arguments)[0]

        return run

    return prepare


def _fla_training(name):
    def prepare(i):
        import fla.ops.simple_gla

        attention, arguments = getattr(fla.ops.simple_gla, name), _fla_arguments(i, name)
        leaves = [x[None].detach().requires_grad_() for x in (i.q, i.k, i.v)]
        grad = i.grad[None]

        def run():
            o, _ = attention(*leaves, **arguments)
            return o.detach(), *torch.autograd.grad(o, leaves, grad)

        return run

    return prepare


def _fla_decode(i):
    from fla.ops.simple_gla import fused_recurrent_simple_gla

    q, k, v = (x[:, None] for x in (i.q, i.k, i.v))
    more = {"g_gamma": -i.slopes, "scale": 1.0, "output_final_state": True}

    def run():
        with torch.no_grad():
            return fused_recurrent_simple_gla(q, k, v, initial_state=i.state, **more)

    return run


def _opennlp(i):
    from lightning_attn.ops import lightning_attn_func

    q, k, v = (x.transpose(0, 1)[None].contiguous() for x in (i.q, i.k, i.v))
    slopes = i.slopes[:, None, None].contiguous()
    return lambda: lightning_attn_func(q, k, v, slopes)


def _opennlp_training(i):
    from lightning_attn.ops import lightning_attn_func

    leaves = [x.transpose(0, 1)[None].contiguous().requires_grad_() for x in (i.q, i.k, i.v)]
    slopes, grad = i.slopes[:, None, None].contiguous(), i.grad.transpose(0, 1)[None].contiguous()
    if len(i.lengths) > 1:
        raise NotImplementedError("takes no packed documents")

    def run():
        o = lightning_attn_func(*leaves, slopes)
        grads = torch.autograd.grad(o, leaves, grad)
        return [x[0].transpose(0, 1) for x in (o.detach(), *grads)]

    return run


def _vllm_prefill(i):
    from vllm.model_executor.layers.lightning_attn import lightning_attention as attention

    q, k, v = (x.transpose(0, 1)[None].contiguous() for x in (i.q, i.k, i.v))
    T, H, K = i.q.shape
    state = torch.zeros(1, H, K, K, device=q.device)
    return lambda: attention(q, k, v, i.slopes, block_size=256, kv_history=state)


def _vllm_decode(i):
    from vllm.model_executor.layers.lightning_attn import linear_decode_forward_triton

    q, k, v = (x[:, :, None].contiguous() for x in (i.q, i.k, i.v))

    def run():
        o = linear_decode_forward_triton(q, k, v, i.state, i.slopes, i.slots, 32)
        return o.view(i.q.shape), i.state

    return run
