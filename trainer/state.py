"""The training state on disk: sharded, asynchronous, resumable on another number of ranks.

<output>/checkpoints/step-00000100/   torch.distributed.checkpoint; complete once it holds `.metadata`, written last

Randomness needs no state: everything random follows from the seed and the number of the sample (trainer.data).
A half-written checkpoint is never resumed from and never replaces a complete one.
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule

from trainer.strategy import DeepSpeed, Torch

STEP = re.compile(r"^step-(\d{8})$")
TRAINED = StateDictOptions(ignore_frozen_params=True)


class CheckpointFailed(RuntimeError):
    """A checkpoint could not be written or read."""


@dataclass
class Progress:
    """Where training stands: steps taken, the loader's state, and the hash of the training units."""

    step: int = 0
    loader: dict[str, Any] = field(default_factory=dict)
    units: str = ""


class Ema:
    """Exponential moving average of the trained parameters, sharded as they are, float32."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.model = decay, model
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.shadow = {n: p.detach().clone() for n, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimiser step number `step` (from 0). The decay ramps up as (1 + step) / (10 + step)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.shadow.values()), [p.detach() for p in self.parameters.values()], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averaged and the live weights; `averaged` calls it in pairs."""
        for name, parameter in self.parameters.items():
            live = parameter.detach().clone()
            parameter.copy_(self.shadow[name])
            self.shadow[name].copy_(live)
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # the root stays gathered after a forward pass: that copy is of the other weights


@contextmanager
def averaged(ema: Ema | None) -> Iterator[None]:
    """The model holds the averaged weights inside the block."""
    if ema:
        ema.swap()
    try:
        yield
    finally:
        if ema:
            ema.swap()


class Checkpoints:
    """Saves and restores one run. At most one save is in flight; its failure surfaces at the next call."""

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep
        self.pending: tuple[int, Any] | None = None
        self.group = dist.new_group(backend="gloo")  # its own: the background save must not meet training's collectives

    def complete(self) -> list[int]:
        """Steps of the checkpoints that can be resumed from, oldest first."""
        found = (STEP.match(p.name) for p in self.folder.glob("step-*") if (p / ".metadata").is_file())
        return sorted(int(m[1]) for m in found if m)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def save(self, strategy: Torch | DeepSpeed, ema: Ema | None, progress: Progress, wait: bool = False) -> None:
        """Write the state in the background (`wait`: before returning). Raises CheckpointFailed."""
        self.finish()
        path = self.path(progress.step)
        if (path / ".metadata").is_file():
            return
        if isinstance(strategy, DeepSpeed):
            self._attempt(progress.step, lambda: _save_deepspeed(strategy, path, progress))
        else:
            state = _state(strategy, ema, progress)
            started = self._attempt(
                progress.step, lambda: dcp.async_save(state, checkpoint_id=path, process_group=self.group)
            )
            self.pending = (progress.step, started)
            if wait:
                self.finish()
        self._prune()

    def finish(self) -> None:
        """Wait for the save in flight. Raises CheckpointFailed when it did not land."""
        if self.pending:
            (step, future), self.pending = self.pending, None
            self._attempt(step, future.result)
            self._prune()

    def restore(self, strategy: Torch | DeepSpeed, ema: Ema | None) -> Progress | None:
        """Load the newest complete checkpoint in place; None when there is none."""
        steps = self.complete()
        if not steps:
            return None
        path = self.path(steps[-1])
        if isinstance(strategy, DeepSpeed):
            return _load_deepspeed(strategy, path)
        state = _state(strategy, ema, Progress())
        try:
            dcp.load(state, checkpoint_id=path, process_group=self.group)
        except (Exception, dcp.CheckpointException) as error:
            raise CheckpointFailed(
                f"{path} cannot be resumed from ({_reason(error)}). Same model and optimizer.trainable? Delete the "
                "folder to fall back to the checkpoint before it"
            ) from error
        set_model_state_dict(strategy.module, state["model"], options=StateDictOptions(strict=False))
        set_optimizer_state_dict(strategy.module, strategy.optimizer, state["optimizer"], options=TRAINED)
        return Progress(**json.loads(state["progress"]))

    def _attempt(self, step: int, action: Any) -> Any:
        try:
            return action()
        except (Exception, dcp.CheckpointException) as error:  # the latter is a BaseException
            steps = [s for s in self.complete() if s != step]
            free = shutil.disk_usage(self.folder).free / 2**30 if self.folder.is_dir() else 0.0
            raise CheckpointFailed(
                f"the checkpoint of step {step} was not written ({_reason(error)}; {free:.2f} GiB are free). Free "
                f"space under {self.folder} and start again: training resumes from "
                + (f"step {steps[-1]}" if steps else "the beginning")
            ) from error

    def _prune(self) -> None:
        """Delete all but the newest `keep` complete checkpoints; rank 0's work, no collective."""
        if dist.get_rank() == 0:
            for step in self.complete()[: -self.keep]:
                shutil.rmtree(self.path(step), ignore_errors=True)


def _reason(error: BaseException) -> str:
    """One line; a CheckpointException holds what each rank met."""
    if isinstance(error, dcp.CheckpointException):
        return "; ".join(f"rank {rank}: {_reason(failure[0])}" for rank, failure in error.failures.items())
    return f"{type(error).__name__}: {error}"


def _state(strategy: Torch, ema: Ema | None, progress: Progress) -> dict[str, Any]:
    state: dict[str, Any] = {
        "model": get_model_state_dict(strategy.module, options=TRAINED),
        "optimizer": get_optimizer_state_dict(strategy.module, strategy.optimizer, options=TRAINED),
        "progress": json.dumps(asdict(progress)),
    }
    if ema:
        state["ema"] = dict(ema.shadow)
    return state


def _save_deepspeed(strategy: DeepSpeed, path: Path, progress: Progress) -> None:
    strategy.engine.save_checkpoint(str(path), tag="state", client_state={"progress": asdict(progress)})
    dist.barrier()
    if dist.get_rank() == 0:
        (path / ".metadata").write_text("deepspeed\n")
    dist.barrier()


def _load_deepspeed(strategy: DeepSpeed, path: Path) -> Progress:
    found, client = strategy.engine.load_checkpoint(str(path), tag="state")
    if found is None:
        raise CheckpointFailed(f"{path} holds no DeepSpeed state of this configuration")
    return Progress(**client["progress"])
