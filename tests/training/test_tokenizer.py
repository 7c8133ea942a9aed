"""The tokenizer stage: lossless, digit by digit, reproducible, with the special tokens of the chat format."""

import pytest
import yaml

from mmvl.chat_template import SPECIAL_TOKENS
from mmvl.data.shards import ShardWriter
from mmvl.training.train import load_tokenizer, train


@pytest.fixture
def recipe(tmp_path):
    text = "The total is 1,234.50 EUR on 2024-05-17.\nTwo\n\n  indented lines - naive, then: what is there? "
    with ShardWriter(tmp_path / "text", "text") as writer:
        for i in range(50):
            writer.write({"source": "t", "kind": "text", "text": text + f"word{i} and more words of many kinds"})
    path = tmp_path / "tokenizer.yaml"
    settings = {"stage": "tokenizer", "name": "tok", "out": str(tmp_path / "out"), "vocab_size": 330}
    sources = [{"path": str(tmp_path / "text"), "weight": 1}]
    path.write_text(yaml.safe_dump(settings | {"max_bytes": 10**6, "sources": sources}))
    return path


def test_tokenizer_stage(recipe, tmp_path):
    tokenizer = load_tokenizer(train(recipe))
    assert tokenizer.get_vocab_size() == 330
    assert [tokenizer.token_to_id(t) for t in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))
    for text in ("The total is 99.", "  a\n\n b\t\u00e9\u4e2d\U0001f642 1234", "user name=user\n", ""):
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert tokenizer.encode("2024").tokens == ["2", "0", "2", "4"]
    assert len(tokenizer.encode("user name=user\n").ids) <= 4  # the template's words have merges
    again = train(recipe, [f"out={tmp_path / 'again'}"])
    assert (again / "tokenizer.json").read_bytes() == (tmp_path / "out" / "tokenizer.json").read_bytes()


def test_too_large_a_vocabulary_is_refused(recipe):
    with pytest.raises(ValueError, match="vocab_size asks for 5000"):
        train(recipe, ["vocab_size=5000"])
