"""The process group and the device of this rank: from torchrun, or alone."""

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


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
