"""The oracle's errors have the statistics that their options state; without errors it is exact."""

import numpy as np
import pytest

from engine.geometry import camera as geometry
from engine.perception.oracle import (
    OracleOptions,
    bleed_edges,
    drop_masks,
    exact_options,
    grow_masks,
    relative_noise,
    smooth_field,
)
from engine.perception.protocols import Depth, Geometry, Tracker
from engine.synthetic import make_world, oracle_from_view, render


@pytest.fixture(scope="module")
def view():
    return render(make_world("street", "walk", seed=2, frames=5, fps=4.0, height=96, width=168))


@pytest.mark.parametrize("length", [12.0, 40.0, 100.0])
def test_smooth_field_has_unit_variance_and_the_stated_correlation(length):
    rng = np.random.default_rng(0)
    fields = np.stack([smooth_field(160, 320, length, rng) for _ in range(300)])
    assert abs(fields.mean()) < 0.05
    assert abs(fields.std() - 1) < 0.05
    for axis in (1, 2):
        a = np.take(fields, 10, axis)
        for share in (0.25, 0.5, 1.0):
            d = round(share * length)
            found = (a * np.take(fields, 10 + d, axis)).mean()
            assert abs(found - np.exp(-((d / length) ** 2))) < 0.08, (axis, d)


def test_relative_noise_adds_its_two_parts_in_the_log():
    depth = np.full((60, 80, 100), 5.0, np.float32)
    depth[:, :5] = 0
    out = relative_noise(depth, 0.02, 0.03, 20.0, np.random.default_rng(1))
    assert (out[:, :5] == 0).all()
    error = np.log(out[:, 5:] / 5.0)
    assert abs(error.std() - np.hypot(0.02, 0.03)) < 0.0015
    # Neighbours share the smooth part alone, frames share nothing.
    assert abs((error[:, :, :-1] * error[:, :, 1:]).mean() - 0.03**2) < 1.5e-4
    assert abs((error[:-1] * error[1:]).mean()) < 1e-4
    white = np.log(relative_noise(depth, 0.02, 0, 20.0, np.random.default_rng(1))[:, 5:] / 5.0)
    assert abs((white[:, :, :-1] * white[:, :, 1:]).mean()) < 1e-5


def test_edges_bleed_within_their_pixels_and_nowhere_else():
    depth = np.full((1, 40, 60), 2.0, np.float32)
    depth[:, :, 30:] = 8.0
    depth[:, :10] = 0
    out = bleed_edges(depth, 3)
    changed = out != depth
    assert not changed[:, :10].any()
    assert changed[0, 20, 28:32].all()
    assert not changed[:, :, :27].any()
    assert not changed[:, :, 33:].any()
    row = out[0, 25]
    assert (np.diff(row) >= -1e-5).all()
    assert ((row[28:32] > 2.2) & (row[28:32] < 7.8)).all()  # flying points, between near and far
    ramp = np.linspace(4, 20, 400, dtype=np.float32)[None, None].repeat(20, 1)
    np.testing.assert_array_equal(bleed_edges(ramp, 3), ramp)
    np.testing.assert_array_equal(bleed_edges(depth, 0), depth)


def test_masks_grow_by_their_pixels_and_keep_their_own():
    labels = np.zeros((1, 60, 60), np.uint8)
    labels[:, 20:40, 20:30], labels[:, 20:40, 30:40] = 1, 2
    grown = grow_masks(labels, 3)
    assert (grown[labels > 0] == labels[labels > 0]).all()
    assert (grown[0, 30] > 0).nonzero()[0].tolist() == list(range(17, 43))
    shrunk = grow_masks(labels, -3)
    assert (shrunk[0, 30] == 1).nonzero()[0].tolist() == list(range(23, 27))
    assert (grow_masks(labels, 0) == labels).all()


def test_masks_drop_out_as_often_as_stated():
    labels = np.zeros((2000, 2, 3), np.uint8)
    labels[:] = [[1, 2, 3], [0, 2, 3]]
    out = drop_masks(labels, 0.1, 0.0, np.random.default_rng(3))
    for n in (1, 2, 3):
        present = (out == n).any((1, 2))
        assert abs((~present).mean() - 0.1) < 0.03
        whole = (out == n).sum((1, 2))
        assert set(whole.tolist()) <= {0, 1 if n == 1 else 2}  # a mask is there or it is not
    never = [int(drop_masks(labels[:4], 0.0, 0.5, np.random.default_rng(s)).max() == 0) for s in range(400)]
    assert abs(np.mean(never) - 0.125) < 0.05


