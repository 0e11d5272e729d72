"""From rendered worlds to sampled videos by the commands of docs/training.md, at a tiny size: shards, latents, stage 1,
stage 2 on the pair, samples of both agents."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import command
from safetensors.numpy import load_file

from shards import codec
from shards.dataset import open_dataset

ROOT = Path(__file__).resolve().parents[2]
FRAMES, HEIGHT, WIDTH = 17, 96, 160
# Smaller than model=tiny throughout, so that the whole way takes a minute or two of one core.
SMALL = [
    "data.clip.frames=9", "data.clip.height=32", "data.clip.width=48", "model.wan.num_layers=2",
    "model.wan.num_attention_heads=2", "model.wan.ffn_dim=256", "loop.sample_every=0", "loop.log_every=5",
]  # fmt: skip


def logged(run: Path, name: str) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line[name] for line in lines if name in line]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """Two single views and the two views of one meeting."""
    folder = tmp_path_factory.mktemp("worlds")
    size = ("--frames", FRAMES, "--height", HEIGHT, "--width", WIDTH)
    command("engine.synthetic", "--output", folder, "--pairs", *size)
    return folder


def unrolled(worlds: Path, output: Path) -> Path:
    size = (f"clip.frames={FRAMES}", f"clip.min_frames={FRAMES}", f"render.size=[{HEIGHT},{WIDTH}]")
    command("engine.unroll", f"input={worlds}", f"output={output}", "perception=oracle", *size)
    return output


@pytest.mark.slow
def test_from_worlds_to_sampled_agents(worlds, tmp_path):
    shards = unrolled(worlds, tmp_path / "out")
    pairs = open_dataset(str(shards)).pairs
    agents = sorted((view, key) for key, pair in pairs.items() if pair for _, view in [pair])
    assert len(pairs) == 4
    assert [view for view, _ in agents] == ["a", "b"]

    latents = tmp_path / "latents"
    command("trainer.encode", f"shards={shards}", f"latents={latents}", "model=tiny", *SMALL[:3])
    assert open_dataset(str(latents)).pairs == pairs  # the relation of the views comes along

    first = tmp_path / "stage1"
    said = command(
        "trainer.train", f"shards={latents}", "model=tiny", "experiment=stage1", f"output={first}", *SMALL,
        "loop.steps=60", "loop.evaluate_every=20",
    )  # fmt: skip
    assert "4 of 4 samples" in said  # whatever their verdict: kept and flagged ones
    held_out = logged(first, "held_out/loss")
    assert held_out[-1] < 0.7 * held_out[0], held_out

    second = tmp_path / "stage2"
    said = command(
        "trainer.train", f"shards={latents}", "model=tiny", "experiment=stage2", f"output={second}", *SMALL,
        f"model.weights={first}/export", "loop.steps=20", "loop.evaluate_every=0", "loop.log_every=1",
        "loop.ema=0",
    )  # fmt: skip
    assert "1 units of 2 views train" in said
    losses = logged(second, "loss")
    assert len(losses) == 20
    assert np.isfinite(losses).all()
    weights = [load_file(run / "export" / "world.safetensors") for run in (first, second)]
    assert not any(".wsa." in name for name in weights[0])
    outputs = [value for name, value in weights[1].items() if ".wsa.attn.to_out.0.weight" in name]
    assert len(outputs) == 2  # layers
    assert all(value.any() for value in outputs)  # they began at zero
    geometry = [name for name in weights[0] if name.startswith("geometry.")]
    assert geometry
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in geometry)  # frozen in stage 2

    written = command(
        "trainer.sample", f"shards={latents}", "model=tiny", f"model.weights={second}/export", "model.wsa.enabled=true",
        "data.branches=2", "sample.steps=4", f"output={tmp_path}/videos", *SMALL[:6],
    ).splitlines()  # fmt: skip
    assert [Path(line).stem for line in written[-2:]] == [key for _, key in agents]
    for line in written[-2:]:
        assert codec.decode("target.mp4", Path(line).read_bytes()).shape == (9, 32, 3 * 48, 3)


@pytest.mark.slow
def test_two_samples_are_enough_for_a_first_look(worlds, tmp_path):
    """What `make shards` without options leaves: two worlds. One is held out, and its loss falls all the same."""
    for name in ("walk", "orbit"):
        shutil.copytree(worlds / name, tmp_path / "samples" / name)
        for ending in (".mp4", ".txt"):
            shutil.copy(worlds / f"{name}{ending}", tmp_path / "samples")
    shards = unrolled(tmp_path / "samples", tmp_path / "out")
    run = tmp_path / "run"
    said = command(
        "trainer.train", f"shards={shards}", "model=tiny", f"output={run}", *SMALL, "loop.steps=60",
        "loop.evaluate_every=20",
    )  # fmt: skip
    assert "1 units of 1 views train, 1 held out" in said
    held_out = logged(run, "held_out/loss")
    assert held_out[-1] < 0.8 * held_out[0], held_out
