"""`mmvl bench ranks`: the decoder over several GPUs. torchrun starts it; alone it measures one."""

import os
from pathlib import Path
from typing import Annotated

import typer

from mmvl.app.errors import usage
from mmvl.app.options import SequenceParallel, whole_numbers


def bench_ranks(
    shape: Annotated[str, typer.Option(metavar="slice|whole|tiny", help="8 full-width layers, all 80, or a toy.")],
    experts: Annotated[
        str | None, typer.Option(metavar="int8|int4|fp8", help="Quantised experts.  [default: bf16]")
    ] = None,
    lengths: Annotated[str, typer.Option(metavar="N,N", help="Tokens to prefill.")] = "8192,32768",
    sequences: Annotated[str, typer.Option(metavar="N,N", help="Sequences to decode.")] = "1,8,64",
    sequence_parallel: SequenceParallel = False,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Written after every step.")] = None,
) -> None:
    """Prefill and decode with random weights over all ranks that torchrun started, with and without sending."""
    import torch
    import torch.distributed as dist

    from mmvl.benchmark.engine_contestants import model_of
    from mmvl.benchmark.ranks import run

    with usage():
        model_of(None, shape, None, experts)
    many, several = whole_numbers("--lengths", lengths), whole_numbers("--sequences", sequences)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        run(shape, experts, many, several, json_file, lambda what: print(what, flush=True), sequence_parallel)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
