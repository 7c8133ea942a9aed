"""`mmvl bench engine` on a shape that takes no time: what it measures, writes, prints and draws."""

import json

import pytest
import torch
from rich.console import Console

from mmvl.app.bench_engine import engine, printed
from mmvl.benchmark.decoder import SLICE
from mmvl.benchmark.engine import MIXED, Load, floors, loads, table

PEAK = {"bytes": 4.3e12, "bf16": 790e12}


def test_it_measures_both_writes_prints_and_draws(tmp_path, capsys):
    json_path, picture = tmp_path / "e.json", tmp_path / "e.png"
    engine(
        None, "small", "1,3", "9", 4, mixed=False, repeats=1, peer=True, json_path=json_path, picture=picture,
        device="cpu",
    )  # fmt: skip
    result = json.loads(json_path.read_text())
    assert "failed" not in result, result["failed"]
    assert [(line["load"], line["sequences"], line["length"]) for line in result["table"]] == [
        ("1 x 9 + 4", 1, 9), ("3 x 9 + 4", 3, 9)
    ]  # fmt: skip
    for line in result["table"]:
        for name in ("mmvl", "transformers"):
            row = line[name]
            made = line["sequences"] * 4
            assert row["tokens_per_second"] == pytest.approx(made / row["seconds"])
            assert 0 < row["first_token_seconds"] <= row["first_token_seconds_worst"] < row["seconds"]
            assert row["memory_gib"] > 0 and row["step_floor"] > 0
        ours, theirs = (line[name]["tokens_per_second"] for name in ("mmvl", "transformers"))
        assert line["times"] == pytest.approx(ours / theirs)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "3 x 9 + 4" in capsys.readouterr().out


def test_floors_are_those_of_the_design():
    """A decode step of the slice: 2.7, 9.6 and 22.2 ms at 1, 8 and 64 sequences; its prefill 74,000 tokens/s, where the
    design also counts what lightning attention reads and writes."""
    steps = [floors(SLICE, torch.bfloat16, Load((1,) * n, 1, n), PEAK)["step_floor"] for n in (1, 8, 64)]
    assert [1e3 * step for step in steps] == pytest.approx([2.7, 9.6, 22.2], rel=0.1)
    seconds = floors(SLICE, torch.bfloat16, Load((8192,), 1, 1), PEAK)["prefill_floor"]
    assert 74_000 < 8192 / seconds < 1.15 * 74_000


def test_transformers_best_batch_counts():
    row = {"load": "x", "sequences": 2, "length": 5, "step_floor": 1.0}
    rows = [
        row | {"name": name, "batch": batch, "repeat": repeat, "tokens_per_second": speed}
        for name, batch, repeat, speed in (
            ("mmvl", 64, 0, 50.0), ("mmvl", 64, 1, 70.0), ("transformers", 64, 0, 10.0), ("transformers", 16, 0, 20.0)
        )
    ]  # fmt: skip
    [line] = table(rows)
    assert (line["mmvl"]["tokens_per_second"], line["transformers"]["tokens_per_second"], line["times"]) == (60, 20, 3)


def test_the_mixed_load_is_64_prompts_of_512_to_16384_tokens():
    mixed = loads([1], [8], 4, mixed=True)[1]
    assert mixed.lengths == MIXED and (len(MIXED), MIXED[0], MIXED[-1], mixed.new_tokens) == (64, 512, 16384, 256)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"sequences": "1,x"}, "--sequences takes whole numbers"), ({"shape": "huge"}, "there is no shape 'huge'")],
)
def test_mistakes_get_one_clear_line(change, message):
    settings = {"model": None, "shape": "small", "sequences": "1", "lengths": "8", "new_tokens": 2} | change
    with pytest.raises(ValueError, match=message):
        engine(**settings, mixed=False, repeats=1, peer=False, json_path=None, picture=None, device="cpu")


def test_the_table_fits_a_terminal():
    row = {
        "tokens_per_second": 12345.6, "first_token_seconds": 1.234, "between_seconds": 0.0123, "memory_gib": 100.0,
        "between_seconds_p95": 0.0456, "step_floor": 0.0012, "prompt_tokens_per_second": 45678.0,
    }  # fmt: skip
    console = Console(width=110, record=True)
    console.print(printed([{"load": "64 x 512 to 16,384 + 256", "mmvl": row, "transformers": row, "times": 4.2}]))
    assert "…" not in console.export_text()
