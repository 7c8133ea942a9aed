"""The loader: what a batch holds, exact resume, and the same batches with any number of processes."""

import itertools
import logging
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from mmvl.checkpoint import load_config
from mmvl.data.manifest import make_manifest
from mmvl.data.shards import ShardSource, ShardWriter
from mmvl.processor import Processor
from mmvl.training.batch import Batch, Example
from mmvl.training.loader import Loader, encode_pair, encode_sample, with_the_trainer
from mmvl.training.recipe import DataSpec
from tests.waiting import wait_until


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


def over(data, *sources, **changes):
    """The same data section over other sources: (directory, weight) each."""
    specs = [data.sources[0].model_copy(update={"path": path, "weight": w}) for path, w in sources]
    return data.model_copy(update={"sources": specs, **changes})


def test_an_interleaved_document_is_learned_whole_but_for_its_pictures(more_shards, processor):
    prompt = encode_sample(ShardSource.from_dir(more_shards / "pages")[0], processor)
    assert len(prompt.images) == 2
    assert [i == processor.image_id for i in prompt.token_ids] == [not learned for learned in prompt.loss_mask]
    assert prompt.token_ids.count(processor.image_id) == sum(image.num_tokens for image in prompt.images)
    words = processor.encode_text("the red ")
    assert prompt.token_ids[: len(words)] == words and prompt.token_ids[-1] == processor.end_of_document_id


def test_of_a_preference_pair_the_last_answer_alone_is_learned(more_shards, processor):
    source = ShardSource.from_dir(more_shards / "pairs")
    for number in range(4):
        sample = source[number]
        chosen, rejected = encode_pair(sample, processor)
        for prompt, name in ((chosen, "chosen"), (rejected, "rejected")):
            learned = [t for t, mask in zip(prompt.token_ids, prompt.loss_mask, strict=True) if mask]
            assert processor.decode(learned, skip_special=False) == sample.json[name][0]["text"] + "<end_of_sentence>"
        shared = prompt.loss_mask.index(True)
        assert chosen.token_ids[:shared] == rejected.token_ids[:shared]
        assert len(chosen.images) == len(rejected.images) == number % 2
    with pytest.raises(ValueError, match="preference pair"):
        encode_sample(source[0], processor)


def test_pairs_lie_side_by_side_and_resume_exactly(data, more_shards, processor):
    pairs = over(data, (more_shards / "pairs", 1.0))
    loader = Loader(pairs, processor, seed=0, pairs=True)
    batches = take(loader, 8)
    source = {f"pairs/{s.key}": s for s in ShardSource.from_dir(more_shards / "pairs")}
    for batch in batches:
        assert batch.pairs and len(batch.lengths) == 2 * len(batch.keys) == 2 * sum(batch.samples)
        for i, key in enumerate(batch.keys):
            for document, name in ((2 * i, "chosen"), (2 * i + 1, "rejected")):
                said = processor.decode(batch.targets_L[batch.document_L == document].tolist())
                assert said == source[key].json[name][0]["text"]
    first = Loader(pairs, processor, seed=0, pairs=True)
    take(first, 3)
    again = take(Loader(pairs, processor, seed=0, pairs=True, state=first.state), 5)
    assert all(same(a, b) and a.keys == b.keys for a, b in zip(batches[3:], again, strict=True))


def test_kinds_do_not_mix_and_what_is_not_kept_is_not_counted(data, more_shards, shards, processor):
    with pytest.raises(ValueError, match="unusable samples in a row.*preference pair"):
        take(Loader(over(data, (more_shards / "pairs", 1.0)), processor, seed=0), 1)
    with pytest.raises(ValueError, match="unusable samples in a row.*learns from pairs"):
        take(Loader(over(data, (shards / "text", 1.0)), processor, seed=0, pairs=True), 1)
    loader = Loader(over(data, (more_shards / "pairs", 1.0)), processor, seed=0, pairs=True, keep=_even)
    keys = {key for batch in take(loader, 12) for key in batch.keys}
    assert len(keys) == 12 and all(map(_even, keys)) and loader.skipped == {}
    one = Example(encode_sample(ShardSource.from_dir(shards / "text")[0], processor), 0)
    pair = encode_pair(ShardSource.from_dir(more_shards / "pairs")[0], processor)
    with pytest.raises(ValueError, match="not both"):
        Batch.collate([one, Example(pair[0], 0, pair[1])], 1, processor.image_id)


def _even(key: str) -> bool:
    return int(key[-1]) % 2 == 0


def test_shares_go_over_from_one_mixture_to_the_other(data, shards, processor):
    changes = {"transition_tokens": 12_000}
    blend = over(data, (shards / "colours", 0.0), (shards / "text", 1.0), **changes)
    sources = [s.model_copy(update={"weight_before": w}) for s, w in zip(blend.sources, (1.0, 0.0), strict=True)]
    blend = blend.model_copy(update={"sources": sources})
    batches, totals = iter(Loader(blend, processor, seed=0)), torch.zeros(2)
    while totals.sum() < 11_000:
        batch = next(batches)
        totals += torch.tensor(batch.text_tokens) + torch.tensor(batch.image_tokens)
    assert abs(totals[0] / totals.sum() - (1 - 11 / 24)) < 0.06  # the mean of a line from 1 to 1/12
    for _ in range(12):
        batch = next(batches)
    assert batch.samples[0] == 0  # faded out
    first = Loader(blend, processor, seed=0)
    take(first, 7)
    rest = take(Loader(blend, processor, seed=0, state=first.state), 6)
    assert all(same(a, b) for a, b in zip(take(Loader(blend, processor, seed=0), 13)[7:], rest, strict=True))


