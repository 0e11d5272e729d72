"""Alignment of relative disparity to metric depth: the affine maps are recovered, flicker and outliers are not."""

import numpy as np
import pytest

from engine.geometry.align import Matches, align_disparity, balance_bins


def clip(seed: int, frames: int = 20, samples: int = 1500, speed: float = 0.08):
    """True depth of static points seen by a camera that moves forward, and their (a_t, b_t)-mapped disparity."""
    rng = np.random.default_rng(seed)
    z0 = np.exp(rng.uniform(np.log(3), np.log(40), samples))
    z = z0[None] - speed * np.arange(frames)[:, None]
    a = np.exp(0.3 * rng.normal(size=frames))
    b = 0.02 * rng.normal(size=frames)
    disparity = (1 / z - b[:, None]) / a[:, None]
    xy = rng.uniform(-400, 400, (samples, 2))
    return rng, z, disparity, a, b, Matches(disparity[:-1], disparity[1:], xy)


def test_exact_data_give_the_maps_exactly():
    _, z, d, a, b, matches = clip(0)
    found = align_disparity(d, z, matches)
    # The only model error left is the second order of the camera motion
    np.testing.assert_allclose(found[0], a, rtol=1e-3)
    np.testing.assert_allclose(found[1], b, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_a_fifth_of_wild_depth_is_survived(seed: int):
    rng, z, d, _, _, matches = clip(seed)
    wild = rng.uniform(size=z.shape) < 0.2
    shaken = np.where(wild, z * rng.uniform(0.2, 5, z.shape), z * np.exp(0.03 * rng.normal(size=z.shape)))
    found = align_disparity(d, shaken, matches)
    relative = (found[0][:, None] * d + found[1][:, None]) * z - 1
    assert np.median(np.abs(relative)) < 0.01


@pytest.mark.parametrize("seed", range(3))
def test_flicker_of_the_metric_head_is_more_than_halved(seed: int):
    rng, z, d, _, _, matches = clip(seed, frames=60)
    jitter = 0.05 * rng.normal(size=60)
    flickering = z * np.exp(jitter)[:, None]

    def scale_flicker(a: np.ndarray, b: np.ndarray) -> float:
        scale = np.median(np.log((a[:, None] * d + b[:, None]) * z), axis=1)
        return float(np.median(np.abs(np.diff(scale))))

    alone, steady = align_disparity(d, flickering, None), align_disparity(d, flickering, matches)
    assert scale_flicker(*steady) < 0.4 * scale_flicker(*alone)
    # and the clip's scale stays the metric head's
    assert np.median((steady[0][:, None] * d + steady[1][:, None]) * z) == pytest.approx(1, abs=0.03)


def test_missing_values_take_no_part():
    _, z, d, a, _, matches = clip(1)
    z[:, ::3], d[:, 1::3] = 0, np.nan
    before, after = matches.before.copy(), matches.after.copy()
    before[:, ::5] = np.nan
    found = align_disparity(d, z, Matches(before, after, matches.xy))
    np.testing.assert_allclose(found[0], a, rtol=2e-3)


def test_near_and_far_weigh_alike():
    disparity = np.r_[np.full(900, 0.05), np.full(100, 0.5)]
    weight = balance_bins(disparity)
    assert weight[900:].sum() / weight[:900].sum() > 0.4
    assert weight.mean() == pytest.approx(1)


def test_nothing_usable_is_an_error_that_says_so():
    with pytest.raises(ValueError, match="usable samples"):
        align_disparity(np.full((3, 10), np.nan), np.ones((3, 10)))
