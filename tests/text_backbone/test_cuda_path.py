"""What CUDA runs in bf16, without needing a GPU: fake tensors refuse every device-to-host copy."""

from collections import Counter

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mmvl.text_backbone.decoder import Decoder
from mmvl.text_backbone.packed import Packed


class CountOperations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[str(func.overloadpacket)] += 1
        return func(*args, **(kwargs or {}))


def test_few_operators_a_layer_and_no_copy_to_the_host(make_config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)  # fake tensors cannot be pinned
    config = make_config()
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with FakeTensorMode(), CountOperations() as operations:
            with torch.device("cuda"):
                decoder = Decoder(config)
                ids = torch.zeros(500, dtype=torch.int64)
            packed = Packed.from_lengths([1] * 50 + [450], "cuda")
            operations.counts.clear()
            out = decoder(decoder.embed(ids), packed)  # a .item() or .tolist() would raise here
    finally:
        torch.set_default_dtype(default)
    assert out.hidden_TD.shape == (500, config.hidden_size) and out.hidden_TD.dtype == torch.bfloat16
    assert operations.counts["aten._flash_attention_forward"] == len(config.softmax_layers)
    for name in ("mmvl.router", "mmvl.experts"):
        assert operations.counts[name] == config.num_hidden_layers


if torch.cuda.is_available():

    def test_a_training_step_never_waits_for_the_device(make_config, make_decoder):
        decoder = make_decoder(make_config(), torch.bfloat16).cuda()
        lengths = [1] * 50 + [450, 64, 65]
        packed = Packed.from_lengths(lengths, "cuda")
        ids = torch.randint(0, 61, (sum(lengths),), device="cuda")
        for mode in ("default", "error"):  # the first round may set things up
            torch.cuda.set_sync_debug_mode(mode)
            try:
                out = decoder(decoder.embed(ids), packed)
                (decoder.logits(out.hidden_TD).logsumexp(-1).mean() + out.balance_loss).backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        assert all(p.grad.isfinite().all() for p in decoder.parameters())

    def test_bf16_on_cuda_equals_fp32_on_the_cpu(make_config, make_decoder, rmse_ratio):
        # one expert, so that a near tie of the router cannot make the two differ by a whole expert
        config = make_config(num_local_experts=1, num_experts_per_tok=1, num_hidden_layers=2, attn_type_list=(0, 1))
        exact = make_decoder(config, torch.bfloat16).float()
        low = make_decoder(config, torch.bfloat16).cuda()
        lengths = [1, 200, 64, 65, 1]
        ids = torch.randint(0, 61, (sum(lengths),), generator=torch.Generator().manual_seed(0))
        expected = exact(exact.embed(ids), Packed.from_lengths(lengths, "cpu")).hidden_TD
        expected.square().sum().backward()
        hidden = low(low.embed(ids.cuda()), Packed.from_lengths(lengths, "cuda")).hidden_TD
        hidden.float().square().sum().backward()
        assert rmse_ratio(hidden, expected) < 1e-2
        assert low.lm_head.weight.grad is None  # no logits were asked for
        for (name, p), (_, q) in zip(exact.named_parameters(), low.named_parameters(), strict=True):
            if name != "lm_head.weight" and p.grad.norm() > 1e-3:  # a single expert's router has next to none
                assert rmse_ratio(q.grad, p.grad) < 5e-2, name
