"""`mmvl bench graphs`: what it measures, and what it prints of it. Without a GPU nothing is captured."""

from dataclasses import asdict

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from mmvl.app.bench_graphs import printed
from mmvl.app.cli import app
from mmvl.app.errors import UsageError
from mmvl.benchmark.engine_graphs import PAST, Row, measure, steps
from mmvl.benchmark.shapes import TINY
from mmvl.text_backbone.decoder import Decoder


class Plainly:
    """In the place of graphs: the decoder itself, in the order in which graphs are used."""

    def __init__(self, decoder, cache):
        self.decoder, self.cache, self.seen = decoder, cache, []

    def prepare(self, slots):
        self.packed = self.cache.pack([(slot, 1) for slot in slots])
        return self.packed.slots_S

    def takes(self, slots, counts, draft):
        assert all(self.cache.length(slot) == PAST for slot in slots)  # every time from the same place
        self.packed = self.cache.pack(list(zip(slots, counts, strict=True)), draft=draft)
        self.seen.append((counts, draft))
        return True

    def run(self, slots, x_TD):
        return self.decoder(x_TD, self.packed, self.cache).hidden_TD

    def run_ragged(self, slots, counts, x_TD):
        return self.run(slots, x_TD)

    def accept(self, slots, counts):
        self.cache.accept(self.packed, counts)


def test_every_kind_of_step_is_measured_from_the_same_past():
    decoder = Decoder(TINY)
    decoder.init_weights(seed=0)
    decoder.requires_grad_(False)
    cache = decoder.new_cache(
        max_sequences=3, max_tokens=5 * 400, max_checkpoints=1, device="cpu", dtype=torch.float32
    )  # fmt: skip
    told, graphs = [], Plainly(decoder, cache)
    chosen = list(steps(32, 3))
    rows = measure(decoder, cache, graphs, chosen, 1, 16, told.append)
    assert [(row.kind, row.sequences, row.tokens) for row in rows if row.sequences == 3] == [
        ("decode", 3, 3), ("draft", 3, 6), ("draft", 3, 12), ("draft", 3, 24), ("chunk", 3, 16), ("chunk", 3, 32)
    ]  # fmt: skip
    assert [row.tokens for row in rows if row.kind == "chunk" and row.sequences == 1] == [16, 9, 32, 17]
    assert [row.ruled for row in rows if row.kind == "chunk"] == [True, True, True, False, False, False]
    assert all(row.error < 1e-6 and 0 < row.graph_host_ms <= row.graph_ms for row in rows)
    assert len(told) == len(chosen) and ((14, 1, 1), False) in graphs.seen and ((8,), True) in graphs.seen
    assert cache.free_slots == 3 and cache.free_checkpoints == 1


def test_what_the_rule_gets_wrong_is_marked():
    right = Row("chunk", 1, 16, 5.0, 4.9, 1.0, 0.2, 1e-7, True)
    wrong = Row("chunk", 1, 512, 5.0, 4.9, 6.0, 0.2, 1e-7, True)
    console = Console(width=200)
    with console.capture() as said:
        console.print(printed({"rows": [asdict(row) | {"times": row.times} for row in (right, wrong)]}))
    lines = said.get().splitlines()
    assert "5.00" in lines[1] and "graph" in lines[1] and "(!)" not in lines[1] and "graph (!)" in lines[2]


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(app, ["bench", "graphs"])
    assert isinstance(result.exception, ValueError) and "CUDA graphs are of a GPU" in str(result.exception)


@pytest.mark.parametrize("command", ["engine", "graphs"])
@pytest.mark.parametrize(
    "options, said",
    [
        ("--layers 2", "are of a --shape"),
        ("--shape huge", "there is no shape 'huge'"),
        ("--shape small --layers 99", "--layers 99: the shape small has 1 to 8"),
        ("--shape small --experts int5", "there are no 'int5' experts"),
    ],
)
def test_what_cannot_be_measured_is_wrong_usage_of_both_commands(command, options, said):
    result = CliRunner().invoke(app, ["bench", command, *options.split()])
    assert isinstance(result.exception, UsageError) and said in str(result.exception)
