"""The mixture: exact shares of tokens, no repetition within an epoch, exact resuming, bad samples counted."""

import json
from collections import Counter
from dataclasses import dataclass
from itertools import islice

import pytest

from mmvl.data.mixture import Mixture


@dataclass(frozen=True)
class Item:
    name: str
    num_tokens: int
    num_tiles: int = 0


def items(name: str, n: int, longest: int) -> list[Item]:
    return [Item(f"{name}{i}", 1 + (i * 37) % longest) for i in range(n)]


SOURCES = {"long": items("long", 50, 900), "short": items("short", 400, 20)}
WEIGHTS = {"long": 3, "short": 1}


def test_shares_are_of_tokens():
    mixture = Mixture(SOURCES, WEIGHTS, seed=1)
    for _ in islice(mixture, 20_000):
        pass
    share = mixture.tokens["long"] / sum(mixture.tokens.values())
    assert abs(share - 0.75) < 0.002
    assert sum(mixture.visits.values()) == 20_000


def test_every_sample_once_before_any_twice():
    mixture = Mixture({"a": SOURCES["long"]}, {"a": 1}, seed=5)
    names = [draw.item.name for draw in islice(mixture, 100)]
    assert Counter(names[:50]) == Counter(names[50:]) == Counter(item.name for item in SOURCES["long"])
    assert names[:50] != names[50:]


def test_parts_share_a_source_without_overlap():
    seen = []
    for index in range(4):
        mixture = Mixture({"a": SOURCES["short"]}, {"a": 1}, seed=5, part=(index, 4))
        seen += [draw.item.name for draw in islice(mixture, 100)]
    assert Counter(seen) == Counter(item.name for item in SOURCES["short"])


def test_resumes_exactly_through_json():
    whole = Mixture(SOURCES, WEIGHTS, seed=2)
    expected = [draw.ref for draw in islice(whole, 700)]
    first = Mixture(SOURCES, WEIGHTS, seed=2)
    begun = [draw.ref for draw in islice(first, 311)]
    second = Mixture(SOURCES, WEIGHTS, seed=2)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert begun + [draw.ref for draw in islice(second, 700 - 311)] == expected
    assert second.state_dict() == whole.state_dict()


def test_order_of_the_sources_in_the_recipe_changes_nothing():
    turned = Mixture(dict(reversed(SOURCES.items())), dict(reversed(WEIGHTS.items())), seed=2)
    assert [d.ref for d in islice(turned, 99)] == [d.ref for d in islice(Mixture(SOURCES, WEIGHTS, seed=2), 99)]


def test_resuming_on_other_data_or_seed_is_refused():
    state = Mixture(SOURCES, WEIGHTS, seed=2).state_dict()
    with pytest.raises(ValueError, match="sizes was"):
        Mixture({**SOURCES, "long": SOURCES["long"][:-1]}, WEIGHTS, seed=2).load_state_dict(state)
    with pytest.raises(ValueError, match="seed was 2 and now is 3"):
        Mixture(SOURCES, WEIGHTS, seed=3).load_state_dict(state)


def test_bad_samples_are_skipped_counted_and_named():
    def encode(item):
        if item.name.endswith("7"):
            raise ValueError(f"{item.name} is broken")
        return item

    mixture = Mixture({"a": SOURCES["short"]}, {"a": 1}, encode=encode)
    names = [draw.item.name for draw in islice(mixture, 360)]
    assert len(set(names)) == 360 and not any(name.endswith("7") for name in names)
    assert mixture.skipped["a"] == sum(item.name.endswith("7") for item in SOURCES["short"])
    assert "is broken" in mixture.problems[-1]


def test_bad_samples_in_a_row_stop_the_run():
    def encode(item):
        raise ValueError("nothing fits")

    mixture = Mixture({"a": SOURCES["short"]}, {"a": 1}, encode=encode, max_bad_in_row=5)
    with pytest.raises(ValueError, match="'a': 5 unusable samples in a row.*nothing fits"):
        mixture.draw()


def test_programming_errors_are_not_swallowed():
    mixture = Mixture({"a": SOURCES["short"]}, {"a": 1}, encode=lambda item: item.no_such_attribute)
    with pytest.raises(AttributeError):
        mixture.draw()


@pytest.mark.parametrize(
    ("weights", "message"),
    [({"long": 1}, "unmatched: \\['short'\\]"), ({"long": 1, "short": 0}, "weight of 'short' is 0")],
)
def test_bad_weights(weights, message):
    with pytest.raises(ValueError, match=message):
        Mixture(SOURCES, weights)
