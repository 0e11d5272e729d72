"""Run trainings on one rank here, or on several gloo ranks in processes of their own."""

import contextlib
import io
import json
import multiprocessing.connection
import os
import socket
import traceback
from pathlib import Path

import torch.multiprocessing

from trainer.config import TrainOptions, load

MICRO = [
    "model=tiny", "experiment=stage2", "model.wsa.init=random", "model.sawg.init=random", "optimizer.trainable=all",
    "model.wan.num_layers=2", "model.wan.num_attention_heads=2", "model.wan.attention_head_dim=24",
    "model.wan.ffn_dim=64", "model.wan.freq_dim=32", "model.wan.text_dim=8", "model.encoders.text_dim=8",
    "data.clip.frames=5", "data.clip.height=16", "data.clip.width=32", "data.references=2", "data.held_out=0",
    "loop.steps=10", "loop.log_every=1", "loop.evaluate_every=0", "loop.sample_every=0", "loop.checkpoint_every=0",
    "loop.ema=0", "loop.batch=1", "loop.accumulate=2", "optimizer.warmup=2",
]  # fmt: skip


def options(shards: Path, output: Path, *overrides: str) -> TrainOptions:
    """The configuration of a training of a model with some 100 thousand weights, two branches, global batch 2."""
    return load("train", [*MICRO, f"shards={shards}", f"output={output}", *overrides])


def losses(output: Path) -> list[float]:
    """The loss of every step, from the log."""
    lines = (json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def train_alone(shards: Path, output: Path, *overrides: str) -> list[float]:
    from trainer.train import train

    with contextlib.redirect_stdout(io.StringIO()):
        train(options(shards, output, *overrides))
    return losses(output)


def train_on_ranks(world: int, runs: dict[str, list[str]], shards: Path, folder: Path) -> dict[str, list[float]]:
    """Each run (name -> overrides) one after the other on the same `world` ranks; its loss curve by name."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    ranks = [context.Process(target=_rank, args=(r, world, port, runs, shards, folder)) for r in range(world)]
    for rank in ranks:
        rank.start()
    while alive := [rank.sentinel for rank in ranks if rank.is_alive()]:  # waiting on none would be for ever
        multiprocessing.connection.wait(alive)
        if any(rank.exitcode for rank in ranks):
            for rank in ranks:
                rank.terminate()
    failed = [(folder / f"rank{r}.log").read_text() for r in range(world) if ranks[r].exitcode]
    assert not failed, "\n".join(failed)
    return {name: losses(folder / name) for name in runs if (folder / name).exists()}


def _rank(rank: int, world: int, port: int, runs: dict[str, list[str]], shards: Path, folder: Path) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    torch.set_num_threads(1)
    with (
        (folder / f"rank{rank}.log").open("w") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            from trainer.launch import distributed
            from trainer.train import train

            with distributed(120):
                for name, overrides in runs.items():
                    train(options(shards, folder / name, f"latents={folder}/latents", *overrides))
        except BaseException:
            traceback.print_exc()
            log.flush()
            os._exit(1)
