"""The process of a rank: its command line, process group, device and signals; from torchrun, or alone."""

import datetime
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist
import yaml

from shards.config import ConfigError, choices_of
from shards.dataset import BadSample
from shards.lease import LeaseHeld, LeaseLost
from shards.reader import StateMismatch
from shards.run import RunMismatch
from shards.store import StorageError
from trainer.config import CONF, GROUPS, load
from trainer.data import DataError
from trainer.model.parallelize import ParallelError
from trainer.model.wan import CheckpointError
from trainer.state import CheckpointFailed

CONFIGURATION, NOT_FINITE, STORAGE = 3, 4, 5  # exit codes; 3 and 5 as the engine's


class NonFiniteLoss(FloatingPointError):
    """The loss is not a number; the last checkpoint is from before."""


# What ends a run with its reason alone. Anything else is a fault of the code and keeps its traceback.
EXITS: dict[type[Exception], int] = {
    **dict.fromkeys((ConfigError, ParallelError, CheckpointError, DataError, FileNotFoundError), CONFIGURATION),
    **dict.fromkeys((StateMismatch, RunMismatch, BadSample), CONFIGURATION),
    **dict.fromkeys((CheckpointFailed, StorageError, LeaseHeld, LeaseLost), STORAGE),
    NonFiniteLoss: NOT_FINITE,
}


def command(verb: str, doc: str | None, run: Callable[[Any], object]) -> int:
    """`python -m trainer.<verb> key=value ...`: runs the verb on its options and returns the exit code.

    `--help` says what there is, `--show` prints the options that the words come to and runs nothing.
    """
    words = sys.argv[1:]
    if {"-h", "--help"} & set(words):
        print(f"{doc}\nEvery key stands in docs/training_options.md. Groups that set several at once:")
        print("\n".join(f"  {name}= {' | '.join(c)}" for name, c in choices_of(CONF, GROUPS[verb]).items()))
        return 0
    try:
        options = load(verb, [word for word in words if word != "--show"])
        if "--show" in words:
            print(yaml.safe_dump(asdict(options), sort_keys=False), end="")
        else:
            run(options)
    except tuple(EXITS) as error:
        rank = f" (rank {os.environ['RANK']})" if "RANK" in os.environ else ""
        print(f"trainer.{verb}{rank}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return next(code for kind, code in EXITS.items() if isinstance(error, kind))
    return 0


class Stop:
    """SIGTERM and Ctrl-C ask for a checkpoint and an orderly end after the current step; a second Ctrl-C ends at once.

    A second SIGTERM changes nothing: torchrun passes on the one that a scheduler has sent to every process already.
    Outside the main thread (a Ray worker) signals cannot be caught and are left alone.
    """

    def __init__(self) -> None:
        self.asked = False
        main = threading.current_thread() is threading.main_thread()
        self.previous = {s: signal.signal(s, self._ask) for s in (signal.SIGTERM, signal.SIGINT) if main}

    def _ask(self, number: int, frame: object) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def restore(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def device_of_this_rank() -> torch.device:
    """cuda:<LOCAL_RANK> where there is CUDA, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device


@contextmanager
def distributed(timeout_s: float = 1800.0) -> Iterator[None]:
    """A process group for the length of the block: torchrun's, or one of a single rank. One that exists is kept.

    timeout_s ends a collective that a dead rank left hanging.
    """
    if dist.is_initialized():
        yield
        return
    cuda = torch.cuda.is_available()
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    timeout = datetime.timedelta(seconds=timeout_s)
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=timeout, device_id=device_of_this_rank() if cuda else None)
    else:
        dist.init_process_group(backend, timeout=timeout, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
