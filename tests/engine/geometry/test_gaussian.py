"""Gaussians: the plain fit is numpy's, the robust one survives bleed, the path is the posterior's maximum."""

import numpy as np
import pytest
from scipy.optimize import minimize

from engine.geometry.camera import intrinsics
from engine.geometry.gaussian import (
    RIDGE,
    robust_gaussian,
    sample_gaussian,
    smooth_covariance,
    smooth_path,
    trusted_depth,
)

K = intrinsics(500.0, 500.0, 200, 300)


def disc(height=300, width=200, rx=40, ry=110):
    y, x = np.mgrid[0:height, 0:width] + 0.5
    return ((x - width / 2) / rx) ** 2 + ((y - height / 2) / ry) ** 2 < 1


def body_depth(mask, distance=5.0):
    """The front of an ellipsoid 0.15 m deep under the mask, a wall at 9 m elsewhere."""
    y, x = np.mgrid[0 : mask.shape[0], 0 : mask.shape[1]] + 0.5
    r2 = ((x - 100) / 40) ** 2 + ((y - 150) / 110) ** 2
    return np.where(mask, distance - 0.15 * np.sqrt(np.maximum(1 - r2, 0)), 9.0)


def fit(mask, depth, erode=2):
    return robust_gaussian(mask, depth, trusted_depth(mask, depth, K[0, 0], erode), K, (0, 0))


def test_plain_fit_is_numpys_sample_covariance_with_a_ridge():
    points = np.random.default_rng(0).normal(size=(37, 3)) @ np.diag([0.2, 0.5, 0.1]) + [1, 2, 3]
    mean, cov = sample_gaussian(points)
    np.testing.assert_array_equal(mean, points.mean(0))
    np.testing.assert_array_equal(cov, np.cov(points, rowvar=False) + RIDGE * np.eye(3))
    assert np.isfinite(np.linalg.inv(sample_gaussian(points[:1])[1])).all()


def test_bleed_from_the_wall_does_not_move_or_inflate_the_subject():
    mask = disc()
    depth = body_depth(mask)
    clean_mean, clean_cov = fit(mask, depth)
    rng = np.random.default_rng(1)
    bled = depth.copy()
    rim = mask & ~disc(rx=36, ry=106)
    bled[rim] += rng.uniform(0, 1, rim.sum()) * (9 - bled[rim])  # flying pixels
    lost = mask & (rng.random(mask.shape) < 0.1)
    bled[lost] = 9.0  # depth that looks through the subject
    mean, cov = fit(mask, bled)
    assert np.linalg.norm(mean - clean_mean) < 0.02
    assert np.sqrt(cov[2, 2]) < np.sqrt(clean_cov[2, 2]) + 0.06
    y, x = np.nonzero(mask)
    assert np.std(bled[y, x]) > 1.0  # metres: what the plain fit would say


def test_mask_that_is_too_large_by_three_pixels_keeps_its_depth():
    mask = disc()
    depth = body_depth(mask)
    mean, _ = fit(disc(rx=43, ry=113), depth, erode=2)
    assert abs(mean[2] - fit(mask, depth)[0][2]) < 0.02


def test_a_leg_stretched_forward_stays_part_of_the_body():
    mask = disc()
    depth = body_depth(mask)
    leg = mask & (np.mgrid[0:300, 0:200][0] > 190)
    depth[leg] -= 0.4
    assert trusted_depth(mask, depth, K[0, 0], 2)[200:240, 80:120].all()


def test_depth_variance_of_a_normal_is_unbiased():
    rng = np.random.default_rng(2)
    mask = np.ones((150, 40), bool)
    found = [fit(mask, 5 + rng.normal(0, 0.3, mask.shape), erode=0)[1][2, 2] for _ in range(20)]
    assert np.mean(found) == pytest.approx(0.09, rel=0.03)


def test_no_depth_under_the_mask_trusts_nothing():
    assert not trusted_depth(disc(), np.zeros((300, 200)), 500.0, 2).any()


def path(steps=30, seed=0, sigma=0.05):
    rng = np.random.default_rng(seed)
    t = np.arange(steps) / 16
    truth = np.stack([1.2 * t, 0.1 * np.sin(3 * t), 4 + 0.5 * t], -1)
    noise = np.tile(np.diag([0.03, 0.03, 0.15]) ** 2, (steps, 1, 1))
    return truth, truth + rng.normal(size=truth.shape) * np.sqrt(noise[0].diagonal()), noise


