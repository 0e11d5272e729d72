"""The embedded geometry: each part against an oracle, then the whole against a world that is known exactly."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg

from engine.geometry.camera import first_frame_world, look_at, pixel_grid, rays
from engine.perception.embedded import EmbeddedGeometry, EmbeddedGeometryOptions
from engine.perception.embedded import geometry as embedded_geometry
from engine.perception.embedded.complete import _links, complete, upsample
from engine.perception.embedded.focal import FocalOptions, prior_intrinsics
from engine.perception.embedded.ground import GroundOptions, Plane, fit_ground, ground_from_feet, prior_up
from engine.perception.embedded.scale import focal_sigma, people_scale, smooth_distances
from engine.perception.embedded.sky import SkyOptions, find_sky
from engine.perception.embedded.sweep import SweepOptions, sweep
from engine.perception.protocols import Geometry
from engine.synthetic import make_world, oracle_from_view, render
from engine.types import Tracks

UP = np.array([0.0, -1.0, 0.0])


@pytest.fixture(scope="module")
def world():
    view = render(make_world("room", "orbit", agents=3, seed=0, frames=17, height=120, width=208))
    clip, models = oracle_from_view(view)
    clip = replace(clip, K=view.K[0], K_source="user")
    tracks = models.tracker.track(clip)
    return view, clip, tracks, EmbeddedGeometry(EmbeddedGeometryOptions()).geometry(clip, tracks)


def test_sweep_finds_the_true_depth_where_it_is_sure(world):
    view, clip, *_ = world
    gray = np.stack([cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in clip.frames])
    near = 0.9 * float(view.depth[view.depth > 0].min())
    inverse, sure = sweep(
        gray, view.labels == 0, view.K[0], first_frame_world(view.c2w), (0.0, 1 / near), SweepOptions()
    )
    good = (sure > 0.5) & (view.labels == 0)
    assert good[view.labels == 0].mean() > 0.4
    error = np.abs(inverse[good] * view.depth[good] - 1)
    assert np.median(error) < 0.03
    bad = (sure < 0.1) & (view.labels == 0)
    assert np.median(np.abs(inverse[bad] * view.depth[bad] - 1)) > 2 * np.median(
        error
    )  # the confidence means something


def test_sweep_of_a_still_camera_knows_nothing(world):
    _, clip, *_ = world
    gray = np.stack([cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in clip.frames[:3]])
    still = np.repeat(np.eye(4)[None], 3, 0)
    _, sure = sweep(gray, np.ones(gray.shape, bool), np.diag([200.0, 200.0, 1.0]), still, (0.0, 1.0), SweepOptions())
    assert (sure == 0).all()


def test_completion_solves_its_least_squares():
    rng = np.random.default_rng(0)
    h, w = 14, 18
    value, prior = rng.random((2, h, w), np.float32)
    weight = np.where(rng.random((h, w)) < 0.2, 1, 0).astype(np.float32)
    guide = rng.integers(0, 40, (h, w), np.uint8)
    barrier = np.zeros((h, w), bool)
    barrier[:4] = True
    horizontal, vertical = _links(guide, barrier)
    index = np.arange(h * w).reshape(h, w)
    i = np.concatenate([index[:, :-1].ravel(), index[:-1].ravel()])
    j = np.concatenate([index[:, 1:].ravel(), index[1:].ravel()])
    g = np.concatenate([horizontal.ravel(), vertical.ravel()])
    L = scipy.sparse.coo_matrix((-g, (i, j)), (h * w, h * w))
    L = L + L.T
    A = scipy.sparse.diags(weight.ravel() + 0.05 - np.asarray(L.sum(1)).ravel()) + L
    exact = scipy.sparse.linalg.spsolve(A.tocsc(), ((value - prior) * weight).ravel()).reshape(h, w) + prior
    np.testing.assert_allclose(complete(value, weight, prior, guide, barrier, pull=0.05), exact, atol=0.01)


def test_upsampling_keeps_a_constant_and_follows_the_guide():
    guide = np.full((90, 120), 40, np.uint8)
    guide[:, 61:] = 200
    small_guide = cv2.resize(guide, (40, 30), interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(upsample(np.full((30, 40), 0.3, np.float32), small_guide, guide), 0.3, atol=1e-5)
    step = np.where(np.arange(40) < 20, 0.2, 0.8).astype(np.float32)[None].repeat(30, 0)
    out = upsample(step, small_guide, guide)
    assert abs(out[45, 58] - 0.2) < 0.1
    assert abs(out[45, 64] - 0.8) < 0.1


def test_ground_is_found_among_walls_and_clutter():
    rng = np.random.default_rng(1)
    floor = np.column_stack([rng.uniform(-4, 4, 3000), np.full(3000, 1.6), rng.uniform(2, 12, 3000)])
    floor[:, 1] += rng.normal(0, 0.01, 3000)
    wall = np.column_stack([rng.uniform(-4, 4, 3000), rng.uniform(-2, 1.6, 3000), np.full(3000, 12.0)])
    points = np.concatenate([floor, wall])
    tilt = look_at(np.zeros(3), np.array([0, 0.1, 1.0]), UP)[:3, :3]
    plane = fit_ground(points, np.ones(len(points)), np.zeros_like(points), tilt @ UP, GroundOptions())
    assert np.degrees(np.arccos(plane.normal @ UP)) < 0.5
    assert plane.height(np.zeros(3)) == pytest.approx(1.6, abs=0.02)


def test_ground_inverse_depth_is_the_rays_meeting_with_the_plane():
    K = np.array([[300.0, 0, 160], [0, 300, 90], [0, 0, 1]])
    c2w = look_at(np.array([1.0, -1.5, 2.0]), np.array([0, 0, 9.0]), UP)
    plane = Plane(UP, 0.0, 1.0)
    directions = rays(K, pixel_grid(180, 320).astype(float))
    inverse = plane.inverse_depth(c2w, directions)
    down = inverse > 0.02
    points = (directions / inverse[..., None])[down] @ c2w[:3, :3].T + c2w[:3, 3]
    np.testing.assert_allclose(points[:, 1], 0, atol=1e-9)
    up_there = np.array([0, -1.0, 1])
    assert plane.inverse_depth(look_at(np.array([0, -1.5, 0]), np.array([0, -1.5, 1]), UP), up_there) < 0


def test_feet_give_the_ground_of_a_camera_that_looks_down():
    rng = np.random.default_rng(2)
    tilt = np.radians(15)
    normal = np.array([0, -np.cos(tilt), -np.sin(tilt)])
    across, along = np.array([1.0, 0, 0]), np.array([0, -np.sin(tilt), np.cos(tilt)])
    feet = rng.uniform(-3, 3, (60, 1)) * across + rng.uniform(2, 9, (60, 1)) * along - 1.5 * normal
    feet *= 1 + rng.normal(0, 0.02, (60, 1))  # PnP's error is along the ray
    eyes = np.zeros_like(feet)
    level = ground_from_feet(feet, eyes, UP, GroundOptions())
    assert np.degrees(np.arccos(level.normal @ normal)) < 5
    assert level.height(np.zeros(3)) == pytest.approx(1.5, rel=0.1)
    assert ground_from_feet(feet[:2], eyes[:2], UP, GroundOptions()) is None


def test_up_believes_standing_people_and_ignores_lying_ones():
    c2w = np.repeat(np.eye(4)[None], 5, 0)
    assert prior_up(c2w, np.zeros((0, 3))) @ UP == pytest.approx(1)
    lying = np.repeat([[1.0, 0, 0]], 10, 0)
    assert prior_up(c2w, lying) @ UP == pytest.approx(1)
    lean = np.radians(20)
    standing = np.repeat([[0, -np.cos(lean), -np.sin(lean)]], 10, 0)
    assert np.degrees(np.arccos(prior_up(c2w, standing) @ UP)) == pytest.approx(10, abs=0.1)


def test_scale_is_the_consensus_of_the_people():
    rng = np.random.default_rng(3)
    ratios = [s * 2.5 * np.exp(rng.normal(0, 0.05, 40)) for s in (1.0, 1.04, 0.97)]
    scale, sigma, factors = people_scale(ratios, 0.06)
    assert scale == pytest.approx(2.5, rel=0.03)
    assert 0.03 < sigma < 0.06
    np.testing.assert_allclose([f * np.median(r) for f, r in zip(factors, ratios, strict=True)], scale, rtol=1e-6)
    step = [*ratios, 1.5 * 2.5 * np.ones(40)]  # somebody on a staircase
    assert people_scale(step, 0.06)[0] == pytest.approx(2.5, rel=0.06)
    assert people_scale([np.array([]), np.full(5, np.nan)], 0.06) is None


def test_an_uncertain_focal_length_makes_the_scale_uncertain():
    assert focal_sigma(720, 0.02, 720, 0.0) == 0  # known
    assert focal_sigma(760, 0.02, 720, 0.15) == pytest.approx(0.02)  # solved, in agreement with the prior
    assert focal_sigma(720, np.inf, 720, 0.15) == pytest.approx(0.15)  # the prior alone
    assert focal_sigma(1316, 0.02, 720, 0.15) > 0.3  # four standard deviations off


def test_smoothed_distance_follows_a_walker_and_drops_outliers():
    t = np.arange(40)
    true = 3 * np.exp(0.02 * t)
    seen = np.r_[0:12, 18:40]
    noisy = true[seen] * np.exp(np.random.default_rng(4).normal(0, 0.02, len(seen)))
    noisy[7] *= 1.6
    out = smooth_distances(seen, noisy, 40)
    assert np.abs(out / true - 1).max() < 0.05


def test_focal_comes_from_the_clip_or_from_the_stated_prior(world):
    _, clip, *_ = world
    K, source = prior_intrinsics(clip, FocalOptions())
    np.testing.assert_array_equal(K, clip.K)
    assert source == clip.K_source
    view = replace(clip.view, source_height=1920, source_width=1080, crop_width=1080, crop_height=624)
    K, source = prior_intrinsics(replace(clip, K=None, view=view), FocalOptions())
    assert source == "prior"
    assert K[0, 0] == pytest.approx(960 / np.tan(np.radians(30)) * 208 / 1080)  # the portrait's longer side is 1920


def sky_of(frame, inverse=0.0, confidence=0.0):
    """bool [h,w]: the sky of a clip of one frame, or bool [T,h,w] of several."""
    frames = frame if frame.ndim == 4 else frame[None]
    one = np.ones(frames.shape[:3], np.float32)
    sky = find_sky(frames, one < 0, inverse * one, confidence * one, 0.05, SkyOptions())
    return sky if frame.ndim == 4 else sky[0]


def test_sky_is_blue_or_bright_even_and_at_the_top():
    frame = np.full((100, 160, 3), (120, 170, 235), np.uint8)
    frame[50:] = np.random.default_rng(0).integers(0, 255, (50, 160, 3))
    frame[70:90, 20:60] = (120, 170, 235)  # a lake
    sky = sky_of(frame)
    assert sky[:45].mean() > 0.97
    assert not sky[55:].any()
    close = sky_of(frame, 0.5, 1.0)
    assert not close.any()  # a blue wall that stereo sees near


def test_a_bright_window_is_no_sky_and_an_overcast_sky_is():
    frame = np.random.default_rng(0).integers(0, 120, (100, 160, 3)).astype(np.uint8)
    window, overcast, gap = frame.copy(), frame.copy(), frame.copy()
    window[:40, 20:90] = 245
    overcast[:40] = 225
    gap[:40, 20:90] = (120, 170, 235)  # blue between two houses
    assert not sky_of(window).any()
    assert sky_of(overcast)[:38].mean() > 0.95
    assert sky_of(gap)[2:38, 25:85].mean() > 0.95


def test_sky_is_decided_for_the_whole_clip():
    """A pale window that fills the top of the picture in one frame of five is a window there too; a sky that a tree
    narrows in one frame stays one."""
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 120, (5, 100, 160, 3)).astype(np.uint8)
    window, sky = clip.copy(), clip.copy()
    window[:, :40, 20:90], sky[:, :40] = 245, 225
    window[2, :40] = 245
    sky[2, :40, 60:] = clip[2, :40, 60:]
    assert sky_of(window[2]).any()
    assert not sky_of(sky[2]).any()
    assert not sky_of(window).any()
    assert sky_of(sky)[2, 2:38, :58].mean() > 0.95


def test_the_whole_recovers_a_room_in_metres(world):
    view, _, tracks, geometry = world
    assert isinstance(EmbeddedGeometry(EmbeddedGeometryOptions()), Geometry)
    assert geometry.models["embedded"]["scale"] == "people"
    static = (view.labels == 0) & (geometry.confidence > 0.5)
    ratio = geometry.depth[static] / view.depth[static]
    assert np.median(ratio) == pytest.approx(1, abs=3 * geometry.log_scale_sigma)
    # One second at 208 pixels: the poses carry a few per cent; exact poses give 1 % (see the sweep above).
    assert np.median(np.abs(ratio / np.median(ratio) - 1)) < 0.1
    true = first_frame_world(view.c2w)[:, :3, 3] * np.median(ratio)
    length = np.linalg.norm(np.diff(true, axis=0), axis=1).sum()
    assert np.sqrt(((geometry.c2w[:, :3, 3] - true) ** 2).sum(1).mean()) < 0.1 * length
    assert np.degrees(np.arccos(geometry.up @ (view.c2w[0, :3, :3].T @ UP))) < 3
    for label in (1, 2):
        own = tracks.labels == label
        body = np.median(geometry.depth[own] / view.depth[own])
        assert body == pytest.approx(np.median(ratio), rel=0.1)  # people stand where the room says


def test_a_lens_that_the_tracks_dispute_makes_the_scale_uncertain(world, monkeypatch):
    """The camera is held at the prior's lens, though the tracks chose one twice as long."""
    _, clip, tracks, _ = world
    clip = replace(clip, K=None)
    solve, ways = embedded_geometry.solve_monocular, EmbeddedGeometry(EmbeddedGeometryOptions())
    agreed = ways.geometry(clip, tracks)

    def held(points, K, sigma):
        found = solve(points, K, sigma)
        return replace(found, quality=found.quality | {"free_focal": 2 * K[0, 0]})

    monkeypatch.setattr(embedded_geometry, "solve_monocular", held)
    disputed = ways.geometry(clip, tracks)
    np.testing.assert_array_equal(disputed.depth, agreed.depth)
    assert disputed.log_scale_sigma > agreed.log_scale_sigma + 0.1


