"""Train the world generator.

python -m trainer.train shards=out/ model=tiny experiment=stage1
torchrun --nproc-per-node 8 -m trainer.train shards=... model=phantom_wan_14b experiment=stage1 parallel=fsdp
"""

import hashlib
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from shards.reader import Loader, StateMismatch
from trainer.config import TrainOptions
from trainer.data import HeldOutSet, TrainingSample, TrainingStream, chosen_pairs, split_units, stack
from trainer.encode import open_clips
from trainer.export import export
from trainer.flow import TIMESTEPS, add_noise, velocity_loss
from trainer.launch import NonFiniteLoss, Stop, command, device_of_this_rank, distributed
from trainer.meter import Log, Meter, flops
from trainer.model.build import build_generator
from trainer.model.parallelize import Grid, make_grid
from trainer.sample import sample_units
from trainer.state import Checkpoints, Ema, Progress, averaged
from trainer.strategy import make_strategy, world_mean


def predict(model: torch.nn.Module, batch: TrainingSample, branches: int, dtype: torch.dtype) -> Tensor:
    """The velocity of a batch at its own sigma; latents and text in the compute dtype, the timestep in float32."""
    noisy = add_noise(batch.clean, batch.noise, batch.sigma)
    return model(
        noisy.to(dtype),
        batch.sigma * TIMESTEPS,
        batch.text.to(dtype),
        batch.geometry.to(dtype),
        batch.references.to(dtype),
        branches,
    )


def batch_loss(model: torch.nn.Module, batch: TrainingSample, branches: int, dtype: torch.dtype) -> Tensor:
    """Mean over branches and samples of the flow-matching loss on the video latents."""
    return velocity_loss(predict(model, batch, branches, dtype), batch.clean, batch.noise, batch.weight).mean()


def train(options: TrainOptions) -> dict[str, float]:
    """The whole run on this rank; every rank calls it. Returns the values of the last step and evaluation."""
    device = device_of_this_rank()
    with distributed(options.parallel.timeout_s):
        run = Run(options, device)
        try:
            run.loop()
        finally:
            run.close()
        return run.values


