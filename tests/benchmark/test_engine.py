"""`mmvl bench engine` on a shape that takes no time: what it measures, writes, prints and draws."""

import io
import json
import sys

import pytest
import torch
from rich.console import Console

from mmvl.app.bench_engine import engine, show
from mmvl.benchmark.decoder import SLICE
from mmvl.benchmark.engine import MIXED, floors, loads, table
from mmvl.benchmark.engine_contestants import Load, Ours, Transformers, batches, model_of
from mmvl.benchmark.engine_peer import Peer, PeerError, best_budget, measure
from mmvl.benchmark.shapes import WHOLE, random_decoder, shape_of
from mmvl.text_backbone.decoder import Decoder
from mmvl.text_backbone.packed import Packed

PEAK = {"bytes": 4.3e12, "bf16": 790e12}


def test_it_measures_both_writes_prints_and_draws(tmp_path, capsys):
    json_path, picture = tmp_path / "e.json", tmp_path / "e.png"
    engine(
        None, "small", "1,3", "9", 4, mixed=False, repeats=1, peer=True, peer_tokens=2, json_path=json_path,
        picture=picture, device="cpu",
    )  # fmt: skip
    result = json.loads(json_path.read_text())
    assert "failed" not in result, result["failed"]
    assert [(line["load"], line["sequences"], line["length"]) for line in result["table"]] == [
        ("1 x 9 + 4", 1, 9), ("3 x 9 + 4", 3, 9)
    ]  # fmt: skip
    for line in result["table"]:
        assert line["mmvl"]["in_use_gib"] > line["mmvl"]["pages_gib"] > 0
        for name in ("mmvl", "transformers"):
            row = line[name]
            made = line["sequences"] * 4
            assert row["tokens_per_second"] == pytest.approx(made / row["seconds"])
            assert 0 < row["first_token_seconds"] <= row["first_token_seconds_worst"] < row["seconds"]
            assert row["memory_gib"] > 0 and row["step_floor"] > 0
        assert (
            2 <= line["mmvl"]["experts_hit"] <= 4 and line["transformers"]["step_floor"] == line["mmvl"]["step_floor"]
        )
        theirs = line["transformers"]  # two tokens were made of each answer, its step stands for the others
        assert theirs["seconds"] == pytest.approx(theirs["first_token_seconds_worst"] + 3 * theirs["between_seconds"])
        ours, theirs = (line[name]["tokens_per_second"] for name in ("mmvl", "transformers"))
        assert line["times"] == pytest.approx(ours / theirs)
    assert picture.read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "3 x 9 + 4" in out and "Greedy answers alone and together, float32: 12 of 12 equal (576 compared)." in out
    assert result["agreement"]["rate"] == 0 and result["warm_up_seconds"] > 0


def test_floors_are_those_of_the_design():
    """A decode step of the slice: 2.7, 9.6 and 22.2 ms at 1, 8 and 64 sequences; its prefill 74,000 tokens/s, where the
    design also counts what lightning attention reads and writes."""
    steps = [floors(SLICE, torch.bfloat16, Load((1,) * n, 1), PEAK)["step_floor"] for n in (1, 8, 64)]
    assert [1e3 * step for step in steps] == pytest.approx([2.7, 9.6, 22.2], rel=0.1)
    seconds = floors(SLICE, torch.bfloat16, Load((8192,), 1), PEAK)["prefill_floor"]
    assert 74_000 < 8192 / seconds < 1.15 * 74_000


def test_fewer_or_smaller_experts_and_more_ranks_are_less_to_read():
    load = Load((1024,) * 64, 1)
    all_hit = floors(SLICE, torch.bfloat16, load, PEAK, hit=32)["step_floor"]
    half_hit = floors(SLICE, torch.bfloat16, load, PEAK, hit=16)["step_floor"]
    expert = 3 * 6144 * 9216
    assert all_hit - half_hit == pytest.approx(8 * 16 * 2 * expert / PEAK["bytes"])
    int4 = floors(SLICE, torch.bfloat16, load, PEAK, hit=32, expert_bytes=expert / 2)["step_floor"]
    assert all_hit - int4 == pytest.approx(8 * 32 * 1.5 * expert / PEAK["bytes"])
    head = 2 * 200_064 * 6144 / PEAK["bytes"]
    two = floors(SLICE, torch.bfloat16, load, PEAK, hit=32, ranks=2)["step_floor"]
    assert two - head == pytest.approx((all_hit - head) / 2)


