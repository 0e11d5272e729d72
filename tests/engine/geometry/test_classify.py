"""Camera classes from exact and noisy tracks of known motions."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from engine.geometry.camera import invert, pose, project, rotation_angle, transform
from engine.geometry.classify import MotionOptions, classify_motion, fit_turning
from engine.geometry.reprojection import turning_errors
from engine.geometry.tracks import PointTracks

K = np.array([[640.0, 0, 416], [0, 640, 240], [0, 0, 1]])


def see(
    c2w: np.ndarray, focal: np.ndarray, seed: int, points: int = 600, noise: float = 0.15, wild: float = 0.1
) -> PointTracks:
    """Tracks of a cloud 2 to 30 m around the first view, with pixel noise and a share of points that move."""
    rng = np.random.default_rng(seed)
    z = np.exp(rng.uniform(np.log(2), np.log(30), points))
    X = np.stack([rng.uniform(-1.2, 1.2, points) * z, rng.uniform(-0.7, 0.7, points) * z, z], -1)
    X = transform(c2w[0], X)
    uv = np.full((points, len(c2w), 2), np.nan, np.float32)
    for t, world in enumerate(invert(c2w)):
        lens = K.copy()
        lens[[0, 1], [0, 1]] *= focal[t]
        at, depth = project(lens, transform(world, X))
        inside = (depth > 0.2) & (at > 0).all(1) & (at < [832, 480]).all(1)
        uv[inside, t] = at[inside] + rng.normal(scale=noise, size=(inside.sum(), 2))
    moving = rng.uniform(size=points) < wild
    uv[moving] += np.cumsum(rng.normal(scale=3, size=(moving.sum(), len(c2w), 2)), 1)
    return PointTracks(uv[np.isfinite(uv[..., 0]).sum(1) > 1])


def pan(frames: int, degrees: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    yaw = np.radians(degrees) * np.linspace(0, 1, frames)
    tilt = 0.02 * np.sin(np.arange(frames) / 5 + rng.uniform(0, 6))
    return Rotation.from_euler("yx", np.stack([yaw, tilt], -1)).as_matrix()


@pytest.mark.parametrize("seed", range(5))
def test_a_still_camera_is_static(seed: int):
    tracks = see(np.repeat(np.eye(4)[None], 41, 0), np.ones(41), seed)
    assert classify_motion(tracks, K, 832, MotionOptions()).kind == "static"


@pytest.mark.parametrize("degrees", [2, 10, 25])
@pytest.mark.parametrize("seed", range(3))
def test_a_turning_camera_is_rotation_and_its_turn_is_found(seed: int, degrees: float):
    R = pan(41, degrees, seed)
    motion = classify_motion(see(pose(R, np.zeros((41, 3))), np.ones(41), seed), K, 832, MotionOptions())
    assert motion.kind == "rotation"
    wrong = rotation_angle(np.swapaxes(motion.R, 1, 2) @ (R[0].T @ R))
    assert np.degrees(wrong).max() < 0.1


@pytest.mark.parametrize("factor", [0.85, 1.15])
def test_a_wrong_focal_length_does_not_turn_rotation_into_translation(factor: float):
    R = pan(41, 30, 0)
    guess = K.copy()
    guess[[0, 1], [0, 1]] *= factor
    motion = classify_motion(see(pose(R, np.zeros((41, 3))), np.ones(41), 0), guess, 832, MotionOptions())
    assert motion.kind == "rotation"
    assert motion.focal[0] * factor == pytest.approx(1, abs=0.03)


def test_the_best_turn_of_a_tele_lens_goes_with_its_focal_factor():
    """What a general camera turned is told by R and focal together: with the prior's lens R explains nothing."""
    R, count = pan(41, 20, 0), 41  # and ten centimetres sideways
    path = pose(R, np.linspace(0, 0.1, count)[:, None] * [1.0, 0, 0])
    guess = K.copy()
    guess[[0, 1], [0, 1]] /= 1.6
    tracks = see(path, np.ones(count), 0, wild=0)
    motion = classify_motion(tracks, guess, 832, MotionOptions())
    lens = np.repeat(guess[None], count, 0)
    without = np.nanmedian(turning_errors(tracks.uv.astype(float), motion.R, lens))
    lens[:, [0, 1], [0, 1]] *= motion.focal[:, None]
    assert motion.kind == "general"
    assert np.nanmedian(turning_errors(tracks.uv.astype(float), motion.R, lens)) < 2 < 8 < without


def test_a_zoom_is_told_from_walking_forward():
    focal = np.linspace(1, 1.3, 41)
    zoom = classify_motion(see(pose(pan(41, 3, 1), np.zeros((41, 3))), focal, 1), K, 832, MotionOptions())
    assert zoom.kind == "zoom"
    np.testing.assert_allclose(zoom.focal / zoom.focal[0], focal, rtol=5e-3)
    forward = pose(np.repeat(np.eye(3)[None], 41, 0), np.linspace(0, 1, 41)[:, None] * [0, 0, 1.0])
    assert classify_motion(see(forward, np.ones(41), 1), K, 832, MotionOptions()).kind == "general"


@pytest.mark.parametrize("seed", range(3))
def test_ten_centimetres_of_sideways_motion_are_general(seed: int):
    path = pose(pan(41, 5, seed), np.linspace(0, 0.1, 41)[:, None] * [1.0, 0, 0])
    assert classify_motion(see(path, np.ones(41), seed), K, 832, MotionOptions()).kind == "general"


def test_too_few_tracks_are_failed():
    tracks = see(np.repeat(np.eye(4)[None], 41, 0), np.ones(41), 0)
    assert classify_motion(PointTracks(tracks.uv[:10]), K, 832, MotionOptions()).kind == "failed"


def test_the_turn_is_exact_for_exact_tracks():
    R = pan(21, 15, 2)
    tracks = see(pose(R, np.zeros((21, 3))), np.ones(21), 2, noise=0, wild=0)
    found, _, residual = fit_turning(tracks.uv, K, zoom=False, iterations=30)
    assert residual < 1e-3
    np.testing.assert_allclose(found, R[0].T @ R, atol=1e-5)