class Run:
    """One training run on one rank: built by `__init__`, driven by `loop`."""

    def __init__(self, options: TrainOptions, device: torch.device):
        self.options, self.device, self.output = options, device, Path(options.output)
        data, loop = options.data, options.loop
        self.grid = make_grid(options.parallel, data.branches, device.type)
        self.dtype = options.parallel.dtype
        self.read, self.dataset = open_clips(options.shards, options.latents, options.model, data, device)
        self.chosen = chosen_pairs(self.dataset, data)
        self.training, self.held_out = split_units(self.chosen, data.branches, data.held_out)
        model = build_generator(
            options.model, options.optimizer.trainable, options.parallel, self.grid, device, data.seed
        )
        self.strategy = make_strategy(model, options.optimizer, options.parallel, loop.batch, loop.accumulate)
        self.ema = Ema(model, loop.ema) if loop.ema else None
        batches = TrainingStream(self.dataset, self.training, self.read, data, options.flow, self.grid, loop.batch)
        self.loader = Loader(batches, workers=data.workers, prefetch=data.prefetch, collate=stack)
        self.checkpoints = Checkpoints(self.output / "checkpoints", loop.keep)
        self.progress = self._resume()
        self.log = Log(self.output, loop.wandb, asdict(options)) if dist.get_rank() == 0 else None
        self.meter, self.stop, self.values = Meter(), Stop(), {}

    def loop(self) -> None:
        options, progress = self.options.loop, self.progress
        stream = iter(self.loader)
        if dist.get_rank() == 0:
            print(self.summary(), flush=True)
        if progress.step == 0:
            self.evaluate()
        self.meter.reset()
        while progress.step < options.steps and not self.stop.asked:
            taken = self.step(stream)
            self.values |= taken
            if due(progress.step, options.log_every):
                self.report({**taken, **self.meter.report(self.device)})
                self.meter.reset()
            if due(progress.step, options.checkpoint_every):  # first: what follows may fail or take minutes
                self.checkpoints.save(self.strategy, self.ema, progress)
            if due(progress.step, options.evaluate_every) or progress.step == options.steps:
                self.evaluate()
            if due(progress.step, options.sample_every):
                self.sample()
        self.checkpoints.save(self.strategy, self.ema, progress, wait=True)
        if progress.step >= options.steps:
            export(self.strategy, self.ema, self.output / "export")

    def summary(self) -> str:
        """What is about to be trained on what, for a person to check before the first step."""
        options, clip = self.options, self.options.data.clip
        total, learning = parameter_counts(self.strategy.module)
        batch = options.loop.batch * options.loop.accumulate * self.grid.data_size
        held = ", ".join("+".join(unit) for unit in self.held_out[:3]) + (" ..." if len(self.held_out) > 3 else "")
        lines = {
            "model": f"{options.model.name}, {total / 1e6:.3g} M parameters, {learning / 1e6:.3g} M learn "
            f"(optimizer.trainable={options.optimizer.trainable})",
            "data": f"{len(self.chosen)} of {len(self.dataset)} samples (data.verdicts={options.data.verdicts}); "
            f"{len(self.training)} units of {options.data.branches} views train, {len(self.held_out)} held out"
            + (f": {held}" if held else " (a held-out loss needs a second world)"),
            "clip": f"{clip.frames} frames of {clip.height} x {clip.width}",
            "run": f"steps {self.progress.step} to {options.loop.steps}, {batch} units a step on "
            f"{dist.get_world_size()} ranks, {options.parallel.strategy}, output {self.output}",
        }
        return "\n".join(f"{name:6} {text}" for name, text in lines.items())

    def step(self, stream: Iterator[TrainingSample]) -> dict[str, float]:
        """One optimiser step over `accumulate` micro-batches; loss, gradient norm and rate."""
        options, progress, strategy = self.options.loop, self.progress, self.strategy
        strategy.module.train()
        total = torch.zeros((), device=self.device)
        for micro in range(options.accumulate):
            with self.meter.waiting():
                batch = next(stream).to(self.device)
            loss = batch_loss(strategy.module, batch, self.options.data.branches, self.dtype)
            self._refuse_non_finite(loss.detach(), batch)
            strategy.backward(loss / options.accumulate, last=micro == options.accumulate - 1)
            total += loss.detach() / options.accumulate
            self.meter.flops += step_flops(self.options, batch, self.grid)
        norm = strategy.step(progress.step)
        if self.ema:
            self.ema.update(progress.step)
        progress.step += 1
        progress.loader = self.loader.state_dict()
        self.meter.steps += 1
        asked = torch.tensor(float(self.stop.asked), device=self.device)
        loss_mean, stop = world_mean(torch.stack([total, asked])).tolist()
        self.stop.asked = stop > 0
        rate = strategy.optimizer.param_groups[-1]["lr"]
        return {"loss": loss_mean, "grad_norm": norm, "lr": rate}

    def evaluate(self) -> None:
        """Held-out loss at fixed sigmas with the averaged weights; nothing where no unit is held out."""
        if not self.held_out or not self.options.loop.evaluate_every:
            return
        data, loop = self.options.data, self.options.loop
        units = HeldOutSet(self.held_out, self.read, data, loop.sigmas, self.grid.branch)
        with averaged(self.ema):
            losses = held_out_loss(
                self.strategy.module, units, loop.held_out_batches, self.grid, data.branches, self.dtype, self.device
            )
        self.values |= losses
        self.report(losses)
        self.meter.reset()

    def sample(self) -> None:
        """Sample videos beside their target and condition, with the averaged weights."""
        with averaged(self.ema):
            sample_units(
                self.strategy.module,
                (self.held_out or self.training)[: self.options.sample.count],
                self.read,
                self.options,
                self.output / "samples" / f"step-{self.progress.step:08d}",
                self.device,
                grid=self.grid,
            )
        self.meter.reset()

    def report(self, values: dict[str, float]) -> None:
        """To the logs and, as one line, to the terminal; rank 0."""
        if self.log:
            self.log.write(self.progress.step, values)
            line = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
            print(f"step {self.progress.step}/{self.options.loop.steps}  {line}", flush=True)

    def close(self) -> None:
        self.stop.restore()
        if self.log:
            self.log.close()

    def _resume(self) -> Progress:
        """The newest complete checkpoint, loaded in place, or a fresh start. StateMismatch on other samples or seed."""
        units = hashlib.sha256(json.dumps(self.training).encode()).hexdigest()[:12]
        found = self.checkpoints.restore(self.strategy, self.ema) if self.options.resume else None
        if found is None:
            return Progress(loader=self.loader.state_dict(), units=units)
        self.loader.load_state_dict(found.loader)
        if found.units != units:
            raise StateMismatch(
                f"{self.checkpoints.folder} was trained on units {found.units}, this run has {units} (data.held_out, "
                "data.branches or the shards changed). Choose another output, or resume=false"
            )
        return found

    def _refuse_non_finite(self, loss: Tensor, batch: TrainingSample) -> None:
        """Shared by all ranks, so that none is left waiting in a collective of the backward pass."""
        finite = bool(torch.isfinite(loss))
        shared = world_mean(torch.tensor(float(finite), device=self.device))
        if shared < 1:
            self.checkpoints.finish()
            where = f"on this rank, samples {', '.join(batch.keys)}" if not finite else "on another rank"
            steps = self.checkpoints.complete()
            raise NonFiniteLoss(
                f"step {self.progress.step}: the loss is {float(loss)} {where}. No weight was changed; the last "
                f"checkpoint is {f'step {steps[-1]}' if steps else 'none'}. Lower optimizer.lr or look at those samples"
            )


