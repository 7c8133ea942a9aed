"""Average the weights of models that have a training stage in common, one tensor in memory at a time.

Two models of which one was trained on from the other, or both from a third, often lie in one basin of the loss: their
mean keeps much of what each knows and forgets less than the later one (Wortsman et al. 2022, "Model soups"). Whether
it does is to be measured: nothing about two directories tells.
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from mmvl.checkpoint import load_config, write_weights
from mmvl.json_files import read_json, write_json
from mmvl.quantize import copy_beside
from mmvl.weight_files import WeightFiles


def average_models(
    sources: Sequence[Path],
    directory: Path,
    shares: Sequence[float] | None = None,
    *,
    dtype: torch.dtype = torch.bfloat16,
    max_shard_bytes: int = 2 * 10**9,
) -> None:
    """Write the model whose every tensor is the sum over `sources` of share times tensor, added up in fp64.

    Quantised tensors count as what they stand for. Tokenizer, processor and other settings are those of the last one.

    Args:
        sources: two or more model directories. shares: of each, in all 1 (None: equal ones); a share may be negative,
            which leads away from that model. dtype: of what is written.

    Raises:
        FileNotFoundError, ValueError, OSError: one line that says what is wrong.
    """
    shares = [1 / len(sources)] * len(sources) if shares is None else list(shares)
    if len(sources) < 2:
        raise ValueError("an average takes two models or more")
    if len(shares) != len(sources):
        raise ValueError(f"{len(sources)} models need {len(sources)} shares, not {len(shares)}")
    if not all(map(math.isfinite, shares)) or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(
            f"the shares {', '.join(f'{share:g}' for share in shares)} add up to {sum(shares):g}, not to 1"
        )
    if directory.resolve() in [source.resolve() for source in sources]:
        raise ValueError(f"{directory} is one of the models itself; give another directory")
    configs = [load_config(source) for source in sources]
    with ExitStack() as stack:
        models = [stack.enter_context(WeightFiles(*pair)) for pair in zip(sources, configs, strict=True)]
        for source, model in zip(sources, models, strict=True):
            if odd := sorted(model.names.items() ^ models[-1].names.items()):
                raise ValueError(
                    f"{source} and {sources[-1]} are not of one shape: {odd[0][0]} differs, or only one has it"
                )

        def tensor(name: str) -> Tensor:
            total = sum(share * model.plain(name).double() for share, model in zip(shares, models, strict=True))
            if not total.isfinite().all():
                raise ValueError(f"{name} has values that are not finite")
            return total.to(dtype)

        layout = {name: (dtype, shape) for name, shape in models[-1].names.items()}
        write_weights(directory, layout, tensor, max_shard_bytes=max_shard_bytes)
    last = sources[-1]
    copy_beside(last, directory)
    config = read_json(last / "config.json")
    config.pop("quantization_config", None)
    write_json(directory / "config.json", config)
