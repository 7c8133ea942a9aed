"""Sampling settings: what is taken, and what is refused with one line."""

import pytest

from mmvl.engine import SamplingParams


def test_defaults_are_greedy():
    params = SamplingParams()
    assert params.temperature == 0 and params.repetition_penalty == 1 and params.stop == () and params.seed is None


def test_one_stop_string_is_a_list_of_one():
    assert SamplingParams(stop="\n").stop == ("\n",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")
    assert SamplingParams(stop=None).stop == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 0},
        {"max_tokens": 1.5},
        {"max_tokens": True},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 2},
        {"repetition_penalty": 0},
        {"seed": -1},
        {"seed": 2**63},
        {"stop": [""]},
        {"stop": [1]},
        {"presence_penalty": float("inf")},
        {"frequency_penalty": "much"},
        {"stop_token_ids": [-1]},
        {"stop_token_ids": ["</s>"]},
        {"ignore_eos": 1},
        {"min_tokens": -1},
        {"logprobs": 21},
        {"logprobs": True},
        {"logit_mask": "json"},
    ],
)
def test_wrong_values_are_named_in_one_line(wrong):
    [name] = wrong
    with pytest.raises(ValueError, match=name) as caught:
        SamplingParams.from_kwargs(**wrong)
    assert "\n" not in str(caught.value)


def test_unknown_setting_lists_the_known():
    with pytest.raises(ValueError, match=r"'temprature'.*temperature"):
        SamplingParams.from_kwargs(temprature=1.0)
