"""Monocular reconstruction from exact geometry: path and focal length up to scale, an honest class without parallax."""

import numpy as np
import pytest
from evo.core.geometry import umeyama_alignment

from engine.geometry.camera import invert, look_at, pose, project, transform
from engine.geometry.classify import MotionOptions, classify_motion
from engine.geometry.sfm import solve_monocular
from engine.geometry.tracks import PointTracks
from tests.engine.geometry.test_classify import K, pan, see


def cloud_tracks(c2w: np.ndarray, X: np.ndarray, seed: int, noise: float = 0.2, wild: float = 0.15) -> PointTracks:
    rng = np.random.default_rng(seed)
    uv = np.full((len(X), len(c2w), 2), np.nan, np.float32)
    for t, world in enumerate(invert(c2w)):
        at, depth = project(K, transform(world, X))
        inside = (depth > 0.3) & (at > 0).all(1) & (at < [832, 480]).all(1)
        uv[inside, t] = at[inside] + rng.normal(scale=noise, size=(inside.sum(), 2))
    moving = rng.uniform(size=len(X)) < wild  # people that nobody masked
    uv[moving] += np.cumsum(rng.normal(scale=2, size=(moving.sum(), len(c2w), 2)), 1)
    return PointTracks(uv[np.isfinite(uv[..., 0]).sum(1) > 1])


def forward(frames: int) -> np.ndarray:
    """A camera that follows a walker down a road: straight ahead, the hardest motion for two views."""
    t = np.arange(frames)
    sway = np.stack([0.015 * np.sin(0.4 * t), 0.02 * np.cos(0.8 * t) - 0.02, 0.07 * t], -1)
    return pose(np.repeat(np.eye(3)[None], frames, 0), sway)


def orbit(frames: int) -> np.ndarray:
    angle = np.linspace(0, 0.6, frames)
    eye = np.stack([5 * np.sin(angle), 0.05 * np.sin(7 * angle), 6 - 5 * np.cos(angle)], -1)
    return np.stack([look_at(e, np.array([0, 0, 6.0]), np.array([0, -1.0, 0])) for e in eye])


