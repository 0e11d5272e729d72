"""The launch on a Ray cluster that docs/training.md shows, with two CPU workers."""

import json
from pathlib import Path

import pytest
from trainer_ranks import MICRO, losses, train_alone

from engine.run.cluster import prepare_local

prepare_local()  # before anything imports ray
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]


def test_ray_train_gives_the_curve_of_one_rank(shards, tmp_path):
    import ray

    alone = train_alone(shards, tmp_path / "alone", "loop.steps=4")
    words = [*MICRO, "loop.steps=4", "loop.accumulate=1", "parallel=fsdp", f"shards={shards}"]
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        _launch([*words, f"output={tmp_path / 'ray'}"], tmp_path / "runs")
    finally:
        ray.shutdown()
    assert losses(tmp_path / "ray") == pytest.approx(alone, rel=1e-5)
    lines = map(json.loads, (tmp_path / "ray" / "metrics.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]


def _launch(words: list[str], runs: Path) -> None:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def worker():
        import torch

        from trainer.config import load
        from trainer.train import train

        torch.set_num_threads(1)
        train(load("train", words))

    TorchTrainer(
        worker,
        scaling_config=ScalingConfig(num_workers=2, use_gpu=False),
        run_config=RunConfig(storage_path=str(runs)),
    ).fit()
