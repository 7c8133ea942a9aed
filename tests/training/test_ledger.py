"""The counting rule of the token ledger, line by line."""

import copy
import dataclasses
import io
import itertools

import pytest
from PIL import Image

from mmvl.data.manifest import make_manifest
from mmvl.data.shards import Sample, ShardSource
from mmvl.datasets import count_tokens
from mmvl.processor import Processor
from mmvl.training.batch import Batch, Example
from mmvl.training.ledger import Ledger
from mmvl.training.loader import Loader, encode_pair, encode_sample
from mmvl.training.recipe import DataSpec


@pytest.fixture(scope="module")
def processor(tiny_model_dir):
    return Processor.from_pretrained(tiny_model_dir)


def test_every_position_counts_once_as_text_or_image(shards, processor):
    colours, text = ShardSource.from_dir(shards / "colours"), ShardSource.from_dir(shards / "text")
    examples = [Example(encode_sample(colours[i], processor), 0) for i in range(3)]
    examples += [Example(encode_sample(text[i], processor), 1) for i in range(2)]
    batch = Batch.collate(examples, 2, processor.image_id)
    grids = sum(image.num_tokens for e in examples for image in e.prompt.images)
    assert batch.image_tokens == (grids, 0)
    words = [sum(len(e.prompt.token_ids) for e in examples if e.source == s) for s in (0, 1)]
    assert batch.text_tokens == (words[0] - grids, words[1])
    assert sum(batch.text_tokens) + sum(batch.image_tokens) == len(batch.ids_T) > len(batch.targets_L)
    assert batch.samples == (3, 2)


def test_both_documents_of_a_pair_count(more_shards, processor):
    source = ShardSource.from_dir(more_shards / "pairs")
    pair = encode_pair(source[1], processor)
    batch = Batch.collate([Example(pair[0], 0, pair[1])], 1, processor.image_id)
    assert batch.image_tokens[0] == 2 * pair[0].images[0].num_tokens
    assert batch.text_tokens[0] + batch.image_tokens[0] == len(pair[0].token_ids) + len(pair[1].token_ids)
    assert batch.samples == (1,)


@pytest.mark.parametrize("name", ["colours", "text", "pages", "pairs"])
def test_the_manifest_counts_as_the_ledger_does(shards, more_shards, processor, name):
    folder = (shards if (shards / name).exists() else more_shards) / name
    source = ShardSource.from_dir(folder)
    counted = [count_tokens(sample, processor) for sample in source]
    examples = []
    for sample in source:
        if name == "pairs":
            chosen, rejected = encode_pair(sample, processor)
            examples.append(Example(chosen, 0, rejected))
        else:
            examples.append(Example(encode_sample(sample, processor), 0))
    batch = Batch.collate(examples, 1, processor.image_id)
    totals = tuple(sum(column) for column in zip(*counted, strict=True))
    assert totals == (batch.text_tokens[0], batch.image_tokens[0])


def test_a_picture_whose_margins_are_cut_off_counts_as_it_is_tiled(shards, processor):
    sheet = Image.new("L", (900, 1280), 255)
    sheet.paste(0, (300, 200, 500, 240))
    written = io.BytesIO()
    sheet.save(written, "PNG")
    sample = ShardSource.from_dir(shards / "colours")[0]
    sample = Sample(sample.key, sample.json, dict.fromkeys(sample.members, written.getvalue()))
    trimming = copy.copy(processor)
    trimming.tiling = dataclasses.replace(processor.tiling, trim_margins=True)
    counts = []
    for taking in (processor, trimming):
        images = encode_sample(sample, taking).images
        counts.append(sum(image.num_tokens for image in images))
        assert count_tokens(sample, taking)[1] == counts[-1] > 0
    assert counts[0] != counts[1]


def test_the_manifest_has_the_totals_by_kind(more_shards, processor, tmp_path):
    (tmp_path / "a.tar").write_bytes(next((more_shards / "pages").glob("*.tar")).read_bytes())
    steps = []
    manifest = make_manifest(
        tmp_path, count=lambda sample: count_tokens(sample, processor), progress=lambda *at: steps.append(at)
    )
    counted = [count_tokens(s, processor) for s in ShardSource.from_dir(tmp_path)]
    totals = dict(zip(("text", "image"), (sum(column) for column in zip(*counted, strict=True)), strict=True))
    assert manifest["tokens"] == manifest["shards"][0]["tokens"] == {"interleaved": totals}
    assert steps[-1] == (20, 20)


def test_a_sample_counts_again_in_a_later_epoch_and_never_when_skipped(recipe_dict, shards, processor):
    data = DataSpec.model_validate(recipe_dict["data"] | {"sources": [{"path": shards / "text", "weight": 1}]})
    loader = Loader(data, processor, seed=0)
    ledger = Ledger(["text"])
    for batch in itertools.islice(loader, 12):
        ledger.add(batch.text_tokens, batch.image_tokens, batch.samples)
    assert ledger.samples[0] > 30 and ledger.image == [0] and ledger.tokens == sum(ledger.text)
    shortest = min(len(encode_sample(s, processor).token_ids) for s in ShardSource.from_dir(shards / "text"))
    few = data.model_copy(update={"max_sample_tokens": shortest + 40})
    loader, ledger = Loader(few, processor, seed=0), Ledger(["text"])
    packed = 0
    for batch in itertools.islice(loader, 6):
        ledger.add(batch.text_tokens, batch.image_tokens, batch.samples)
        packed += len(batch.ids_T)
    assert sum(loader.skipped.values()) > 0 and ledger.tokens == packed