def test_equal_clips_give_equal_geometry(world):
    _, clip, tracks, geometry = world
    again = EmbeddedGeometry(EmbeddedGeometryOptions()).geometry(clip, tracks)
    np.testing.assert_array_equal(again.depth, geometry.depth)
    np.testing.assert_array_equal(again.c2w, geometry.c2w)


def test_a_turning_camera_without_people_falls_back_to_its_height_and_says_so():
    view = render(make_world("street", "rotation", agents=1, seed=0, frames=9, height=120, width=208))
    clip, _ = oracle_from_view(view)
    clip = replace(clip, K=view.K[0], K_source="user")
    nothing = np.zeros(clip.frames.shape[:3], bool)
    geometry = EmbeddedGeometry(EmbeddedGeometryOptions()).geometry(clip, Tracks(nothing.astype(np.uint8), nothing, ()))
    assert geometry.models["embedded"]["scale"] == "camera_height"
    assert geometry.log_scale_sigma >= 0.4  # neither the height nor the tilt of the camera is known
    np.testing.assert_allclose(geometry.c2w[:, :3, 3], 0, atol=1e-6)
    column = geometry.depth[0, 80:, 104]
    assert (np.diff(column) <= 0).all()  # the ground comes nearer towards the lower border
    assert column[0] > 2 * column[-1]
