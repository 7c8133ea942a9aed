"""The tokenizer stage: byte-level BPE trained on the texts of some shards, with the released special tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.progress import track

from mmvl.chat_template import SPECIAL_TOKENS
from mmvl.data.shards import ShardSource
from mmvl.training.recipe import TokenizerRecipe

# As GPT-4's splitting rule, but every digit stands alone (numbers are read digit by digit) and a word may not cross a
# line break. Source of the idea: tiktoken's cl100k pattern; single digits: LLaMA, arXiv 2302.13971 section 2.1.
SPLIT = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
# The words of the chat template stand in every conversation, so they are worth merges of their own.
TEMPLATE_TEXT = ("user name=user\n", "ai name=assistant\n", "system ai_setting=assistant\n")


def sample_texts(sample: dict) -> Iterator[str]:
    """The texts of one sample's JSON, whatever its kind."""
    if "text" in sample:
        yield sample["text"]
    for message in sample.get("messages", ()):
        for part in message["content"]:
            if part["type"] == "text":
                yield part["text"]


def _texts(recipe: TokenizerRecipe) -> Iterator[str]:
    weights = sum(s.weight for s in recipe.sources)
    for source in recipe.sources:
        left = int(recipe.max_bytes * source.weight / weights)
        for sample in ShardSource.from_dir(source.path):
            for text in sample_texts(sample.json):
                yield text
                left -= len(text.encode())
            if left <= 0:
                break
    for _ in range(2000):
        yield from TEMPLATE_TEXT


def train_tokenizer(recipe: TokenizerRecipe) -> Path:
    """Train and save `tokenizer.json` into `recipe.out`.

    The same shards and settings give the same files. Ids: special tokens first, then bytes, then merges.

    Raises:
        ValueError: the texts hold too few distinct pieces for `vocab_size`.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    texts = list(track(_texts(recipe), description="reading texts", transient=True))
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != recipe.vocab_size:
        raise ValueError(
            f"the texts give {tokenizer.get_vocab_size()} tokens, vocab_size asks for {recipe.vocab_size}; "
            "add text or lower it"
        )
    recipe.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(recipe.out / "tokenizer.json"))
    return recipe.out
