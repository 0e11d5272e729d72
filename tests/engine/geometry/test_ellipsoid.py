"""Ellipsoids against a brute-force float64 quadratic per pixel."""

import numpy as np
import pytest

from engine.geometry.camera import intrinsics, invert, look_at, pixel_grid, rays
from engine.geometry.ellipsoid import draw_ellipsoid, outline_box
from shards.palette import subject_colour

HEIGHT, WIDTH = 60, 90
K = intrinsics(80.0, 75.0, WIDTH, HEIGHT)
C2W = look_at(np.array([0.4, -0.5, -1.0]), np.array([0.0, 0.2, 3.0]), np.array([0.1, -1.0, 0]))


def random_subject(seed: int):
    rng = np.random.default_rng(seed)
    root = rng.normal(0, 0.25, (3, 3))
    return rng.uniform([-1, -1, 1.0], [1, 1, 5]), root @ root.T + 0.01 * np.eye(3)


def oracle(mean, cov, sigmas=2.5):
    """Depth [H,W] of the nearer intersection ahead, inf where the ray misses: world-frame quadratic."""
    A = np.linalg.inv(cov) / sigmas**2
    d = rays(K, pixel_grid(HEIGHT, WIDTH).astype(float)) @ C2W[:3, :3].T
    o = C2W[:3, 3] - mean
    a, b, c = np.einsum("hwi,ij,hwj->hw", d, A, d), np.einsum("hwi,ij,j->hw", d, A, o), o @ A @ o - 1
    with np.errstate(invalid="ignore"):
        t = (-b - np.sqrt(b * b - a * c)) / a
    return np.where(np.isfinite(t) & (t > 0) & (c > 0), t, np.inf)


def blank():
    return (
        np.zeros((HEIGHT, WIDTH, 3), np.uint8),
        np.zeros((HEIGHT, WIDTH), np.float32),
        np.full((HEIGHT, WIDTH), 255, np.uint8),
    )


@pytest.mark.parametrize("seed", range(8))
def test_depth_and_ids_agree_at_every_pixel(seed):
    mean, cov = random_subject(seed)
    truth = oracle(mean, cov)
    rgb, depth, ids = blank()
    draw_ellipsoid(rgb, depth, ids, mean, cov, 3, K, C2W)
    np.testing.assert_array_equal(ids == 3, np.isfinite(truth))
    np.testing.assert_allclose(depth, np.where(np.isfinite(truth), truth, 0), rtol=1e-5)
    assert np.isfinite(truth).any()


def test_background_in_front_hides_and_behind_is_hidden():
    mean, cov = random_subject(0)
    truth = oracle(mean, cov)
    middle = np.median(truth[np.isfinite(truth)])
    rgb, depth, ids = blank()
    depth[:] = middle
    ids[:] = 0
    draw_ellipsoid(rgb, depth, ids, mean, cov, 1, K, C2W)
    np.testing.assert_array_equal(ids == 1, truth < middle)
    np.testing.assert_allclose(depth, np.minimum(truth, middle), rtol=1e-5)


def test_order_of_subjects_does_not_matter():
    subjects = [random_subject(s) for s in (1, 2, 5)]
    pictures = []
    for order in ((0, 1, 2), (2, 1, 0)):
        rgb, depth, ids = blank()
        for n in order:
            draw_ellipsoid(rgb, depth, ids, *subjects[n], n + 1, K, C2W)
        pictures.append((rgb, depth, ids))
    for a, b in zip(*pictures, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("seed", range(8))
def test_outline_box_is_tight(seed):
    mean, cov = random_subject(seed)
    w2c = invert(C2W)
    R = w2c[:3, :3]
    box = outline_box(R @ mean + w2c[:3, 3], R @ cov @ R.T, K, HEIGHT, WIDTH)
    rows, columns = np.nonzero(np.isfinite(oracle(mean, cov)))
    found = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    assert np.all(np.array(box[:2]) <= found[:2])
    assert np.all(np.array(box[2:]) >= found[2:])
    assert np.abs(np.array(box) - found).max() <= 2


def test_inside_or_behind_the_camera_nothing_is_drawn():
    for mean in (C2W[:3, 3], C2W[:3, 3] - 3 * C2W[:3, 2]):
        rgb, depth, ids = blank()
        draw_ellipsoid(rgb, depth, ids, mean, 0.1 * np.eye(3), 1, K, C2W)
        assert not depth.any()
        assert (ids == 255).all()


def test_soft_density_is_full_in_the_middle_and_fades():
    mean = C2W[:3, 3] + 4 * C2W[:3, 2]
    rgb, depth, ids = blank()
    draw_ellipsoid(rgb, depth, ids, mean, 0.04 * np.eye(3), 1, K, C2W, soft=True)
    colour = np.array(subject_colour(1))
    assert np.abs(rgb[HEIGHT // 2, WIDTH // 2] - colour).max() <= 3
    x = WIDTH // 2 + int(80 * 0.4 / 4)  # two standard deviations to the side
    u = (x + 0.5 - WIDTH / 2) / (80 * 0.2 / 4)
    assert rgb[HEIGHT // 2, x, 2] <= colour[2] * np.exp(-0.5 * u * u) + 1
    assert ids[HEIGHT // 2, x] == 1
