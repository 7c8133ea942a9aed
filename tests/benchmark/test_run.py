"""What a benchmark run says: a wrong peer is never a winner, an absent one is named, and nothing is made up."""

import json
from types import SimpleNamespace

import pytest
import torch

from mmvl.benchmark.case import Case, Contestant
from mmvl.benchmark.cases import all_cases
from mmvl.benchmark.measure import Stopwatch, Timing, relative_error
from mmvl.benchmark.picture import draw
from mmvl.benchmark.run import begin_row, choose_cases, choose_device, our_failures, run

CPU = torch.device("cpu")


def doubled(slow: int = 1, factor: float = 2.0):
    def prepare(inputs):
        def work():
            for _ in range(slow):
                out = inputs.x * factor
            return out

        return work

    return prepare


def broken(inputs):
    def work():
        raise RuntimeError("no such\nkernel")

    return work


@pytest.fixture
def case() -> Case:
    def inputs(shape, device, dtype, seed):
        generator = torch.Generator(device).manual_seed(seed)
        return SimpleNamespace(x=torch.randn(shape["T"], 64, generator=generator, device=device, dtype=dtype))

    return Case(
        op="double",
        about="twice the input",
        axis="T",
        full=[{"T": 8}, {"T": 64}],
        quick=[{"T": 8}],
        tiny=[{"T": 8}, {"T": 64}],
        inputs=inputs,
        reference=lambda i: (2 * i.x.double(),),
        contestants=[
            Contestant("mmvl", doubled(), ours=True),
            Contestant("slow", doubled(200)),
            Contestant("slower", doubled(2000)),
            Contestant("wrong", doubled(factor=2.001)),
            Contestant("rough", doubled(2000, factor=2.00002), slack=2),
            Contestant("not a number", doubled(factor=float("nan"))),
            Contestant("broken", broken),
            Contestant("absent", doubled(), package="no_such_package"),
        ],
        bytes=lambda i: 2 * i.x.nbytes,
        flops=lambda i: i.x.numel(),
        goals={8: 1.0},
    )


def test_only_right_peers_are_timed_and_compared(case):
    said = []
    result = run([case], CPU, False, said.append)
    row = result["results"][0]
    by_name = {c["name"]: c for c in row["contestants"]}
    assert {name: c["status"] for name, c in by_name.items()} == {
        "mmvl": "ok", "slow": "ok", "slower": "ok", "rough": "ok", "wrong": "wrong", "not a number": "wrong",
        "broken": "failed", "absent": "missing",
    }  # fmt: skip
    assert by_name["wrong"]["error"] == pytest.approx(5e-4, rel=0.01) and "ms" not in by_name["wrong"]
    assert by_name["broken"]["note"] == "RuntimeError: no such kernel"
    assert by_name["absent"]["note"] == "no_such_package is not installed"
    assert row["best_peer"] == "slow"
    assert row["times_faster"] == by_name["slow"]["ms"] / by_name["mmvl"]["ms"] > 2
    assert said[0].startswith("measuring") and "double, T 64: slower" in said


def test_what_failed_of_ours_is_named_and_the_others_go_on(case):
    from dataclasses import replace

    mean = Contestant("mmvl", lambda i: broken(i) if i.x.shape[0] == 8 else doubled()(i), ours=True)
    result = run([replace(case, contestants=[mean, Contestant("slow", doubled(200))])], CPU, False, lambda text: None)
    first, second = result["results"]
    assert first["ms"] is None and first["times_faster"] is None and first["best_peer"] == "slow"
    assert second["ms"] is not None
    assert our_failures(result) == ["double, T 8: failed: RuntimeError: no such kernel"]


def test_costs_are_the_mean_over_what_a_graph_goes_round(case, monkeypatch):
    """The number of experts that tokens hit differs from set to set."""
    from dataclasses import replace

    stopwatch = SimpleNamespace(device=SimpleNamespace(type="cuda"), num_sets=lambda num_bytes: 3)
    seeds = []

    def inputs(shape, device, dtype, seed):
        seeds.append(seed)
        return SimpleNamespace(x=torch.ones(shape["T"]), seed=seed)

    case = replace(case, inputs=inputs, bytes=lambda i: 100 * (1 + i.seed), flops=lambda i: 0)
    row, _ = begin_row(case, {"T": 8}, stopwatch, {"bytes": 1e6, "bf16": 1e12})
    assert row["bytes"] == 200 and row["floor_ms"] == pytest.approx(0.2) and row["sets"] == 3 and seeds == [0, 1, 2]