def test_smoothed_path_maximises_the_posterior():
    """Oracle: numerical minimum of the negative log posterior with Student-t likelihood over all 6 T unknowns."""
    steps, fps, agility, memory = 10, 16.0, 1.0, 1.5
    _, seen, noise = path(steps)
    seen[4] += [0.5, 0, 1.5]
    observed = np.ones(steps, bool)
    observed[6:8] = False
    dt, decay = 1 / fps, np.exp(-1 / fps / memory)
    F = np.kron([[1, memory * (1 - decay)], [0, decay]], np.eye(3))
    Qi = np.linalg.inv(np.kron(agility * np.array([[dt**3 / 3, dt**2 / 2], [dt**2 / 2, dt]]), np.eye(3)))
    start = np.concatenate([seen[0], np.zeros(3)])
    Wi = np.diag([1 / 25] * 3 + [1 / (agility * memory / 2 + 1)] * 3)
    Ri = np.linalg.inv(noise[0])

    def cost(flat):
        x = flat.reshape(steps, 6)
        jump, first, residual = x[1:] - x[:-1] @ F.T, x[0] - start, (seen - x[:, :3])[observed]
        distance = np.einsum("ti,ij,tj->t", residual, Ri, residual)
        gradient = np.zeros_like(x)
        gradient[0] += Wi @ first
        gradient[1:] += jump @ Qi
        gradient[:-1] -= jump @ Qi @ F
        gradient[np.flatnonzero(observed), :3] -= (7 / (4 + distance))[:, None] * (residual @ Ri)
        value = first @ Wi @ first + np.einsum("ti,ij,tj->", jump, Qi, jump)
        return 0.5 * value + 3.5 * np.log1p(distance / 4).sum(), gradient.ravel()

    got = smooth_path(seen, noise, observed, fps, agility, memory)
    begin = np.concatenate([got.mean, got.velocity], -1).ravel()
    best = minimize(cost, begin, jac=True, method="BFGS", options={"gtol": 1e-7, "maxiter": 5000})
    np.testing.assert_allclose(got.mean, best.x.reshape(steps, 6)[:, :3], atol=2e-3)
    np.testing.assert_allclose(got.velocity, best.x.reshape(steps, 6)[:, 3:], atol=2e-2)


def test_smoothing_halves_the_error_and_ignores_an_outlier():
    truth, seen, noise = path(81)
    seen[40] += [1.0, 0, 3.0]
    got = smooth_path(seen, noise, np.ones(81, bool), 16.0, 1.0, 1.5)
    rms = np.sqrt(((got.mean - truth) ** 2).sum(-1).mean())
    raw = np.sqrt(np.delete(((seen - truth) ** 2).sum(-1), 40).mean())
    assert rms < 0.5 * raw
    assert np.linalg.norm(got.mean[40] - truth[40]) < 0.2


def test_occlusion_is_bridged_and_the_end_slows_down():
    truth, seen, noise = path(81)
    observed = np.ones(81, bool)
    observed[30:45] = observed[60:] = False
    seen[~observed] = np.nan_to_num(np.nan)
    got = smooth_path(seen, noise, observed, 16.0, 1.0, 1.5)
    assert np.linalg.norm(got.mean[30:45] - truth[30:45], axis=-1).max() < 0.25
    assert np.linalg.norm(got.velocity[-1]) < 0.6 * np.linalg.norm(got.velocity[59])
    with pytest.raises(ValueError, match="at least one"):
        smooth_path(seen, noise, np.zeros(81, bool), 16.0, 1.0, 1.5)


def test_covariances_stay_positive_definite_and_constant_ones_stay():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(20, 3, 3))
    cov = root @ root.transpose(0, 2, 1) * 0.1 + RIDGE * np.eye(3)
    observed = rng.random(20) < 0.5
    observed[3] = True
    smooth = smooth_covariance(cov, observed, np.ones(20), 3.0)
    assert np.linalg.eigvalsh(smooth).min() > 0
    np.testing.assert_allclose(smooth, smooth.transpose(0, 2, 1), atol=1e-12)
    same = np.tile(cov[:1], (20, 1, 1))
    np.testing.assert_allclose(smooth_covariance(same, observed, np.ones(20), 3.0), same, rtol=1e-6, atol=1e-9)