def corridor(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    z = rng.uniform(1, 30, 1500)
    side = rng.integers(0, 3, 1500)
    x = np.where(side == 0, -3, np.where(side == 1, 3, rng.uniform(-3, 3, 1500)))
    y = np.where(side == 2, 1.5, rng.uniform(-2, 1.5, 1500))
    return np.stack([x, y, z], -1)


@pytest.mark.parametrize("path", [forward, orbit])
@pytest.mark.parametrize("factor", [0.9, 1.12])
def test_the_path_is_found_up_to_scale(path, factor: float):
    c2w = path(33)
    prior = K.copy()
    prior[[0, 1], [0, 1]] *= factor
    tracks = cloud_tracks(c2w, corridor(1), 1)
    found = solve_monocular(tracks, prior, 0.15)
    assert found.kind == "general"
    assert path_error(found, c2w) < 0.01
    if path is orbit:
        assert found.K[0, 0, 0] == pytest.approx(K[0, 0], rel=0.03)
        assert found.quality["focal_log_sigma"] < 0.03
    else:  # without any rotation, depth and focal length stretch together: nobody can tell, and it says so
        assert found.quality["focal_log_sigma"] > 0.1
    depth = found.points[np.isfinite(tracks.uv[:, 0, 0]) & np.isfinite(found.points[:, 0]), 2]
    assert np.median(depth) == pytest.approx(1, rel=0.02)  # the promised scale
    assert np.isfinite(found.log_sigma[np.isfinite(found.points[:, 0])]).all()


def test_no_parallax_is_said_so():
    still = see(np.repeat(np.eye(4)[None], 33, 0), np.ones(33), 0)
    turning = see(pose(pan(33, 15, 0), np.zeros((33, 3))), np.ones(33), 0)
    for tracks, kind in ((still, "static"), (turning, "rotation")):
        found = solve_monocular(tracks, K)
        assert found.kind == kind
        assert np.abs(found.c2w[:, :3, 3]).max() == 0
        assert np.isnan(found.points).all()


def path_error(found, c2w: np.ndarray) -> float:
    """Root mean square error of the centres after alignment with scale, in shares of the path."""
    centres, exact = found.c2w[:, :3, 3].T, c2w[:, :3, 3].T
    R, t, s = umeyama_alignment(centres, exact, True)
    length = np.linalg.norm(np.diff(exact, axis=1), axis=0).sum()
    return float(np.sqrt(((s * R @ centres + t[:, None] - exact) ** 2).sum(0).mean()) / length)


def interrupted(tracks: PointTracks, frame: int, survivors: int) -> PointTracks:
    """The tracks as a burst of blur in one frame leaves them: all but a few end before it and begin anew after it."""
    across = np.flatnonzero(np.isfinite(tracks.uv[:, [frame - 1, frame + 1], 0]).all(1))
    kept = np.random.default_rng(0).choice(across, survivors, replace=False)
    cut = np.delete(tracks.uv, kept, axis=0)
    before, after = cut.copy(), cut.copy()
    before[:, frame:], after[:, : frame + 1] = np.nan, np.nan
    parts = np.concatenate([tracks.uv[kept], before, after])
    return PointTracks(parts[np.isfinite(parts[..., 0]).sum(1) > 1])


@pytest.mark.parametrize("path", [forward, orbit])
def test_a_frame_that_nearly_no_track_survives_is_bridged(path):
    """Nine tracks are fewer than the ten that place a keyframe: it is carried on by turn and velocity."""
    c2w = path(21)
    found = solve_monocular(interrupted(cloud_tracks(c2w, corridor(1)[:500], 1), 12, 9), K, 0.0)
    assert found.kind == "general"
    assert path_error(found, c2w) < 0.015


def test_a_frame_that_no_motion_can_be_told_for_costs_itself_alone():
    """A camera covered in the last frame leaves the class open; the path before it stands all the same."""
    c2w = orbit(21)
    tracks = cloud_tracks(c2w, corridor(1)[:500], 1)
    tracks.uv[np.flatnonzero(np.isfinite(tracks.uv[:, 20, 0]))[5:], 20] = np.nan
    assert classify_motion(tracks, K, 832, MotionOptions()).kind == "failed"
    found = solve_monocular(tracks, K, 0.0)
    assert found.kind == "general"
    assert path_error(found, c2w) < 0.02


def test_a_path_in_two_pieces_that_hardly_anything_ties_is_failed():
    """Three tracks do not tell how the two halves lie to each other: no path is better than an invented one."""
    found = solve_monocular(interrupted(cloud_tracks(orbit(21), corridor(1)[:500], 1), 12, 3), K, 0.0)
    assert found.kind == "failed"


def test_a_zoom_stays_a_zoom():
    """A path with depth to spare explains a zoom as well as a zoom does: it must not replace it."""
    focal = np.linspace(1, 1.3, 21)
    found = solve_monocular(see(pose(pan(21, 3, 1), np.zeros((21, 3))), focal, 1), K)
    assert found.kind == "zoom"
    assert np.abs(found.c2w[:, :3, 3]).max() == 0
    np.testing.assert_allclose(found.K[:, 0, 0] / found.K[0, 0, 0], focal, rtol=5e-3)


def test_walking_towards_a_rough_wall_is_no_zoom():
    """Half a pixel of parallax passes as a zoom; a path that explains the tracks clearly closer takes its place."""
    rng = np.random.default_rng(0)
    wall = np.stack([rng.uniform(-6, 6, 400), rng.uniform(-4, 4, 400), 8 + 0.6 * rng.normal(size=400)], -1)
    c2w = pose(np.repeat(np.eye(3)[None], 21, 0), np.linspace(0, 1, 21)[:, None] * [0, 0, 1.0])
    c2w[:, 0, 3] += 0.004 * np.sin(np.arange(21))
    tracks = cloud_tracks(c2w, wall, 2, 0.1, 0.05)
    assert classify_motion(tracks, K, 832, MotionOptions()).kind == "zoom"
    found = solve_monocular(tracks, K, 0.0)
    assert found.kind == "general"
    assert path_error(found, c2w) < 0.01


def test_a_lens_that_the_prior_excludes_needs_clear_evidence():
    """80 % off, with a prior of 15 %: an orbit tells the lens; straight ahead nothing does, and the prior's is kept."""
    prior = K.copy()
    prior[[0, 1], [0, 1]] *= 1.8
    told = solve_monocular(cloud_tracks(orbit(21), corridor(1)[:500], 1), prior, 0.15)
    assert told.K[0, 0, 0] == pytest.approx(K[0, 0], rel=0.03)
    assert path_error(told, orbit(21)) < 0.01
    untold = solve_monocular(cloud_tracks(forward(21), corridor(1)[:500], 1), prior, 0.15)
    assert untold.K[0, 0, 0] == pytest.approx(prior[0, 0], rel=0.01)
    assert untold.quality["focal_log_sigma"] > 0.1


def test_a_lens_held_at_the_prior_against_the_tracks_is_in_doubt():
    """Half the true focal length as the prior: the map drifts and no lens explains it clearly better than another. The
    prior's stays, and that the tracks wanted another one is told."""
    prior = K.copy()
    prior[[0, 1], [0, 1]] *= 0.5
    found = solve_monocular(cloud_tracks(orbit(33), corridor(1)[:500], 1), prior, 0.15)
    assert found.K[0, 0, 0] == pytest.approx(prior[0, 0], rel=0.01)
    assert abs(np.log(found.quality["free_focal"] / prior[0, 0])) > 3 * 0.15
    assert found.quality["focal_log_sigma"] > 0


def test_noise_without_any_geometry_is_failed():
    rng = np.random.default_rng(0)
    uv = np.cumsum(rng.normal(scale=8, size=(200, 21, 2)), 1) + rng.uniform(100, 400, (200, 1, 2))
    assert solve_monocular(PointTracks(uv.astype(np.float32)), K).kind == "failed"