def test_padding_of_rows_of_a_fixed_length_is_little(data, shards, processor):
    """Three percent of 2,000 tokens are a sample's length here; eight open rows find room for nearly all."""
    loader = Loader(data.model_copy(update={"batch_tokens": 2000, "batch_tiles": 400, "open_rows": 8}), processor, 0)
    batches = take(loader, 40)
    # what a virtual worker has closed is what it has given: the measure is that of the batches seen
    assert loader.fill == pytest.approx(sum(len(b.ids_T) for b in batches) / (40 * 2000))
    assert 1 - loader.fill < 0.03


def test_damage_is_named_while_training_goes_on(data, shards, processor, tmp_path):
    shutil.copytree(shards / "colours", tmp_path / "colours")
    with ShardWriter(tmp_path / "colours", "bad") as writer:
        picture, answer = {"type": "image", "file": "0.png"}, {"type": "text", "text": "a"}
        turns = [{"role": "user", "content": [picture]}, {"role": "assistant", "content": [answer]}]
        key = writer.write({"source": "bad", "kind": "caption", "messages": turns}, {"0.png": b"no picture"})
    loader = Loader(over(data, (tmp_path / "colours", 1.0)), processor, seed=0)
    take(loader, 12)
    news = loader.take_news()
    assert loader.skipped["colours"] == len(news) >= 1
    assert key in news[0] and "not an image" in news[0]
    assert loader.take_news() == []


@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_cannot_be_used_end_it_with_one_line(data, processor, workers, tmp_path):
    with ShardWriter(tmp_path / "bad", "bad") as writer:
        for _ in range(3):
            record = {"source": "bad", "kind": "interleaved", "content": [{"type": "image", "file": "0.png"}]}
            writer.write(record, {"0.png": b"no picture"})
    spoilt = over(data, (tmp_path / "bad", 1.0)).model_copy(update={"workers": workers})
    before = set(multiprocessing.active_children())
    with pytest.raises(ValueError, match="source 'bad': 100 unusable samples in a row, the last: sample bad") as e:
        take(Loader(spoilt, processor, seed=0), 1)
    assert "\n" not in str(e.value) and "Traceback" not in str(e.value)
    assert set(multiprocessing.active_children()) <= before


def test_its_processes_end_whoever_holds_the_iterator(data, processor, tmp_path):
    """They leave SIGTERM to the trainer; one that is left over would be waited for without end when Python exits."""
    before = set(multiprocessing.active_children())
    batches = iter(Loader(data.model_copy(update={"workers": 1}), processor, seed=0))
    next(batches)
    assert set(multiprocessing.active_children()) > before
    batches.close()
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stall_is_reported_while_it_lasts(data, processor, workers, monkeypatch, caplog):
    def slow(sample, processor):
        time.sleep(0.03)
        return encode_sample(sample, processor)

    monkeypatch.setattr("mmvl.training.loader.encode_sample", slow)
    changes = {"stall_seconds": 0.02, "workers": workers, "batch_tokens": 80, "max_sample_tokens": 60}
    with caplog.at_level(logging.WARNING):
        loader = Loader(data.model_copy(update=changes), processor, seed=0)
        take(loader, 1)
    during, after = loader.take_news()[:2]
    assert "stall: no batch for 0.02 s: process 0 (virtual worker 0) is at sample" in during
    assert "of colours" in during or "of text" in during
    assert "the batch came after" in after and "loader stalls" in caplog.text


def test_a_source_by_url_is_fetched_before_training(data, shards, processor, tmp_path, web):
    folder = shutil.copytree(shards / "colours", tmp_path / "served" / "colours")
    make_manifest(folder)
    local = over(data, (shards / "colours", 1.0))
    remote = over(data, (tmp_path / "cache" / "colours", 1.0))
    spec = remote.sources[0].model_copy(update={"url": f"{web(tmp_path / 'served')}/colours"})
    remote = remote.model_copy(update={"sources": [spec]})
    assert all(same(a, b) for a, b in zip(take(Loader(local, processor, 0), 4), take(Loader(remote, processor, 0), 4),
                                          strict=True))  # fmt: skip


def _worker_of_a_killed_trainer(started):
    """A trainer with one worker, which waits for a lock that nobody releases."""

    def work():
        with_the_trainer(0)
        started.put(os.getpid())
        lock = multiprocessing.Lock()
        lock.acquire()
        lock.acquire()

    multiprocessing.get_context("fork").Process(target=work).start()
    time.sleep(60)


def test_workers_end_with_a_trainer_that_was_killed():
    context = multiprocessing.get_context("fork")
    started = context.Queue()
    trainer = context.Process(target=_worker_of_a_killed_trainer, args=(started,))
    trainer.start()
    worker = started.get(timeout=20)
    trainer.kill()
    trainer.join()
    status = Path(f"/proc/{worker}/stat")
    wait_until(lambda: not status.exists() or status.read_text().split()[2] == "Z")