def test_without_errors_the_oracle_is_exact(view):
    clip, models = oracle_from_view(view, exact_options())
    assert isinstance(models.tracker, Tracker)
    assert isinstance(models.geometry, Geometry)
    assert isinstance(models.depth, Depth)
    tracks = models.tracker.track(clip)
    estimate = models.geometry.geometry(clip, tracks)
    depth = models.depth.depth(clip, tracks, estimate)
    np.testing.assert_array_equal(tracks.labels, view.labels)
    np.testing.assert_array_equal(tracks.dynamic, view.labels > 0)
    assert [s.label for s in tracks.subjects] == [1, 2]
    np.testing.assert_array_equal(estimate.depth, view.depth)
    np.testing.assert_array_equal(estimate.sky, view.depth == 0)
    np.testing.assert_allclose(estimate.K, view.K, rtol=1e-6)
    assert estimate.c2w_exact
    np.testing.assert_array_equal(estimate.c2w[0], np.eye(4))
    # The same rigid path, whatever the frame of reference: relative poses agree.
    np.testing.assert_allclose(estimate.c2w, geometry.invert(view.c2w[0]) @ view.c2w, atol=1e-5)
    np.testing.assert_allclose(view.c2w[0, :3, :3] @ estimate.up, [0, -1, 0], atol=1e-6)
    assert depth.kind == "disparity"
    seen = view.depth > 0
    np.testing.assert_allclose(depth.values[seen], 1 / view.depth[seen], rtol=1e-6)
    assert (depth.values[~seen] == 0).all()  # the sky
    assert not clip.frames.flags.writeable or clip.frames is view.frames


def test_the_defaults_err_as_they_say_and_hide_the_poses(view):
    options = OracleOptions(edge_bleed=0, mask_dropout=0.0)
    clip, models = oracle_from_view(view, options)
    tracks = models.tracker.track(clip)
    estimate = models.geometry.geometry(clip, tracks)
    assert estimate.c2w is None
    assert estimate.up is None
    assert not estimate.c2w_exact
    ok = view.depth > 0
    np.testing.assert_array_equal(estimate.depth > 0, ok)
    log = np.where(ok, np.log(np.where(ok, estimate.depth, 1) / np.where(ok, view.depth, 1)), np.nan)
    per_frame = np.nanmean(log, (1, 2))
    assert 0.005 < per_frame.std() < 0.15  # five draws of 5 %, and the smooth error of a small picture
    fine = log - np.roll(log, 1, 2)
    assert abs(np.nanstd(fine[:, :, 1:]) / np.sqrt(2) - options.depth_noise) < 0.003
    assert (tracks.labels > 0).sum() > (view.labels > 0).sum()
    assert (tracks.labels[view.labels > 0] == view.labels[view.labels > 0]).all()


def test_disparity_is_affine_in_the_inverse_depth_of_each_frame(view):
    options = exact_options(disparity_scale=3.0, disparity_scale_jitter=0.1, disparity_shift_jitter=0.05)
    clip, models = oracle_from_view(view, options)
    values = models.depth.depth(clip, None, None).values
    fits = []
    for t in range(5):
        ok = view.depth[t] > 0
        a, b = np.polyfit(1 / view.depth[t][ok].astype(float), values[t][ok].astype(float), 1)
        np.testing.assert_allclose(values[t][ok], a / view.depth[t][ok] + b, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(values[t][~ok], b, atol=1e-5)
        fits.append((a, b))
    a, b = np.array(fits).T
    assert 0 < np.log(a / 3.0).std() < 0.3
    assert 0 < (b / 3.0).std() < 0.15


def test_other_errors_do_what_their_names_say(view):
    def answers(**changes):
        clip, models = oracle_from_view(view, exact_options(**changes))
        return models.tracker.track(clip), models.geometry.geometry(clip, None), models

    _, sky, _ = answers(sky_depth=200.0)
    assert (sky.depth[view.depth == 0] == 200).all()
    _, focal, _ = answers(focal_jitter=0.1)
    ratio = focal.K[:, 0, 0] / view.K[:, 0, 0]
    assert 0 < np.log(ratio).std() < 0.3
    np.testing.assert_allclose(focal.K[:, 1, 1] / view.K[:, 1, 1], ratio, rtol=1e-5)
    assert focal.K_source == "estimated"
    _, biased, _ = answers(log_scale_bias=0.1)
    ok = view.depth > 0
    np.testing.assert_allclose(biased.depth[ok] / view.depth[ok], np.exp(0.1), rtol=1e-5)
    nobody, _, _ = answers(subject_dropout=1.0)
    assert nobody.subjects == ()
    assert not nobody.labels.any()
    assert answers(disparity=False)[2].depth is None


def test_errors_depend_on_the_seed_and_not_on_each_other(view):
    def depth(**changes):
        clip, models = oracle_from_view(view, OracleOptions(**changes))
        return models.geometry.geometry(clip, None).depth

    np.testing.assert_array_equal(depth(), depth())
    np.testing.assert_array_equal(depth(), depth(mask_dilation=9, focal_jitter=0.2, disparity_noise=0.5))
    assert (depth() != depth(seed=1)).mean() > 0.5
