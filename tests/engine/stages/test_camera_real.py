"""Camera paths of real sequences against their recorded poses (which are themselves good to 0.6 to 2 cm)."""

from pathlib import Path

import numpy as np
import pytest

from engine.geometry.camera import intrinsics
from engine.geometry.sfm import Reconstruction, solve_monocular
from engine.geometry.tracks import TrackOptions, track_points
from engine.types import Camera
from tests.bench.accuracy import path_errors
from tests.bench.bench_poses import solve
from tests.bench.poses import Sequence, read_sequences

pytestmark = pytest.mark.real


def read(real_data: Path, folder: str, name: str | None = None) -> Sequence:
    found = read_sequences(real_data / "camera_pose" / folder)
    return next(s for s in found if s.name == (name or folder))


def from_sensor(sequence: Sequence) -> tuple[Camera, dict[str, float]]:
    camera = solve(sequence, "sensor")
    return camera, path_errors(camera.c2w, sequence.c2w)


def from_colour(sequence: Sequence, K: np.ndarray, focal_sigma: float) -> tuple[Reconstruction, dict[str, float]]:
    tracks = track_points(sequence.clip.frames, None, TrackOptions())
    found = solve_monocular(tracks, K, focal_sigma)
    return found, path_errors(found.c2w, sequence.c2w)


def test_7scenes(real_data: Path):
    camera, found = from_sensor(read(real_data, "7scenes_a"))
    assert camera.kind == "general"
    assert found["ate"] * found["path_m"] < 0.03
    assert abs(found["scale"]) < 0.08


def test_redwood(real_data: Path):
    camera, found = from_sensor(read(real_data, "open3d_redwood_5"))
    assert camera.kind == "general"
    assert found["ate"] < 0.02  # 2 mm of 10 cm
    assert found["rotation_deg"] < 0.2


def test_tum_cabinet_is_no_video_and_says_so(real_data: Path):
    """1.5 frames a second around a plain cabinet: nothing can be followed; the answer must be `failed`, not a path."""
    camera, _ = from_sensor(read(real_data, "tum_fr3_cabinet"))
    assert camera.kind == "failed"
    assert np.isfinite(camera.c2w).all()


def test_tum_desk_at_six_frames_a_second(real_data: Path):
    """A fast sweep with blur: tracks live a few frames, the last frames hold hardly any."""
    sequence = read(real_data, "tum_fr1_desk_rgb")
    found, errors = from_colour(sequence, sequence.clip.K, 0.0)
    assert found.kind == "general"
    assert errors["sim3"] < 0.02
    assert errors["rotation_deg"] < 4


@pytest.mark.parametrize("name", ["0bf152ef84195293", "0f68374b76390082", "2f25826f0d0ef09a", "3f79dc32d575bcdc"])
def test_real_estate_10k(real_data: Path, name: str):
    sequence = read(real_data, "re10k_clips_dev", name)
    found, errors = from_colour(sequence, sequence.clip.K, 0.0)
    assert found.kind == "general"
    assert errors["sim3"] < 0.05
    assert errors["rotation_deg"] < 1.2


@pytest.mark.parametrize("name", ["0bf152ef84195293", "0f68374b76390082"])
def test_a_wide_lens_that_nobody_told(real_data: Path, name: str):
    """93 degrees across, and a prior of 60: 80 % off, nearly four of its standard deviations."""
    sequence = read(real_data, "re10k_clips_dev", name)
    height, width = sequence.clip.size
    prior = width / 2 / np.tan(np.radians(30))
    found, errors = from_colour(sequence, intrinsics(prior, prior, width, height), 0.15)
    assert prior > 1.7 * sequence.clip.K[0, 0]
    assert found.K[0, 0, 0] == pytest.approx(sequence.clip.K[0, 0], rel=0.06)
    assert errors["sim3"] < 0.02
