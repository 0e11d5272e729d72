"""The log's third place; wandb is no dependency, so this runs where a person has installed it."""

import json

import pytest
from trainer_ranks import options

from trainer.train import train

pytest.importorskip("wandb", reason="wandb is not installed: pip install wandb")


def test_a_resumed_run_goes_on_under_its_name(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for steps in (2, 4):
        train(options(shards, tmp_path, "loop.wandb=metaworld", f"loop.steps={steps}", "loop.checkpoint_every=2"))
    identity = (tmp_path / "wandb_id").read_text()
    runs = list(tmp_path.glob("wandb/offline-run-*"))
    assert len(runs) == 2
    assert all((run / f"run-{identity}.wandb").stat().st_size > 0 for run in runs)
    assert len({json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()}) == 4
