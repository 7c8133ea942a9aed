"""What several test folders share: a tiny model directory with random weights, and a picture to ask it about."""

import os

import pytest
import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

if not torch.cuda.is_available():
    # Triton's kernels then run on CPU tensors. Read when triton is imported, which mmvl does through timm.
    os.environ["TRITON_INTERPRET"] = "1"

from mmvl.chat_template import EOS, IMAGE, SPECIAL_TOKENS
from mmvl.checkpoint import save_model
from mmvl.config import VLConfig
from mmvl.model import VLModel
from mmvl.processor import Processor
from mmvl.text_backbone.config import TextConfig
from mmvl.vision.config import TilingConfig, VisionConfig

torch.set_num_threads(1)  # tiny tensors: threads cost more than they give

SENTENCES = [
    "what is the colour of the shape in the image?",
    "Is there a red circle, a blue triangle or a green rectangle? Yes, there is.",
    "naïve café — äöü ß, 日本語の文字, emoji 🙂🎉 and Ελληνικά",
]


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Tokenizer:
    """A byte-level BPE of about 300 tokens with the special tokens of the chat format."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory, tiny_tokenizer):
    """A whole model directory in the released layout: random weights, 3 layers, context 256, tiles of 28 pixels.

    Its head has more rows than its tokenizer has tokens, as the released model's has.
    """
    directory = tmp_path_factory.mktemp("tiny-model")
    vocab = tiny_tokenizer.get_vocab()
    text = TextConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        rotary_dim=4,
        vocab_size=len(vocab) + 32,
        intermediate_size=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        attn_type_list=(0, 0, 1),
        postnorm=True,
        max_position_embeddings=256,
        eos_token_id=vocab[EOS],
    )
    vision = VisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    pinpoints = ((28, 28), (28, 56), (56, 28), (56, 56))
    config = VLConfig(text, vision, image_token_index=vocab[IMAGE], image_grid_pinpoints=pinpoints)
    model = VLModel(config)
    model.init_weights(seed=0)
    save_model(model, directory)
    Processor(tiny_tokenizer, TilingConfig(tile=28, patch=14, grid_pinpoints=pinpoints)).save(directory)
    return directory


@pytest.fixture(scope="session")
def picture_path(tmp_path_factory):
    """A PNG file, 60 x 40 pixels: a red rectangle on blue."""
    path = tmp_path_factory.mktemp("pictures") / "red.png"
    picture = Image.new("RGB", (60, 40), "blue")
    ImageDraw.Draw(picture).rectangle((10, 10, 40, 30), fill="red")
    picture.save(path)
    return path