def test_medians_are_compared():
    row = {"load": "x", "sequences": 2, "length": 5, "step_floor": 1.0}
    rows = [
        row | {"name": name, "repeat": repeat, "tokens_per_second": speed}
        for name, repeat, speed in (("mmvl", 0, 50.0), ("mmvl", 1, 70.0), ("transformers", 0, 20.0))
    ]
    failed = {"name": "transformers", "repeat": 0, "failed": "failed at a batch of 8 tokens: it died"}
    [line] = table([*rows[:2], row | failed])
    assert "transformers" not in line and line["failed"] == "transformers failed at a batch of 8 tokens: it died"
    [line] = table(rows)
    assert (line["mmvl"]["tokens_per_second"], line["transformers"]["tokens_per_second"], line["times"]) == (60, 20, 3)


def test_transformers_gets_the_batches_that_suit_it_best():
    prompts = [[0] * n for n in (3, 16, 4, 8, 4)]
    assert [[len(p) for p in batch] for batch in batches(prompts, 16)] == [[16], [8, 4], [4, 3]]
    assert [len(batch) for batch in batches(prompts, 80)] == [5] and len(batches(prompts, 1)) == 5

    def search(load, seconds, bytes_of_a_token=1, free=1 << 40):
        tried = []

        def judge(budget):
            tried.append(budget)
            took = seconds.get(budget)
            return took and {"seconds": took, "batch_bytes": bytes_of_a_token * budget, "free_bytes": free}

        return best_budget(judge, load), tried

    load = Load((8, 10) * 8, 50)  # small: begins with all
    assert search(load, {160: 5, 80: 4, 40: 6}) == (80, [160, 80, 40])
    assert search(load, {160: 5, 80: 6}) == (160, [160, 80])
    assert search(load, {10: 5}) == (10, [160, 80, 40, 20, 10]) and search(load, {})[0] is None
    load = Load((4096, 8192) * 16, 50)
    assert search(load, {16384: 5, 32768: 4, 65536: 6}) == (32768, [16384, 32768, 65536])  # slower
    assert search(load, {16384: 5, 32768: 4}) == (32768, [16384, 32768, 65536])  # it fails
    assert search(load, {16384: 5, 8192: 4}) == (8192, [16384, 32768, 8192])
    assert search(load, {16384 << n: 5 - n for n in range(5)})[0] == 32 * 8192
    # the same batches are not judged twice: one request each up to 19,999 tokens
    load = Load((10000,) * 7, 50)
    assert search(load, {16384: 5, 32768: 4, 65536: 3, 70000: 2}) == (70000, [16384, 32768, 65536, 70000])
    assert search(load, {16384: 5, 32768: 6}) == (16384, [16384, 32768])
    assert search(load, {}) == (None, [16384])
    # what the next batch takes is told by its own size: 3 requests of 9,000 are not twice one of them
    assert search(Load((9000,) * 8, 50), {16384: 5, 32768: 4}, 1, 20000) == (16384, [16384])
    assert search(Load((1000,) * 17, 50), {16384: 5, 17000: 4}, 1, 18000) == (17000, [16384, 17000])
    assert best_budget(lambda budget: {"seconds": 1 / budget}, load) == 70000  # a peer that does not tell its memory
    # the slice on an H200: 0.65 MiB a token, and 48 GiB beside the weights
    seconds = {1 << n: 100 - n for n in range(14, 21)}
    assert search(Load(MIXED, 256), seconds, 681574, 48 << 30) == (65536, [16384, 32768, 65536])


CHILD = """
import json, os, signal, sys
setup = json.loads(sys.stdin.readline())
open(setup["starts"], "a").write("x")
if setup["broken"]:
    print("ImportError: no transformers", file=sys.stderr)
    sys.exit(3)
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    budget, row = asked["budget"], {"seconds": 1000.0 / asked["budget"], "tokens_per_second": 5.0}
    if asked["new_tokens"] > 4 and budget > setup["fits"]:
        row = None
    elif asked["new_tokens"] > 4 and budget > setup["works"]:
        print("a kernel went wrong", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    elif setup["experts_by"] == setup["bad_experts"] and budget > 10:
        print(json.dumps({"error": "RuntimeError: no such product"}), flush=True)
        os._exit(1)
    elif asked["made"] is not None and budget == setup["says"]:
        print(json.dumps({"error": "AcceleratorError: CUDA error: misaligned address"}), flush=True)
        os._exit(1)
    print(json.dumps({"row": row}), flush=True)
"""


