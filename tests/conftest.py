"""What several test folders share: a tiny model directory with random weights, and a picture to ask it about."""

import functools
import gc
import http.server
import os
import threading
from pathlib import Path

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

# The files that take longest, the longest first. They begin first, and of two that run at once one ends early: so that
# none is left for the end of a run, where nothing else would run beside it.
LONGEST = (
    "training/test_parallel.py", "engine/test_ranks.py", "app/chat/test_browser.py", "benchmark/test_training.py",
    "kernels/test_lightning_attention.py", "training/test_kill.py", "app/test_readme_commands.py",
    "training/test_contrastive.py", "training/test_ranks.py", "kernels/test_experts_quantized.py",
    "app/batch/test_cluster.py", "training/test_train.py", "engine/test_graphs.py", "app/batch/test_kill.py",
    "app/test_bench.py", "kernels/test_experts_triton.py", "benchmark/test_run.py", "text_backbone/test_over_ranks.py",
    "mmvl/test_media.py", "app/batch/test_workers.py", "app/batch/test_memory.py", "app/server/test_server_drain.py",
    "app/server/test_server_limits.py", "app/server/test_server_media.py", "text_backbone/test_tensor_parallel.py",
    "kernels/test_paged_attention.py", "test_wheel.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """`LONGEST` first; the other files in their order."""
    place = {Path(__file__).parent / name: i for i, name in enumerate(LONGEST)}
    for path in place:
        assert path.is_file(), f"{__file__}: LONGEST names {path}, which is not there"
    items.sort(key=lambda item: place.get(item.path, len(place)))


def pytest_collection_finish():
    """What is imported by now stays: a collection of garbage that looks at all of it again takes 0.2 s each time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()  # libraries look at the end what is left of theirs


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


@pytest.fixture
def web():
    """web(folder) -> address of a server of that folder."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    servers = []

    def serve(folder) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()
