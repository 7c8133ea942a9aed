"""Processes of one start, as torchrun makes them: forked from a server that has imported what is slow, once.

Every test file that trains over ranks uses it. The server starts with the first process and ends with the tests.
"""

import atexit
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import random
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([
    "deepspeed.runtime.zero.muon.muon_optimizer", "matplotlib.pyplot", "mmvl.app.cli", "mmvl.training.contrastive",
    "mmvl.training.train", "open_clip.loss", "torch.utils.tensorboard", "transformers.models.minimax.modeling_minimax",
])  # fmt: skip


def free_port() -> int:
    """One that nobody is likely to take until it is used: no outgoing connection is given one below 32768."""
    while True:
        port = random.SystemRandom().randrange(15_000, 32_000)
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port


def start_ranks(function: Callable, world: int, *arguments) -> list[BaseProcess]:
    """Begin `function(*arguments)` in `world` processes that find each other. One that fails ends with 1.

    The function is one of a module that can be imported; the environment is the test's.
    """
    port = free_port()
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read by the server when it imports
    processes = []
    for rank in range(world):
        environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        processes.append(SERVER.Process(target=_run, args=(function, arguments, environment)))
        processes[-1].start()
        atexit.register(lambda p=processes[-1]: p.is_alive() and p.kill())  # a test that failed waits for none
    return processes


def finish(processes: Sequence[BaseProcess], timeout: float = 200) -> None:
    """Wait for all of them. Raises AssertionError, and ends the others, as soon as one fails or time is up."""
    deadline = time.monotonic() + timeout
    while any(p.is_alive() for p in processes) and not any(p.exitcode for p in processes):
        multiprocessing.connection.wait([p.sentinel for p in processes if p.is_alive()], deadline - time.monotonic())
        if time.monotonic() > deadline:
            break
    codes = [p.exitcode for p in processes]
    for p in processes:
        p.kill()
        p.join()
    assert not any(codes) and None not in codes, f"processes ended with {codes}; what they said is above"


def run_ranks(function: Callable, world: int, *arguments, timeout: float = 200) -> None:
    """`function(*arguments)` in `world` processes, to its end; AssertionError if one of them fails."""
    finish(start_ranks(function, world, *arguments), timeout)


def _run(function: Callable, arguments: tuple, environment: dict[str, str]) -> None:
    os.environ |= environment
    import torch

    torch.set_num_threads(1)
    try:
        function(*arguments)
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # a process group of which others wait is not to be taken down in order
    os._exit(0)