@pytest.fixture
def rows_of_a_child(tmp_path, monkeypatch):
    """Rows of a load of 8 x 10 tokens by a child that does what it is told, and how often one was started."""
    monkeypatch.setattr(Peer, "command", (sys.executable, "-S", "-c", CHILD))

    def rows(**setup):
        starts = tmp_path / "starts"
        setup = {"fits": 1e9, "works": 1e9, "says": 0, "broken": False, "bad_experts": "", "device": "cpu"} | setup
        with Peer({"starts": str(starts)} | setup, lambda what: None) as peer:
            found = list(measure(peer, Load((10,) * 8, 50), 2, 9, lambda what: None))
        return found, len(starts.read_text())

    return rows


def test_a_peer_that_dies_is_started_again_with_smaller_batches(rows_of_a_child):
    died = "failed at a batch of {} tokens: SIGSEGV: a kernel went wrong".format
    rows, starts = rows_of_a_child(fits=40, works=20)  # 80 does not fit, 40 kills, 20 is faster than 10
    assert [(row["repeat"], row["batch_tokens"], row["failed"]) for row in rows] == [
        (0, 20, died(40)),
        (1, 20, died(40)),
    ]
    assert starts == 2
    rows, starts = rows_of_a_child(works=0)
    assert rows == [{"repeat": 0, "failed": "; ".join(map(died, (80, 40, 20, 10)))}] and starts == 2 + 5 - 1


def test_what_a_peer_says_before_it_ends_is_in_its_rows(rows_of_a_child):
    rows, starts = rows_of_a_child(says=80)
    said = "failed at a batch of 80 tokens: AcceleratorError: CUDA error: misaligned address"
    assert [(row["batch_tokens"], row["failed"]) for row in rows] == [(40, said)] * 2 and starts == 2


def test_a_peer_that_fails_computes_in_another_way(rows_of_a_child):
    said = "failed by {} at a batch of 80 tokens: RuntimeError: no such product".format
    rows, starts = rows_of_a_child(device="cuda:0", bad_experts="grouped_mm")
    failed = f"{said('grouped_mm')}; {said('grouped_mm without cuDNN')}"
    found = [(row["batch_tokens"], row["way"], row["failed"]) for row in rows]
    assert found == [(80, "eager without cuDNN", failed)] * 2
    assert starts == 3
    rows, _ = rows_of_a_child(device="cuda:0")
    assert [(row["way"], "failed" in row) for row in rows] == [("grouped_mm", False)] * 2


@pytest.mark.parametrize("layers", [None, 2], ids=["softmax", "lightning-alone"])
def test_prompts_that_transformers_fills_up_are_answered_as_alone(layers):
    """Else it would attend to what they are filled up with, or end where a GPU is asked to."""
    peer = Transformers(model_of(None, "tiny", layers, None), torch.device("cpu"), torch.float32)
    for parameter in peer.model.parameters():  # its own are so small that nothing would depend on them
        parameter.data.normal_(0, 0.15, generator=torch.Generator().manual_seed(parameter.numel()))
    said = {}
    clock = lambda ids, scores, **_: said.update({len(ids): ids}) or torch.zeros(len(ids), dtype=torch.bool)  # noqa: E731
    prompts = [list(range(20, 40)), list(range(50, 57))]
    peer._generate(prompts, 8, clock)
    peer._generate(prompts[1:], 8, clock)
    assert said[2][1, 20:].tolist() == said[1][0, 7:].tolist()


def test_a_peer_without_memory_or_that_cannot_start_says_so(rows_of_a_child):
    rows, starts = rows_of_a_child(fits=5)
    assert rows == [{"repeat": 0, "failed": "no memory for a request of 10 tokens"}] and starts == 1
    with pytest.raises(PeerError, match="^exit code 3: ImportError: no transformers$"):
        rows_of_a_child(broken=True)


@pytest.mark.parametrize("experts", [None, "int8", "int4", "fp8"])
def test_shapes_become_decoders_whose_numbers_are_finite(experts):
    decoder = random_decoder("cpu", config=shape_of("tiny", 2), experts=experts, dtype=torch.float32)
    with torch.no_grad():
        hidden = decoder(decoder.embed(torch.arange(9)), Packed.from_lengths([9], "cpu")).hidden_TD
    assert hidden.isfinite().all() and len(decoder.model.layers) == 2


