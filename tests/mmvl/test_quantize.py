"""Quantised models: written tensor by tensor, loaded as stored or not, and a rank's part alone."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmvl.checkpoint import load_model, read_tensors, save_model
from mmvl.kernels.experts_quantized import KINDS, dequantize_weight, quantize_weight
from mmvl.quantize import chosen, quantize_decoder, quantize_model
from mmvl.quantize_check import KEYS, Way, compare, compare_layers, distances
from mmvl.safetensors_stream import FlatTensor
from mmvl.text_backbone.config import TextConfig
from mmvl.text_backbone.moe import QuantizedStack
from mmvl.text_backbone.packed import Packed
from mmvl.text_backbone.tensor_parallel import Shard

EXPERT = "language_model.model.layers.0.block_sparse_moe.experts.1.w2.weight"


@pytest.fixture(scope="module")
def quantised(tiny_model_dir, tmp_path_factory):
    """kind -> a directory with experts of that kind, in several files."""
    made = {}
    for kind in KINDS:
        made[kind] = tmp_path_factory.mktemp("models") / kind
        quantize_model(tiny_model_dir, made[kind], experts=kind, max_shard_bytes=20_000)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_stored_and_loaded_alike(quantised, tiny_model_dir, kind, tmp_path):
    assert len(list(quantised[kind].glob("*.safetensors"))) > 2
    source, stored = read_tensors(tiny_model_dir), read_tensors(quantised[kind])
    quantized, scale = (t[0] for t in quantize_weight(source[EXPERT][None], kind))
    assert torch.equal(stored[EXPERT].view(torch.uint8), quantized.view(torch.uint8))
    assert torch.equal(stored[EXPERT + "_scale"], scale) and scale.dtype == torch.float32
    others = [name for name in source if ".experts." not in name]
    assert others and all(torch.equal(source[name], stored[name]) for name in others)
    assert (quantised[kind] / "tokenizer.json").is_file()

    as_stored, on_the_way = load_model(quantised[kind], quantize=kind), load_model(tiny_model_dir, quantize=kind)
    a, b = as_stored.state_dict(), on_the_way.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[n].view(torch.uint8), b[n].view(torch.uint8)) for n in a)
    plain = load_model(quantised[kind], dtype=torch.float32)  # on the CPU that is what is fastest
    expected = dequantize_weight(quantized[None], scale[None], source[EXPERT].shape[1], kind)[0]
    assert torch.equal(plain.language_model.model.layers[0].block_sparse_moe.experts.w2[1], expected)
    with pytest.raises(ValueError, match="use `mmvl quantize`"):
        save_model(as_stored, tmp_path)


def test_quantised_in_memory_on_disk_and_for_a_while_compute_the_same(quantised, tiny_model_dir):
    model = load_model(tiny_model_dir, dtype=torch.float32)
    decoder = model.language_model
    ids_T, packed = torch.arange(50) % 60, Packed.from_lengths((50,), "cpu")

    def logits(d):
        return d.logits(d(d.embed(ids_T), packed).hidden_TD)

    with torch.no_grad():
        exact = logits(decoder)
        with quantize_decoder(decoder, "int4"):
            once = logits(decoder)
        assert torch.equal(logits(decoder), exact) and not torch.equal(once, exact)
        for quantize in ("int4", "none"):
            other = load_model(quantised["int4"], dtype=torch.float32, quantize=quantize).language_model
            assert (logits(other) - once).norm() / once.norm() < 1e-5


def test_the_rest_follows_the_released_recipe_or_all():
    shapes = {
        "language_model.lm_head.weight": (512, 128),
        "language_model.model.embed_tokens.weight": (512, 128),
        "language_model.model.layers.0.self_attn.qkv_proj.weight": (384, 128),
        "language_model.model.layers.0.self_attn.output_gate.weight": (128, 128),
        "language_model.model.layers.0.self_attn.norm.weight": (128,),
        "language_model.model.layers.0.block_sparse_moe.gate.weight": (64, 128),
        "language_model.model.layers.0.coefficient.weight": (1, 128),
        "language_model.model.layers.7.self_attn.o_proj.weight": (128, 128),
        "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight": (128, 128),
        "vision_tower.vision_model.embeddings.position_embedding.weight": (577, 128),
        "multi_modal_projector.linear_1.weight": (128, 128),
    }
    released = {name.split(".")[-2] for name, shape in shapes.items() if chosen(name, shape, "int8", "attention")}
    assert released == {"qkv_proj", "output_gate", "o_proj"}
    left = {name.split(".")[-2] for name, shape in shapes.items() if not chosen(name, shape, "int8", "all")}
    assert left == {"norm", "gate", "coefficient", "position_embedding"}
    assert not any(chosen(name, shape, "int8", "keep") for name, shape in shapes.items())


@pytest.mark.parametrize("stored, quantize", [(None, None), (None, "int4"), ("int8", "int8"), ("int8", "none")])
def test_a_rank_reads_its_part_alone(quantised, tiny_model_dir, stored, quantize, monkeypatch):
    directory = quantised[stored] if stored else tiny_model_dir
    whole = load_model(directory, quantize=quantize).language_model
    read = [0]
    plain_read = FlatTensor._read

    def count(self, into, first):
        read[0] += len(into)
        plain_read(self, into, first)

    monkeypatch.setattr(FlatTensor, "_read", count)
    load_model(directory, quantize=quantize)
    everything, read[0] = read[0], 0
    parts = [load_model(directory, quantize=quantize, rank=1, ranks=2)]
    assert read[0] < 0.6 * everything, "half of the experts and heads, no vision, no embedding"
    parts.insert(0, load_model(directory, quantize=quantize, rank=0, ranks=2).language_model)
    for rank, part in enumerate(parts):
        shard, held = Shard(whole.config, rank, 2), part.state_dict()
        for name, t in whole.state_dict().items():
            box = shard.box(name.replace(".scale", ".w"), tuple(t.shape))
            assert (box is None) == (name not in held)
            if box is not None:
                t = t[box[0]] if ".experts." in name else t[box]
                assert torch.equal(held[name].view(torch.uint8), t.contiguous().view(torch.uint8)), name


def test_what_cannot_be_done_is_said(quantised, tiny_model_dir, tmp_path):
    with pytest.raises(ValueError, match="quantised already .int8"):
        quantize_model(quantised["int8"], tmp_path, experts="int4")
    with pytest.raises(ValueError, match="are int8 already and cannot be quantised to fp8"):
        load_model(quantised["int8"], quantize="fp8")
    with pytest.raises(ValueError, match="int8, int4, fp8, or none; not 'int3'"):
        load_model(tiny_model_dir, quantize="int3")
    for arguments, said in (({"experts": "int3"}, "not 'int3'"), ({"rest": "some"}, "keep, attention, all, not 'some'"),
                            ({"experts": None}, "nothing to do")):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            quantize_model(tiny_model_dir, tmp_path, **arguments)
    with pytest.raises(ValueError, match="the model itself"):
        quantize_model(tiny_model_dir, tiny_model_dir / "." / "")
    broken = shutil.copytree(tiny_model_dir, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors[EXPERT][0, 0] = torch.nan
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(ValueError, match="experts.1.w2.weight in .* not finite"):
        quantize_model(broken, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.safetensors*"))


@pytest.mark.parametrize("damage", ["no scale", "short scale", "scale of nothing"])
def test_scales_that_do_not_fit_are_refused(quantised, damage, tmp_path):
    quantize_model_dir = shutil.copytree(quantised["int8"], tmp_path / "copy")
    tensors = read_tensors(quantize_model_dir)
    for file in quantize_model_dir.glob("*.safetensors*"):
        file.unlink()
    if damage == "no scale":
        del tensors[EXPERT + "_scale"]
    elif damage == "short scale":
        tensors[EXPERT + "_scale"] = tensors[EXPERT + "_scale"][:-1].clone()
    else:
        tensors["nothing_scale"] = torch.ones(3)
    save_file(tensors, quantize_model_dir / "model.safetensors")
    said = {"no scale": "1 missing: ", "short scale": "1 misshapen: ", "scale of nothing": "1 surplus: nothing_scale"}
    with pytest.raises(ValueError, match=said[damage] + (EXPERT + "_scale") * ("nothing" not in damage)):
        load_model(quantize_model_dir)


def test_distances():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 30, generator=g)
    same = distances(logits, logits + 3.0)
    assert same["kl_mean"] < 1e-12 and same["logits_error"] < 1e-6 and same["same_top_1"] == 1
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.75, 0.25]])
    assert distances(p.log(), q.log())["kl_mean"] == pytest.approx(0.14384, abs=1e-5)  # ln(4/3) / 2
    row = distances(p.log(), q.log(), torch.tensor([1]))
    assert (row["loss_before"], row["loss_after"]) == pytest.approx((0.69315, 1.38629), abs=1e-5)


def test_finer_kinds_are_nearer(quantised, tiny_model_dir):
    others = {kind: Way(quantised[kind]) for kind in KINDS}
    others |= {name: Way(tiny_model_dir, kv_cache_dtype=kind) for kind, name in KEYS.items()}
    rows = {row["name"]: row for row in compare(tiny_model_dir, others, limit=3, scores=False)}
    assert rows["reference"]["kl_mean"] == 0
    assert 0 < rows["int8"]["kl_mean"] < rows["fp8"]["kl_mean"] < rows["int4"]["kl_mean"] < 0.1
    assert 0 < rows[KEYS["int8"]]["kl_mean"] < rows[KEYS["fp8"]]["kl_mean"] < rows["int4"]["kl_mean"]
    config = TextConfig(
        hidden_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=32, rotary_dim=16,
        vocab_size=64, intermediate_size=128, num_local_experts=4, num_experts_per_tok=2, attn_type_list=(0, 1),
        postnorm=True,
    )  # fmt: skip
    rows = compare_layers(config, KINDS, tokens=20, device="cpu", dtype=torch.float32)
    int8, fp8 = rows.pop(), rows.pop()
    assert [fp8["name"], int8["name"]] == [*KEYS.values()] and 0 < int8["logits_error"] < fp8["logits_error"] < 0.05
    for error in ("logits_error", "experts_error"):
        int8, int4, fp8 = (row[error] for row in rows)
        assert 0 < int8 < fp8 < int4 < 0.5


def test_quantised_stacks_survive_casts(quantised):
    model = load_model(quantised["fp8"], quantize="fp8").to(torch.bfloat16)
    stack = model.language_model.model.layers[0].block_sparse_moe.experts
    assert isinstance(stack, QuantizedStack)
    assert (stack.w1.dtype, stack.scale1.dtype) == (torch.float8_e4m3fn, torch.float32)


def test_the_config_says_what_was_done(quantised):
    about = json.loads((quantised["int4"] / "config.json").read_text())["quantization_config"]
    assert about == {"quant_method": "mmvl", "experts": "int4", "rest": "keep", "group_size": 128}
