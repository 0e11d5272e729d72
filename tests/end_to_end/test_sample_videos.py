"""The sample videos through the whole engine by its own command, checked against the worlds' exact truth."""

import json
from pathlib import Path

import numpy as np
import pytest
from commands import command

from shards.dataset import open_dataset

ROOT = Path(__file__).resolve().parents[2]
FRAMES, HEIGHT, WIDTH = 17, 128, 208


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    command("engine.synthetic", "--output", folder, "--frames", FRAMES, "--height", HEIGHT, "--width", WIDTH)
    return folder


def unrolled(samples, output, *words: str):
    size = (f"clip.frames={FRAMES}", f"clip.min_frames={FRAMES}", f"render.size=[{HEIGHT},{WIDTH}]")
    command("engine.unroll", f"input={samples}", f"output={output}", *size, *words)
    report = json.loads(command("shards", "verify", output, "--json"))
    assert not report["problems"]
    dataset = open_dataset(output)
    return {Path(sample["meta.json"]["source"]["uri"]).stem: sample for sample in map(dataset.__getitem__, dataset)}


def error_of_path(sample, truth: Path) -> tuple[float, float]:
    """(RMS error of the camera centres without any alignment, true path length) in metres."""
    c2w = np.load(truth / "camera.npz")["c2w"].astype(np.float64)
    c2w = np.linalg.inv(c2w[0]) @ c2w
    found = sample["camera.npz"]["c2w"].astype(np.float64)
    error = np.linalg.norm(found[:, :3, 3] - c2w[:, :3, 3], axis=-1)
    return float(np.sqrt((error**2).mean())), float(np.linalg.norm(np.diff(c2w[:, :3, 3], axis=0), axis=-1).sum())


@pytest.mark.slow
def test_with_imitated_depth_errors(samples, tmp_path):
    """The poses are hidden: the path has to be solved from noisy depth and tracks at a small size."""
    found = unrolled(samples, tmp_path / "out", "perception=oracle")
    assert set(found) == {"walk", "orbit"}
    for name, sample in found.items():
        error, length = error_of_path(sample, samples / name)
        assert error < 0.05 * length, f"{name}: {error:.3f} m of {length:.2f} m"
        meta = sample["meta.json"]
        assert meta["camera_kind"] == "general"
        assert len(meta["subjects"]) == 2
        assert sample["caption.txt"] == (samples / f"{name}.txt").read_text().strip()
        target = sample["target.mp4"].astype(float)
        seen = sample["condition_holistic_ids.npz"]["ids"] == 0
        difference = np.abs(sample["condition_holistic_rgb.mp4"].astype(float) - target).mean(-1)
        assert seen.mean() > 0.7
        assert np.median(difference[seen]) < 20, "the holistic background does not look like the clip"
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<figure>") == 2


@pytest.mark.slow
def test_with_the_networks_that_come_in_wheels(samples, tmp_path):
    """The default command of the README. At this size people are small, so only the form is checked here."""
    found = unrolled(samples, tmp_path / "out")
    assert set(found) == {"walk", "orbit"}
    for sample in found.values():
        assert sample["target.mp4"].shape == (FRAMES, HEIGHT, WIDTH, 3)
        assert np.isfinite(sample["camera.npz"]["c2w"]).all()
        assert np.isfinite(list(sample["meta.json"]["quality"].values())).all()