def test_the_whole_shape_has_456_billion_parameters():
    with torch.device("meta"):
        assert round(sum(p.numel() for p in Decoder(WHOLE).parameters()) / 1e9) == 456


def test_the_mixed_load_is_64_prompts_of_512_to_16384_tokens():
    mixed = loads([1], [8], 4, mixed=True)[1]
    assert mixed.lengths == MIXED and (len(MIXED), MIXED[0], MIXED[-1], mixed.new_tokens) == (64, 512, 16384, 256)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sequences": "1,x"}, "--sequences takes whole numbers"),
        ({"shape": "huge"}, "there is no shape 'huge'"),
        ({"layers": 9}, "--layers 9: the shape small has 1 to 8"),
        ({"experts": "int5"}, "there are no 'int5' experts"),
        ({"shape": None, "layers": 1}, "are of a --shape"),
    ],
)
def test_mistakes_get_one_clear_line(change, message):
    settings = {"model": None, "shape": "small", "sequences": "1", "lengths": "8", "new_tokens": 2} | change
    with pytest.raises(ValueError, match=message):
        engine(**settings, mixed=False, repeats=1, peer=False, json_path=None, picture=None, device="cpu")


def test_the_table_fits_a_terminal_of_80_columns():
    row = {
        "tokens_per_second": 12345.6, "first_token_seconds": 1.234, "between_seconds": 0.0123, "memory_gib": 100.15,
        "between_seconds_p95": 0.0456, "step_floor": 0.0012, "prompt_tokens_per_second": 45678.0,
    }  # fmt: skip
    ours = row | {"in_use_gib": 87.65}
    lines = [{"load": "64 x 512 to 16,384 + 256", "mmvl": ours, "transformers": row, "times": 4.2}]
    numbers = ["12,345.6", "4.20", "1.234", "12.30", "45.60", "1.20", "45,678", "87.65", "100.15"]

    def said(lines: list[dict], **how) -> list[str]:
        console = Console(file=io.StringIO(), color_system=None, **how)
        show(lines, console)
        return console.file.getvalue().splitlines()

    found = said(lines, width=80, force_terminal=True)
    assert max(map(len, found)) <= 80 and not any("…" in line for line in found)
    assert [line.split()[-9:] for line in found if "100.15" in line] == [numbers, ["transformers", *theirs(numbers)]]
    # in a pipe nothing wraps, and what is wider than a terminal is whole all the same
    wide = said(lines, width=80)
    assert [line.split()[:7] for line in wide if "87.65" in line] == ["64 x 512 to 16,384 + 256".split()]
    many = ours | {"tokens_per_second": 1234567890.1, "memory_gib": 123456789.0, "in_use_gib": 0.00123}
    assert any("1,234,567,890.1" in line and "0.0012 123456789.00" in line for line in
               said([{"load": "1 x 2 + 3", "mmvl": many}], width=60, force_terminal=True))  # fmt: skip


def theirs(numbers: list[str]) -> list[str]:
    """Without times, and without what is in use."""
    return [numbers[0], *numbers[2:7], numbers[8]]


def test_a_load_holds_as_many_pages_and_states_as_its_tokens_need():
    model = model_of(None, "small", None, None)
    ours = Ours(model, torch.device("cpu"), torch.float32, {"max_sequences": 4}, lambda what: None)
    alone, long, three = (ours.run(Load(lengths, 3)) for lengths in ((60,), (126,), (60,) * 3))
    assert [(row["kv_pages"], row["state_slots"]) for row in (alone, long, three)] == [(1, 1), (2, 1), (3, 3)]
    for row in (alone, long, three):
        parts = [row[f"{name}_gib"] for name in ("weights", "pages", "states", "activations")]
        assert min(parts) > 0 and row["in_use_gib"] == pytest.approx(sum(parts))
    assert alone["weights_gib"] == three["weights_gib"]
    assert three["states_gib"] == pytest.approx(3 * alone["states_gib"])
    assert long["pages_gib"] == pytest.approx(2 * alone["pages_gib"])
    assert long["activations_gib"] == pytest.approx(126 / 60 * alone["activations_gib"])
