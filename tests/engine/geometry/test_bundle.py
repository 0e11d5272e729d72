"""Bundle adjustment against exact worlds: Jacobians by finite differences, exact recovery, outliers, scale jitter."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from engine.geometry import bundle as ba
from engine.geometry.camera import invert, pose, project, rays, rotation_angle, transform
from engine.geometry.residuals import residual as residual_of

K = np.array([[600.0, 0, 416], [0, 610, 240], [0, 0, 1]])


def world(seed: int = 0, frames: int = 8, points: int = 150) -> tuple[ba.Bundle, ba.Observations]:
    """A forward-moving camera, points 2 to 20 m away, exact observations and depths."""
    rng = np.random.default_rng(seed)
    R = Rotation.from_rotvec(rng.normal(scale=0.05, size=(frames, 3)) * np.arange(frames)[:, None] / frames).as_matrix()
    c = np.stack([0.2 * np.sin(np.arange(frames)), 0.05 * rng.normal(size=frames), 0.25 * np.arange(frames)], -1)
    R[0], c[0] = np.eye(3), 0
    c2w = pose(R, c)
    z = rng.uniform(3, 20, points)
    uv = np.stack([rng.uniform(0, 832, points), rng.uniform(0, 480, points)], -1)
    anchor = rng.integers(0, frames, points)
    ray = rays(K, uv)
    X = np.stack([transform(c2w[a], r * d) for a, r, d in zip(anchor, ray, z, strict=True)])
    truth = ba.Bundle(c2w, np.zeros(frames), anchor, ray[:, :2].copy(), np.log(z))
    f, p, image, depth = [], [], [], []
    for j in range(frames):
        at, deep = project(K, transform(invert(c2w[j]), X))
        seen = np.flatnonzero((deep > 0.3) & (np.abs(at - [416, 240]) < [416, 240]).all(1))
        f.append(np.full(len(seen), j))
        p.append(seen)
        image.append(at[seen])
        depth.append(deep[seen])
    return truth, ba.Observations(*(np.concatenate(x) for x in (f, p, image, depth)))


def disturbed(truth: ba.Bundle, seed: int = 1) -> ba.Bundle:
    rng = np.random.default_rng(seed)
    c2w = truth.c2w.copy()
    c2w[1:, :3, :3] = c2w[1:, :3, :3] @ Rotation.from_rotvec(rng.normal(scale=0.01, size=(len(c2w) - 1, 3))).as_matrix()
    c2w[1:, :3, 3] += rng.normal(scale=0.05, size=(len(c2w) - 1, 3))
    return replace(truth, c2w=c2w, log_depth=truth.log_depth + rng.normal(scale=0.1, size=len(truth.log_depth)))


def no_prior(frames: int, **known) -> ba.Prior:
    return ba.Prior(times=np.arange(frames), acceleration_sigma=np.full(frames, np.inf), **known)


def test_jacobians_agree_with_finite_differences():
    truth, seen = world(points=20)
    start = replace(disturbed(truth), log_focal=0.05, log_scale=np.linspace(-0.1, 0.1, len(truth.c2w)))
    frames = len(start.c2w)

    def residual(bundle: ba.Bundle, o: int):
        r, J, Jp = np.zeros(3), np.zeros((3, 14)), np.zeros((3, 3))
        args = ba._arrays(bundle, seen, K)
        assert residual_of(*args[:7], seen.frame[o], seen.point[o], seen.uv[o], args[10][o], r, J, Jp, True)
        return r, J, Jp

    step = 1e-6
    for o in range(0, len(seen.frame), 7):
        _, J, Jp = residual(start, o)
        f, p = seen.frame[o], seen.point[o]
        a = start.anchor[p]
        full, full_p = np.zeros((3, ba.FRAME * frames + 1)), Jp
        np.add.at(full, (slice(None), np.r_[7 * f : 7 * f + 7, 7 * a : 7 * a + 6, ba.FRAME * frames]), J)
        for k in np.flatnonzero(np.abs(full).any(0)):
            move = np.zeros(full.shape[1])
            move[k] = step
            still = np.zeros((len(start.log_depth), 3))
            difference = residual(ba._move(start, move, still), o)[0] - residual(ba._move(start, -move, still), o)[0]
            np.testing.assert_allclose(full[:, k], difference / (2 * step), rtol=1e-5, atol=1e-4)
        for k in range(3):
            move = np.zeros((len(start.log_depth), 3))
            move[p, k] = step
            still = np.zeros(full.shape[1])
            difference = residual(ba._move(start, still, move), o)[0] - residual(ba._move(start, still, -move), o)[0]
            np.testing.assert_allclose(full_p[:, k], difference / (2 * step), rtol=1e-5, atol=1e-4)


def test_perfect_observations_give_the_poses_to_a_millionth():
    truth, seen = world()
    found = ba.adjust(disturbed(truth), seen, K, no_prior(8, scale_sigma=0.1), iterations=60, tolerance=1e-14).bundle
    np.testing.assert_allclose(found.c2w, truth.c2w, atol=1e-6)
    np.testing.assert_allclose(found.log_depth, truth.log_depth, atol=1e-5)


def test_a_wrong_focal_length_is_found_without_any_depth():
    truth, seen = world(frames=12)
    blind = replace(seen, depth=np.zeros_like(seen.depth))
    wrong = K.copy()
    wrong[[0, 1], [0, 1]] *= 1.1
    start = disturbed(replace(truth, ray=truth.ray / 1.1))
    solved = ba.adjust(
        start, blind, wrong, no_prior(12, focal_sigma=0.3, log_depth_sigma=5), iterations=200, tolerance=1e-12
    )
    assert solved.bundle.log_focal == pytest.approx(-np.log(1.1), abs=0.005)
    assert solved.focal_log_sigma < 0.05


@pytest.mark.parametrize("seed", range(3))
def test_a_third_of_wild_observations_is_survived(seed: int):
    truth, seen = world(seed, points=300)
    rng = np.random.default_rng(seed + 10)
    wild = (rng.uniform(size=len(seen.frame)) < 0.3) & (seen.frame != truth.anchor[seen.point])
    uv = np.where(
        wild[:, None],
        seen.uv + rng.uniform(-60, 60, seen.uv.shape),
        seen.uv + rng.normal(scale=0.2, size=seen.uv.shape),
    )
    depth = np.where(wild, seen.depth * np.exp(rng.normal(scale=0.7, size=len(wild))), seen.depth)
    found = ba.adjust(
        disturbed(truth, seed), replace(seen, uv=uv, depth=depth), K, no_prior(8, scale_sigma=0.1), iterations=100
    )
    error = np.linalg.norm(found.bundle.c2w[:, :3, 3] - truth.c2w[:, :3, 3], axis=1)
    assert error.max() < 0.02
    turned = rotation_angle(np.swapaxes(found.bundle.c2w[:, :3, :3], 1, 2) @ truth.c2w[:, :3, :3])
    assert np.degrees(turned).max() < 0.1


def test_depth_scales_of_the_frames_are_told_apart_from_motion():
    truth, seen = world(frames=10, points=300)
    jitter = np.random.default_rng(3).normal(scale=0.05, size=10)
    shaken = replace(seen, depth=seen.depth * np.exp(-jitter[seen.frame]))
    found = ba.adjust(disturbed(truth), shaken, K, no_prior(10, scale_sigma=0.07), iterations=60).bundle
    centred = found.log_scale - found.log_scale.mean()
    np.testing.assert_allclose(centred, jitter - jitter.mean(), atol=2e-3)


def test_equal_inputs_give_equal_bytes():
    truth, seen = world()
    first, second = (ba.adjust(disturbed(truth), seen, K, no_prior(8, scale_sigma=0.1)).bundle for _ in range(2))
    assert first.c2w.tobytes() == second.c2w.tobytes()


def test_the_velocity_prior_holds_a_camera_that_sees_nothing():
    truth, seen = world(frames=9)
    truth = replace(
        truth, c2w=pose(truth.c2w[:, :3, :3], np.stack([0 * np.arange(9), 0 * np.arange(9), 0.2 * np.arange(9)], -1))
    )
    some = seen.frame < 0
    nothing = ba.Observations(seen.frame[some], seen.point[some], seen.uv[some], seen.depth[some])
    prior = ba.Prior(np.arange(9.0), np.full(9, 0.01), scale_sigma=0.1, log_depth_sigma=1.0, fixed=(0, 8))
    start = truth.c2w.copy()
    start[4, :3, 3] += 0.3
    found = ba.adjust(replace(truth, c2w=start), nothing, K, prior, iterations=200, tolerance=1e-13).bundle
    np.testing.assert_allclose(found.c2w[:, :3, 3], truth.c2w[:, :3, 3], atol=1e-4)


def test_points_behind_every_camera_have_no_certainty_and_stop_nothing():
    """The cameras that saw them have passed them: their blocks of the normal equations are empty."""
    X = np.random.default_rng(0).uniform([-1, -1, 4], [1, 1, 8], (30, 3))
    c2w = np.repeat(np.eye(4)[None], 2, 0)
    c2w[1, 2, 3] = 50.0
    bundle = ba.Bundle(c2w, np.zeros(2), np.zeros(30, int), X[:, :2] / X[:, 2:], np.log(X[:, 2]))
    sightings = ba.Observations(np.ones(30, int), np.arange(30), np.full((30, 2), 100.0), np.zeros(30))
    prior = ba.Prior(np.arange(2.0), np.full(2, np.inf), focal_sigma=0.1)
    lens = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
    found = ba.adjust(bundle, sightings, lens, prior, iterations=3)
    assert found.log_depth_sigma.min() > 1e3
    assert np.isfinite(found.bundle.c2w).all()
