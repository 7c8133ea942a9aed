"""The loader: what a batch holds, exact resume, and the same batches with any number of processes."""

import itertools

import pytest
import torch

from mmvl.checkpoint import load_config
from mmvl.processor import Processor
from mmvl.training.loader import Loader
from mmvl.training.recipe import DataSpec


@pytest.fixture(scope="module")
def processor(tiny_model_dir):
    return Processor.from_pretrained(tiny_model_dir)


@pytest.fixture(scope="module")
def data(recipe_dict):
    return DataSpec.model_validate(recipe_dict["data"])


def same(a, b):
    return (
        torch.equal(a.ids_T, b.ids_T)
        and a.lengths == b.lengths
        and torch.equal(a.target_positions_L, b.target_positions_L)
        and (a.images is None) == (b.images is None)
        and (a.images is None or torch.equal(a.images.tiles_N3tt, b.images.tiles_N3tt))
    )


def take(loader, n):
    return list(itertools.islice(loader, n))


def test_a_batch_is_packed_and_its_targets_are_what_is_learned(data, processor, tiny_model_dir):
    image = load_config(tiny_model_dir).image_token_index
    seen = set()
    for batch in take(Loader(data, processor, seed=0), 6):
        assert sum(batch.lengths) == len(batch.ids_T) <= data.batch_tokens
        assert sum(batch.text_tokens) + sum(batch.image_tokens) == len(batch.ids_T)
        assert torch.equal(batch.image_positions_I, (batch.ids_T == image).nonzero()[:, 0])
        assert torch.equal(batch.targets_L, batch.ids_T[batch.target_positions_L + 1])
        starts = set(torch.tensor(batch.lengths).cumsum(0).tolist())
        assert not starts & set((batch.target_positions_L + 1).tolist()), "no document's first token is a target"
        for start, length in zip([0, *itertools.accumulate(batch.lengths)], batch.lengths, strict=False):
            inside = (batch.target_positions_L >= start) & (batch.target_positions_L < start + length)
            text = processor.decode(batch.targets_L[inside].tolist(), skip_special=False)
            if batch.source_L[inside].float().mean() == 0:
                assert text.startswith("a ") and text.endswith(" circle<end_of_sentence>")
            else:
                assert text.endswith("<end_of_document>")
            seen.add(int(batch.source_L[inside][0]))
    assert seen == {0, 1}


def test_tokens_follow_the_weights(data, processor):
    text = image = 0
    totals = [0, 0]
    for batch in take(Loader(data, processor, seed=0), 40):
        for i in range(2):
            totals[i] += batch.text_tokens[i] + batch.image_tokens[i]
        text, image = text + sum(batch.text_tokens), image + sum(batch.image_tokens)
    assert totals[0] / sum(totals) == pytest.approx(2 / 3, abs=0.05)
    assert image > 0 and text > 0


def test_resume_is_exact_at_any_batch(data, processor):
    whole = take(Loader(data, processor, seed=3), 14)
    for cut in (1, 4, 7):
        first = Loader(data, processor, seed=3)
        take(first, cut)
        rest = take(Loader(data, processor, seed=3, state=first.state), 14 - cut)
        assert all(same(a, b) for a, b in zip(whole[cut:], rest, strict=True))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more processes than cores, on purpose
def test_worker_processes_change_nothing(data, processor):
    alone = take(Loader(data, processor, seed=3), 9)
    start = Loader(data, processor, seed=3)
    take(start, 3)
    for workers in (2, 4):
        spread = Loader(data.model_copy(update={"workers": workers}), processor, seed=3)
        assert all(same(a, b) for a, b in zip(alone, take(spread, 9), strict=True))
        resumed = Loader(data.model_copy(update={"workers": workers}), processor, seed=3, state=start.state)
        assert all(same(a, b) for a, b in zip(alone[3:], take(resumed, 6), strict=True))


def test_another_seed_is_another_order(data, processor):
    a, b = (take(Loader(data, processor, seed=s), 1)[0] for s in (0, 1))
    assert not same(a, b)


def test_too_long_samples_are_counted(data, processor):
    data = data.model_copy(update={"sources": data.sources[1:]})
    shortest = min(min(b.lengths) for b in take(Loader(data, processor, seed=0), 8))
    longest = max(max(b.lengths) for b in take(Loader(data, processor, seed=0), 8))
    limit = (shortest + longest) // 2
    loader = Loader(data.model_copy(update={"max_sample_tokens": limit}), processor, seed=0)
    assert max(max(b.lengths) for b in take(loader, 8)) <= limit
    assert sum(loader.skipped.values()) > 0


def test_another_number_of_virtual_workers_is_refused(data, processor):
    loader = Loader(data, processor, seed=0)
    take(loader, 2)
    with pytest.raises(ValueError, match="virtual workers"):
        Loader(data.model_copy(update={"virtual_workers": 2}), processor, seed=0, state=loader.state)