def test_rates_follow_from_the_measured_ceilings(case):
    result = run([case], CPU, False, lambda text: None)
    peak = result["ceilings"]
    assert peak["bytes"] > 1e8 and peak["bf16"] > 1e8
    for row in result["results"]:
        T = row["shape"]["T"]
        assert row["bytes"] == 2 * T * 64 * 4 and row["flops"] == T * 64
        assert row["floor_ms"] == 1e3 * max(row["bytes"] / peak["bytes"], row["flops"] / peak["bf16"])
        assert row["bound"] == ("bytes" if row["bytes"] / peak["bytes"] >= row["flops"] / peak["bf16"] else "flops")
        ours = row["contestants"][0]
        assert ours["of_roofline"] == pytest.approx(row["floor_ms"] / ours["ms"])
        assert ours["tb_s"] == pytest.approx(row["bytes"] / ours["ms"] / 1e9)
        assert ours["low"] <= ours["ms"] <= ours["high"] and ours["repeats"] >= 3 and ours["how"] == "clock"
        assert row["goal_ms"] is None  # goals are of an H200
    assert result["gpu"] is None and result["torch"] == torch.__version__ and result["date"]
    json.dumps(result)


def test_every_contestant_gets_fresh_inputs(case):
    def in_place(inputs):
        return lambda: inputs.x.mul_(2)

    from dataclasses import replace

    case = replace(case, contestants=[Contestant("first", in_place), Contestant("second", in_place, ours=True)])
    row = run([case], CPU, False, lambda text: None)["results"][0]
    assert [c["status"] for c in row["contestants"]] == ["ok", "ok"]


def test_a_timing_is_a_median_between_its_percentiles():
    timing = Timing.of([5.0, 1.0, 2.0, 100.0, 3.0, 4.0, 2.5, 3.5, 2.2, 3.1], "clock")
    assert timing == Timing(ms=3.05, low=2.0, high=100.0, repeats=10, how="clock")


def test_relative_error_is_infinite_where_nothing_can_be_compared():
    ones = torch.ones(3)
    assert relative_error(ones, ones) == 0
    assert relative_error(1.01 * ones, ones) == pytest.approx(0.01, rel=1e-4)
    assert relative_error(torch.zeros(3), ones) == 1
    for bad in (torch.ones(4), ones * float("nan"), ones * float("inf")):
        assert relative_error(bad, ones) == float("inf")


def test_the_sets_of_inputs_are_larger_than_the_cache():
    stopwatch = Stopwatch(CPU, 0.01)
    stopwatch.l2_bytes = 60 << 20
    assert stopwatch.num_sets(8 << 20) == 24
    assert stopwatch.num_sets(1 << 30) == 2 and stopwatch.num_sets(40 << 30) == 1
    assert stopwatch.num_sets(10) == 64  # as many as are worth the memory


def test_the_declared_cases_are_sound():
    cases = all_cases()
    assert len({case.op for case in cases}) == len(cases)
    for case in cases:
        assert sum(contestant.ours for contestant in case.contestants) == 1
        assert any(not contestant.ours for contestant in case.contestants)
        lengths = {shape[case.axis] for shape in case.full}
        assert case.goals.keys() <= lengths, case.op
        assert case.tiny or case.only_gpu
        for shape in case.quick:
            assert shape in case.full


def test_cases_and_devices_are_chosen_by_name():
    assert [c.op for c in choose_cases(["lightning dec"])] == ["lightning decode"]
    assert len(choose_cases([])) == len(all_cases())
    with pytest.raises(ValueError, match="--op conv: there are lightning forward, "):
        choose_cases(["norm", "conv"])
    with pytest.raises(ValueError, match="--device tpu"):
        choose_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no GPU is found.*--device cpu --quick"):
            choose_device(None)


def test_the_picture_has_a_panel_for_each_operation_with_several_lengths(case, tmp_path):
    from PIL import Image

    result = run([case], CPU, False, lambda text: None)
    draw(result, tmp_path / "new" / "times.png")
    with Image.open(tmp_path / "new" / "times.png") as picture:
        assert picture.size[0] > 300
    with pytest.raises(ValueError, match="nothing to draw"):
        draw({**result, "results": result["results"][:1]}, tmp_path / "none.png")
