"""What a run tells while it trains: held-out loss at fixed sigmas, logs, sample videos."""

import importlib.machinery
import json
import sys
import types

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainer_ranks import options, train_on_ranks

from shards import codec
from trainer.data import HeldOutSet, chosen_pairs, split_units
from trainer.encode import open_clips
from trainer.flow import TIMESTEPS, add_noise, velocity
from trainer.launch import distributed
from trainer.model.build import build_generator
from trainer.model.parallelize import make_grid
from trainer.train import train

CPU = torch.device("cpu")
SETTINGS = [
    "data.held_out=0.3", "loop.steps=2", "loop.evaluate_every=1", "loop.sigmas=[0.2,0.8]", "optimizer.lr=0",
    "optimizer.lr_new=0", "sample.steps=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(options(shards, folder, *SETTINGS, "loop.sample_every=2"))
    return folder


def held_out(folder) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k.startswith("held_out")} for line in lines if "held_out/loss" in line]


@torch.no_grad()
def test_held_out_loss_is_the_flow_matching_loss_at_each_sigma(shards, run, tmp_path):
    o = options(shards, tmp_path, *SETTINGS)
    with distributed():
        read, dataset = open_clips(o.shards, str(run / "latents"), o.model, o.data, CPU)
        grid = make_grid(o.parallel, 2, "cpu")
        model = build_generator(o.model, "all", o.parallel, grid, CPU, o.data.seed).eval()
    _, units = split_units(chosen_pairs(dataset, o.data), 2, 0.3)
    assert len(units) == 1
    expected = {}
    for number, sigma in enumerate(o.loop.sigmas):
        sample = HeldOutSet(units, read, o.data, o.loop.sigmas)[number]
        noisy = add_noise(sample.clean, sample.noise, torch.tensor([sigma] * 2))
        timestep = torch.tensor([sigma * TIMESTEPS] * 2)
        predicted = model(noisy, timestep, sample.text, sample.geometry, sample.references, 2)
        expected[f"held_out/sigma_{sigma:g}"] = float(
            (predicted - velocity(sample.clean, sample.noise)).square().mean()
        )
    lines = held_out(run)
    assert len(lines) == 3  # before the first step and after each of two
    assert lines[0] == lines[1] == lines[2]  # nothing learns at a rate of 0, and the noise is fixed
    assert {k: lines[0][k] for k in expected} == pytest.approx(expected, rel=1e-5)
    assert lines[0]["held_out/loss"] == pytest.approx(sum(expected.values()) / 2, rel=1e-5)


def test_held_out_loss_is_free_of_the_number_of_ranks(shards, run, tmp_path):
    train_on_ranks(2, {"two": [*SETTINGS, "parallel=fsdp", "loop.accumulate=1"]}, shards, tmp_path)
    assert held_out(tmp_path / "two")[0] == pytest.approx(held_out(run)[0], rel=1e-5)


def test_log_goes_to_tensorboard_too(run):
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "held_out/loss", "step_s", "data_wait_share", "tflops"):
        values = {line["step"]: line[name] for line in lines if name in line}
        assert values, name
        assert {e.step: e.value for e in board.Scalars(name)} == pytest.approx(values, rel=1e-5)


class FakeWandb(types.ModuleType):
    """What the wandb package is asked for, written down."""

    def __init__(self):
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.runs: list[dict] = []

    def init(self, **arguments):
        self.runs.append({"arguments": arguments, "logged": {}, "finished": False})
        return self

    def log(self, values, step):
        self.runs[-1]["logged"].setdefault(step, {}).update(values)

    def finish(self):
        self.runs[-1]["finished"] = True


def test_log_goes_to_wandb_when_asked_and_a_resumed_run_goes_on_there(shards, tmp_path, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for steps in (1, 2):
        train(options(shards, tmp_path, *SETTINGS, "loop.wandb=worlds", f"loop.steps={steps}"))
    first, second = wandb.runs
    assert first["arguments"]["project"] == "worlds"
    assert first["arguments"]["config"]["loop"]["steps"] == 1
    assert first["arguments"]["id"] == second["arguments"]["id"]
    assert first["arguments"]["resume"] == "allow"
    assert first["finished"]
    assert second["finished"]
    written: dict[int, dict] = {}
    for line in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()):
        written.setdefault(line.pop("step"), {}).update(line)
    assert sorted(written) == [0, 1, 2]
    assert first["logged"] | second["logged"] == written


def test_sample_videos_at_intervals(run):
    [folder] = (run / "samples").iterdir()
    assert folder.name == "step-00000002"
    videos = sorted(folder.glob("*.mp4"))
    assert [v.stem[-1] for v in videos] == ["a", "b"]
    shape = codec.decode("target.mp4", videos[0].read_bytes()).shape
    assert shape == (5, 16, 3 * 32, 3)  # target | condition | sample