def due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


@torch.no_grad()
def held_out_loss(
    model: torch.nn.Module,
    units: HeldOutSet,
    most: int,
    grid: Grid,
    branches: int,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, float]:
    """Mean loss per sigma and over all. Every rank runs equally many batches (a repeat counts nothing)."""
    model.eval()
    count = min(len(units), most * grid.data_size)
    sums = torch.zeros(len(units.sigmas), 2, device=device)
    for turn in range(math.ceil(count / grid.data_size)):
        number = turn * grid.data_size + grid.data
        loss = batch_loss(model, stack([units[number % count]]).to(device), branches, dtype)
        if number < count:
            sums[number % len(units.sigmas)] += torch.stack([loss, torch.ones_like(loss)])
    total, n = world_mean(sums).unbind(1)
    losses = {f"held_out/sigma_{s:g}": float(t / k) for s, t, k in zip(units.sigmas, total, n, strict=True) if k > 0}
    return {"held_out/loss": float(total.sum() / n.sum()), **losses}


def parameter_counts(model: torch.nn.Module) -> tuple[int, int]:
    """(all, learning) parameters of the whole model, however it is sharded (DeepSpeed ZeRO-3 keeps ds_numel)."""
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, learns in sizes if learns)


def step_flops(options: TrainOptions, batch: TrainingSample, grid: Grid) -> float:
    """FLOPs of one training micro-batch on this rank."""
    model, (rows, _, *latent) = options.model, batch.clean.shape
    cost = flops(
        model.wan,
        model.sawg,
        model.wsa,
        rows,
        tuple(latent),
        batch.references.shape[2],
        batch.text.shape[1],
        options.data.branches,
    )
    return cost.step(options.optimizer.trainable) / grid.context_size


if __name__ == "__main__":
    sys.exit(command("train", __doc__, train))
