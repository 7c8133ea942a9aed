"""Experts spread over processes: tokens travel to the experts and back by all-to-all, with gradients.

A group of `experts * tensor` consecutive ranks holds every expert of a layer once: rank r of the group has the experts
of part r // tensor and, of each, slice r % tensor of its width I. A SwiGLU expert is the sum of its slices, so a token
goes to every slice of its expert, and what comes back is added up. Nothing is dropped unless a capacity is set.

The exchange is in two halves, `start` and `finish`, so that one group of tokens travels while another is computed; the
backward pass does the same the other way round.

Legend: T tokens, k experts a token, P = T * k pairs, N pairs sent, R pairs received, E experts, I expert width,
D model width, L layers, G groups of tokens.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from mmvl.kernels.experts import Routing, expert_counts, experts


@dataclass(frozen=True)
class Placement:
    """Where a parameter lies in the whole one: `offset` is its first element, one number a dim of the whole `shape`.

    `replicas` ranks hold the same part; this is number `replica` of them.
    """

    shape: tuple[int, ...]
    offset: tuple[int, ...]
    replica: int = 0
    replicas: int = 1


@dataclass(frozen=True)
class ExpertLayout:
    """How the experts lie over the ranks, and how tokens get there. The same on all ranks but for groups and `rank`.

    `world`, `rank`: all ranks of torch.distributed, and this one. `group`: the consecutive ranks that hold all experts
    once, `experts * tensor` of them; None if that is one rank. `token_groups`: groups of tokens, each of which travels
    while the one before it is computed. `capacity`: pairs that an expert takes in one pass over all ranks, relative to
    an even share (None: all); those of later ranks and later tokens are dropped. The balance loss is over the tokens of
    the `balance_ranks` ranks of `balance_group` (None: of torch.distributed's own) together.
    """

    world: int = 1
    rank: int = 0
    group: dist.ProcessGroup | None = None
    experts: int = 1
    tensor: int = 1
    token_groups: int = 1
    capacity: float | None = None
    balance_group: dist.ProcessGroup | None = None
    balance_ranks: int = 1

    @property
    def size(self) -> int:
        """Ranks of the group."""
        return self.experts * self.tensor

    @property
    def member(self) -> int:
        """This rank's number in the group."""
        return self.rank % self.size


def place_experts(stacked: nn.Module, layout: ExpertLayout) -> None:
    """Cut w1, w3 (E, I, D) and w2 (E, D, I) down to this rank's part, and note their `placement` on them.

    Raises ValueError if the experts, or their width, do not divide by the ranks.
    """
    E, I, _ = stacked.w1.shape
    if E % layout.experts or I % layout.tensor:
        raise ValueError(
            f"{E} experts of width {I} cannot be spread over {layout.experts} expert-parallel ranks with "
            f"{layout.tensor} ranks an expert; both must divide"
        )
    part, piece = divmod(layout.member, layout.tensor)
    mine, wide = E // layout.experts, I // layout.tensor
    for name, dim in (("w1", 1), ("w3", 1), ("w2", 2)):
        whole = getattr(stacked, name)
        held = whole.detach().narrow(0, part * mine, mine).narrow(dim, piece * wide, wide)
        offset = [part * mine, 0, 0]
        offset[dim] = piece * wide
        parameter = nn.Parameter(held.clone(memory_format=torch.contiguous_format), requires_grad=whole.requires_grad)
        parameter.placement = Placement(
            tuple(whole.shape), tuple(offset), layout.rank // layout.size, layout.world // layout.size
        )
        setattr(stacked, name, parameter)


def placements(model: nn.Module) -> dict[str, Placement]:
    """By name, those parameters of which this rank holds only a part."""
    return {name: p.placement for name, p in model.named_parameters() if hasattr(p, "placement")}


def spread_experts(x_TD: torch.Tensor, routing: Routing, stacked: nn.Module, layout: ExpertLayout) -> torch.Tensor:
    """What `kernels.experts.experts` gives for all experts, (T, D), by the ranks of the group; all must call it."""
    if layout.size == 1 and layout.capacity is None:
        return experts(
            x_TD, stacked.w1, stacked.w3, stacked.w2, routing.weights_Tk, routing.indices_Tk, routing.counts_E,
            order_P=routing.order_P, offsets_E1=routing.offsets_E1,
        )  # fmt: skip
    (T, k), E = routing.indices_Tk.shape, routing.counts_E.shape[0]
    expert_Tk = routing.indices_Tk
    if layout.capacity is not None:
        expert_Tk = drop_over_capacity(expert_Tk, routing.counts_E, layout)
    groups = max(layout.token_groups, 1)
    cuts = [T * g // groups for g in range(groups + 1)]
    chosen = [expert_Tk[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
    counts_GE = torch.stack([expert_counts(c, E) for c in chosen])
    counts_rGE = counts_GE[None]
    if layout.size > 1:
        gathered = [torch.empty_like(counts_GE) for _ in range(layout.size)]
        dist.all_gather(gathered, counts_GE, group=layout.group)
        counts_rGE = torch.stack(gathered)
    trips = [
        _Trip(counts_rGE[:, g], numbers, layout, k)
        for g, numbers in enumerate(counts_rGE.transpose(0, 1).tolist())  # the one wait for the device
    ]
    x_parts = [x_TD[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
    run = _runner(stacked)
    trips[0].leave(x_parts[0], chosen[0])
    for g, trip in enumerate(trips):
        if g + 1 < groups:
            trips[g + 1].leave(x_parts[g + 1], chosen[g + 1])
        trip.work(run)
    shares = [routing.weights_Tk[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
    parts = [trip.come_back(share_Tk, x_TD.dtype) for trip, share_Tk in zip(trips, shares, strict=True)]
    return parts[0] if groups == 1 else torch.cat(parts)


def _runner(stacked: nn.Module):
    """`experts` with the weights of `stacked`; without gradients its own `run`, whose weights may be quantised."""
    if not torch.is_grad_enabled():
        return stacked.run
    weights = _Together.apply(stacked.w1, stacked.w3, stacked.w2)
    return lambda x_RD, *routing: experts(x_RD, *weights, *routing)


def drop_over_capacity(indices_Tk: torch.Tensor, counts_E: torch.Tensor, layout: ExpertLayout) -> torch.Tensor:
    """`indices_Tk` with E in the place of pairs beyond an expert's capacity, counted through all ranks in order."""
    E = counts_E.shape[0]
    counts_WE = counts_E[None]
    if layout.world > 1:
        gathered = [torch.empty_like(counts_E) for _ in range(layout.world)]
        dist.all_gather(gathered, counts_E.contiguous())
        counts_WE = torch.stack(gathered)
    before_E = counts_WE[: layout.rank].sum(0)
    room = (counts_WE.sum().double() * (layout.capacity / E)).ceil().long()
    flat_P = indices_Tk.reshape(-1)
    order_P = flat_P.argsort(stable=True)
    at_P = torch.arange(flat_P.shape[0], device=flat_P.device)
    place_P = torch.empty_like(flat_P)
    place_P[order_P] = at_P - (counts_E.cumsum(0) - counts_E)[flat_P[order_P]]
    return torch.where(place_P + before_E[flat_P] < room, flat_P, E).view_as(indices_Tk)


class _Trip:
    """One group of tokens on its way: `leave` for the experts' ranks, `work` there, `come_back` to be summed."""

    def __init__(self, counts_rE: torch.Tensor, numbers: list[list[int]], layout: ExpertLayout, k: int):
        self.k, self.tensor = k, layout.tensor
        mine = len(numbers[0]) // layout.experts
        first = layout.member // layout.tensor * mine
        sent = numbers[layout.member]
        self.to_part = [sum(sent[e : e + mine]) for e in range(0, len(sent), mine)]
        send = [n for n in self.to_part for _ in range(layout.tensor)]
        receive = [sum(of_rank[first : first + mine]) for of_rank in numbers]
        self.received = sum(receive)
        self.counts_rE = counts_rE[:, first : first + mine]  # of the experts here
        self.there = Exchange(layout.group, send, receive)
        self.back = Exchange(layout.group, receive, send)

    def leave(self, x_TD, expert_Tk):
        # dropped pairs have the highest number, so they sort last
        self.pairs = expert_Tk.numel()
        self.order_N = expert_Tk.reshape(-1).argsort(stable=True)[: sum(self.to_part)]
        x_ND = _TakePairs.apply(x_TD, self.order_N, self.k)
        if self.tensor > 1:
            x_ND = torch.cat([x for x in x_ND.split(self.to_part) for _ in range(self.tensor)])
        self.x_RD = self.there.start(x_ND)

    def work(self, run):
        x_RD = self.there.finish(self.x_RD)
        ranks, mine = self.counts_rE.shape
        local = torch.arange(mine, device=x_RD.device).repeat(ranks)
        expert_R1 = local.repeat_interleave(self.counts_rE.reshape(-1), output_size=self.received)[:, None]
        ones_R1 = torch.ones(expert_R1.shape, dtype=torch.promote_types(x_RD.dtype, torch.float32), device=x_RD.device)
        y_RD = run(x_RD, ones_R1, expert_R1, self.counts_rE.sum(0))
        self.x_RD, self.y_ND = None, self.back.start(y_RD)

    def come_back(self, weights_Tk, dtype):
        y_ND = self.back.finish(self.y_ND)
        if self.tensor > 1:
            slices = y_ND.to(weights_Tk.dtype).split([n for n in self.to_part for _ in range(self.tensor)])
            parts = [sum(slices[i : i + self.tensor]) for i in range(0, len(slices), self.tensor)]
            y_ND = torch.cat(parts)
        y_PD = y_ND.new_zeros(self.pairs, y_ND.shape[1]).index_copy(0, self.order_N, y_ND)
        y_TkD = y_PD.view(*weights_Tk.shape, y_PD.shape[1])
        return (y_TkD * weights_Tk[..., None]).sum(1).to(dtype)


class Exchange:
    """One all-to-all of rows, `send` and `receive` rows by rank of the group; None as the group keeps all here."""

    def __init__(self, group: dist.ProcessGroup | None, send: list[int], receive: list[int]):
        self.group, self.send, self.receive = group, send, receive
        self._pending = None  # the handle, and the rows that it still reads
        self.returned: list[torch.Tensor] = []  # the gradient on its way back, from the finish to the start

    def start(self, x_ND: torch.Tensor) -> torch.Tensor:
        """Rows on their way; to be read only after `finish`."""
        return _Start.apply(x_ND, self)

    def finish(self, x_RD: torch.Tensor) -> torch.Tensor:
        """The rows that `start` gave, arrived."""
        return _Finish.apply(x_RD, self)

    def launch(self, x, send, receive):
        if self.group is None:
            return x
        x = x.contiguous()
        out = x.new_empty(sum(receive), *x.shape[1:])
        self._pending = dist.all_to_all_single(out, x, receive, send, group=self.group, async_op=True), x
        return out

    def wait(self):
        if self._pending is not None:
            self._pending[0].wait()
            self._pending = None


class _Start(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, exchange):
        ctx.exchange = exchange
        out = exchange.launch(x, exchange.send, exchange.receive)
        return out.view_as(out)

    @staticmethod
    def backward(ctx, grad):
        ctx.exchange.wait()
        return ctx.exchange.returned.pop(), None


class _Finish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, exchange):
        ctx.exchange = exchange
        exchange.wait()
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        exchange = ctx.exchange
        # autograd wants a gradient as long as what came; the one as long as what went is handed over on the side
        exchange.returned.append(exchange.launch(grad, exchange.receive, exchange.send))
        return grad, None


class _Together(torch.autograd.Function):
    """The same tensors, whose gradients come all at once, in one order whether or not the rank got any tokens.

    DeepSpeed's ZeRO 2 sums gradients of several ranks in the order in which each rank makes them.
    """

    @staticmethod
    def forward(ctx, *tensors):
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    def backward(ctx, *grads):
        return grads


class _TakePairs(torch.autograd.Function):
    """Row p // k of x for every pair p; the gradient of a token is the sum over its pairs, in their order."""

    @staticmethod
    def forward(ctx, x_TD, order_N, k):
        ctx.save_for_backward(order_N)
        ctx.shape, ctx.k = x_TD.shape, k
        return x_TD.index_select(0, order_N // k)

    @staticmethod
    def backward(ctx, grad):
        (order_N,) = ctx.saved_tensors
        T, D = ctx.shape
        return grad.new_zeros(T * ctx.k, D).index_copy_(0, order_N, grad).view(T, ctx.k, D).sum(1), None, None


class _Probabilities(torch.autograd.Function):
    """Sum over tokens of softmax(x gate^T), in fp32 at least; computed again in the backward pass."""

    @staticmethod
    def forward(ctx, x, gate):
        ctx.save_for_backward(x, gate)
        return _softmax(x, gate).sum(0)

    @staticmethod
    def backward(ctx, grad_E):
        x, gate = ctx.saved_tensors
        probs_TE = _softmax(x, gate)
        grad_TE = probs_TE * (grad_E - (probs_TE @ grad_E)[:, None])
        return (grad_TE @ gate.to(grad_TE.dtype)).to(x.dtype), (grad_TE.t() @ x.to(grad_TE.dtype)).to(gate.dtype)


def _softmax(x, gate):
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.softmax(F.linear(x.to(dtype), gate.to(dtype)), dim=-1)


def summed_probabilities(x_TD: torch.Tensor, gate_ED: torch.Tensor) -> torch.Tensor:
    """The router's probabilities summed over this rank's tokens, (E,), fp32 at least, with gradients."""
    return _Probabilities.apply(x_TD, gate_ED)


def global_balance(probs_LE: torch.Tensor, counts_LE: torch.Tensor, tokens: int, layout: ExpertLayout):
    """The balance loss (mean over layers) of the tokens of all `balance_ranks`, and the pairs each expert got (L, E).

    As `kernels.experts.balance_loss`, with all these ranks' tokens in the place of one rank's. The loss has the same
    value on all of them; its gradient is that of the rank's own part, times the number of ranks, because the engine
    averages gradients.
    """
    L, E = counts_LE.shape
    flat = torch.cat([counts_LE.double().flatten(), probs_LE.detach().double().flatten()])
    flat = torch.cat([flat, flat.new_tensor([tokens])])
    if layout.balance_ranks > 1:
        dist.all_reduce(flat, group=layout.balance_group)
    all_counts_LE, all_probs_LE = flat[:-1].view(2, L, E)
    share_LE = all_counts_LE * (E / L / flat[-1] ** 2)
    mine = layout.balance_ranks * (share_LE.to(probs_LE.dtype) * probs_LE).sum()
    balance = (share_LE * all_probs_LE).sum().to(probs_LE.dtype)
    return mine + (balance - mine).detach(), all_counts_LE.round().to(torch.int64)
