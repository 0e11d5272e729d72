"""The five stages on a world whose every pixel has an exact answer."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from analytic import BALLS, BODY, ROOM, body_centre, world

from engine.geometry.camera import invert, project, transform, unproject_depth
from engine.stages.background import BackgroundOptions, build_backgrounds, whole_frames
from engine.stages.identity import IdentityOptions, pick_identities
from engine.stages.quality import measure_quality
from engine.stages.render import RenderOptions, render_condition
from engine.stages.scene import SceneOptions
from engine.stages.subjects import SubjectOptions, unroll_subjects
from engine.types import Cloud
from shards.schema import HOLE, QUALITY

DILATION = SceneOptions().dilation
PIXEL = 0.027  # metres that one pixel covers on the surfaces in the middle of the room, 4.8 m away


@pytest.fixture(scope="module")
def truth():
    return world()


@pytest.fixture(scope="module")
def built(truth):
    clip, scene, camera, _ = truth
    anchor, holistic = build_backgrounds(clip, scene, camera, DILATION, BackgroundOptions())
    subjects = unroll_subjects(clip, scene, camera, SubjectOptions())
    renders = [render_condition(clip.size, camera, subjects, c, RenderOptions()) for c in (anchor, holistic)]
    return anchor, holistic, subjects, *renders


def off_surface(xyz, w0):
    """Metres from each world point to the nearest surface of the room or a ball."""
    p = transform(w0, xyz.astype(float))
    walls = np.minimum(np.abs(p - ROOM[0]), np.abs(p - ROOM[1])).min(-1)
    return np.minimum(walls, np.min([np.abs(np.linalg.norm(p - c, axis=-1) - r) for c, r in BALLS], axis=0))


def visible(clip, scene, camera, t):
    """Exact world points of the subject's pixels in frame t."""
    points = unproject_depth(camera.K[t].astype(float), scene.depth[t].astype(float))
    return transform(camera.c2w[t].astype(float), points[scene.tracks.labels[t] == 1])


# ---- subjects


def test_mean_is_the_visible_centroid_and_projections_agree(truth, built):
    clip, scene, camera, _ = truth
    subjects = built[2]
    for t in range(len(clip.frames)):
        points = visible(clip, scene, camera, t)
        assert np.linalg.norm(subjects.mean[0, t] - points.mean(0)) < 0.05
        local = transform(invert(camera.c2w[t].astype(float)), subjects.mean[0, t].astype(float))
        np.testing.assert_allclose(subjects.mean_camera[0, t], local, atol=1e-5)
        np.testing.assert_allclose(subjects.uv[0, t], project(camera.K[t].astype(float), local)[0], atol=1e-3)
    assert subjects.observed.all()
    # it walks along the world's x axis of the scene; heading is the direction of travel in first-camera axes
    w0 = truth[3]
    travel = w0[:3, :3].T @ (body_centre(1.0) - body_centre(0.0))
    np.testing.assert_allclose(subjects.heading[0], np.arctan2(travel[0], travel[2]), atol=0.15)


def test_plain_fit_is_exactly_the_sample_covariance(truth):
    clip, scene, camera, _ = truth
    plain = unroll_subjects(clip, scene, camera, SubjectOptions(robust=False))
    for t in (0, 9):
        points = visible(clip, scene, camera, t)
        np.testing.assert_allclose(plain.mean[0, t], points.mean(0), rtol=1e-6)
        np.testing.assert_allclose(
            plain.cov[0, t], np.cov(points, rowvar=False) + 1e-6 * np.eye(3), rtol=1e-4, atol=1e-8
        )
        assert plain.points[0, t] == len(points)


def test_an_occluded_subject_is_bridged(truth):
    clip, scene, camera, _ = truth
    labels = scene.tracks.labels.copy()
    labels[6:10] = 0
    hidden = replace(scene, tracks=replace(scene.tracks, labels=labels))
    subjects = unroll_subjects(clip, hidden, camera, SubjectOptions())
    np.testing.assert_array_equal(np.flatnonzero(~subjects.observed[0]), [6, 7, 8, 9])
    for t in range(6, 10):
        assert np.linalg.norm(subjects.mean[0, t] - visible(clip, scene, camera, t).mean(0)) < 0.12
    assert np.linalg.eigvalsh(subjects.cov[0].astype(float)).min() > 0


def test_frame_scale_is_applied(truth, built):
    clip, scene, camera, _ = truth
    factor = np.linspace(0.9, 1.1, len(clip.frames)).astype(np.float32)
    wrong = replace(scene, depth=scene.depth / factor[:, None, None])
    right = replace(camera, scale_t=factor)
    subjects = unroll_subjects(clip, wrong, right, SubjectOptions())
    np.testing.assert_allclose(subjects.mean, built[2].mean, atol=1e-3)
    anchor, holistic = build_backgrounds(clip, wrong, right, DILATION, BackgroundOptions())
    assert np.percentile(off_surface(holistic.xyz, truth[3]), 99) < 2 * PIXEL
    np.testing.assert_allclose(anchor.xyz, built[0].xyz, atol=1e-3)


def test_no_subjects_gives_empty_arrays():
    clip, scene, camera, _ = world(frames=5, subject=False)
    subjects = unroll_subjects(clip, scene, camera, SubjectOptions())
    assert subjects.mean.shape == (0, 5, 3)
    assert subjects.cov.shape == (0, 5, 3, 3)
    assert subjects.heading.shape == subjects.observed.shape == subjects.points.shape == (0, 5)
    assert pick_identities(clip, scene, IdentityOptions()) == ()


def test_subject_without_depth_is_refused_by_name(truth):
    clip, scene, camera, _ = truth
    blind = replace(scene, depth=np.where(scene.tracks.labels > 0, 0, scene.depth))
    with pytest.raises(ValueError, match=r"subject 1 \(person\) has depth in none of its 17"):
        unroll_subjects(clip, blind, camera, SubjectOptions())


# ---- identities


def test_identity_prefers_sharp_whole_frames(truth):
    import cv2

    clip, scene, _camera, _ = truth
    labels = np.zeros_like(scene.tracks.labels)
    labels[:, 30:90, 60:100] = 1
    labels[3, 0:90] = labels[3, 50]  # reaches the border: larger, yet cut off
    rng = np.random.default_rng(0)
    frames = np.tile(rng.integers(0, 255, (1, *clip.frames.shape[1:]), dtype=np.uint8), (17, 1, 1, 1))
    for t in range(17):
        if t not in (3, 11):
            frames[t] = cv2.GaussianBlur(frames[t], (0, 0), 2.0)
    busy = replace(scene, tracks=replace(scene.tracks, labels=labels))
    (identity,) = pick_identities(replace(clip, frames=frames), busy, IdentityOptions())
    assert identity.frame == 11
    assert identity.box == (60, 30, 100, 90)
    pad = round(0.06 * 60)
    assert identity.rgba.shape == (60 + 2 * pad, 40 + 2 * pad, 4)
    alpha = identity.rgba[..., 3]
    assert not alpha[:pad].any()
    assert (alpha[pad + 2 : -pad - 2, pad + 2 : -pad - 2] == 255).all()
    inside = identity.rgba[pad + 2 : -pad - 2, pad + 2 : -pad - 2, :3]
    np.testing.assert_array_equal(inside, frames[11, 32:88, 62:98])


def test_identity_prefers_the_front_and_a_whole_head(truth):
    clip, scene, _camera, _ = truth
    labels = np.zeros_like(scene.tracks.labels)
    labels[:, 30:, 60:100] = 1  # the feet are out of the picture in every frame
    labels[:9, :31, 60:100] = 1  # and so is the head in the first nine
    facing = np.zeros((17, 3), np.float32)
    facing[:, 2] = 1  # seen from behind
    facing[[4, 13], 2] = -1
    (track,) = scene.tracks.subjects
    frames = np.tile(
        np.random.default_rng(0).integers(0, 255, (1, *clip.frames.shape[1:]), dtype=np.uint8), (17, 1, 1, 1)
    )
    turned = replace(scene.tracks, labels=labels, subjects=(replace(track, score=np.ones(17), facing=facing),))
    (identity,) = pick_identities(replace(clip, frames=frames), replace(scene, tracks=turned), IdentityOptions())
    assert identity.frame == 13


# ---- backgrounds


def test_points_lie_on_static_surfaces(truth, built):
    for cloud in built[:2]:
        assert len(cloud.xyz) > 5000
        distance = off_surface(cloud.xyz, truth[3])
        assert np.percentile(distance, 90) < 0.5 * PIXEL
        assert np.percentile(distance, 99) < 2 * PIXEL  # corners, which the depth median rounds
        assert distance.max() < 0.15
        p = transform(truth[3], cloud.xyz.astype(float))
        for t in np.linspace(0, 1, 17):
            assert (np.linalg.norm((p - body_centre(t)) / BODY, axis=-1)[distance > 0.02] > 1.0).all()
    assert (built[0].frame == 0).all()
    assert len(np.unique(built[1].frame)) > 3


def test_clouds_are_deterministic_and_bounded(truth, built):
    clip, scene, camera, _ = truth
    _, again = build_backgrounds(clip, scene, camera, DILATION, BackgroundOptions(threads=2))
    for name in ("xyz", "rgb", "frame", "size"):
        assert getattr(again, name).tobytes() == getattr(built[1], name).tobytes()
    _, small = build_backgrounds(clip, scene, camera, DILATION, BackgroundOptions(max_points=4000))
    assert 2000 < len(small.xyz) <= 4000
    assert np.median(small.size) > 2 * np.median(built[1].size)


def test_floating_points_are_voted_out(truth):
    clip, scene, camera, w0 = truth
    depth = scene.depth.copy()
    depth[4, 20:60, 20:80] *= 0.5  # one frame sees a ghost
    _, holistic = build_backgrounds(clip, replace(scene, depth=depth), camera, DILATION, BackgroundOptions())
    assert np.percentile(off_surface(holistic.xyz, w0), 99) < 2 * PIXEL


@pytest.mark.parametrize(("factor", "stays"), [(0.5, False), (0.85, True)])
def test_a_ghost_of_frame_0_is_not_in_the_anchor_but_rough_depth_is(truth, built, factor, stays):
    clip, scene, camera, w0 = truth
    depth = scene.depth.copy()
    depth[0, 20:60, 20:80] *= factor
    anchor, _ = build_backgrounds(clip, replace(scene, depth=depth), camera, DILATION, BackgroundOptions())
    if stays:
        assert len(anchor.xyz) > 0.95 * len(built[0].xyz)
    else:
        assert np.percentile(off_surface(anchor.xyz, w0), 99) < 2 * PIXEL
        assert len(anchor.xyz) < 0.95 * len(built[0].xyz)


def test_a_missed_mask_leaves_no_picture_of_the_subject(truth):
    """The subject keeps to one place, so no frame ever sees through it; the tracker misses it in frame 8."""
    clip, scene, camera, w0 = truth
    missed = scene.tracks.labels[8] == 1
    where = cv2.dilate(missed.astype(np.uint8), np.ones((9, 9))) > 0
    static, labels = scene.static & ~where, scene.tracks.labels.copy()
    static[8] |= missed
    labels[8] = 0
    told = replace(scene, static=static, tracks=replace(scene.tracks, labels=labels))
    ghosts = []
    for unseen in (8, 0):
        _, holistic = build_backgrounds(clip, told, camera, DILATION, BackgroundOptions(unseen=unseen))
        ghosts.append(int((off_surface(holistic.xyz, w0) > 0.3).sum()))
    assert ghosts[0] == 0
    assert ghosts[1] > 50


def test_only_short_absences_are_missed_masks():
    labels = np.zeros((20, 4, 4), np.uint8)
    labels[:5, 0, 0] = labels[7:9, 0, 0] = labels[18:, 0, 0] = 1
    labels[3:17, 1, 1] = 2
    assert whole_frames(labels, 2, 8).tolist() == [0, 1, 2, 3, 4, *range(7, 20)]
    assert whole_frames(labels, 2, 0).tolist() == list(range(20))


def test_sky_has_no_points_and_nothing_static_gives_empty_clouds(truth):
    clip, scene, camera, _ = truth
    sky = np.zeros(scene.depth.shape, bool)
    sky[:, :40] = True
    open_air = replace(scene, sky=sky, depth=np.where(sky, 0, scene.depth), static=scene.static & ~sky)
    anchor, _ = build_backgrounds(clip, open_air, camera, DILATION, BackgroundOptions())
    uv = project(camera.K[0].astype(float), anchor.xyz.astype(float))[0]
    assert uv[:, 1].min() > 39
    nothing = replace(scene, static=np.zeros_like(scene.static))
    for cloud in build_backgrounds(clip, nothing, camera, DILATION, BackgroundOptions()):
        assert cloud.xyz.shape == (0, 3)
        assert cloud.rgb.shape == (0, 3)


# ---- renderings and quality


def test_holistic_rendering_shows_the_clip(truth, built):
    clip, scene, _camera, _ = truth
    _, anchor, holistic = built[2:]
    for t in range(len(clip.frames)):
        use = scene.static[t] & (holistic.ids[t] == 0)
        assert (np.abs(holistic.depth[t] - scene.depth[t]) / scene.depth[t])[use].mean() < 0.01
        assert use.sum() > 0.95 * (scene.static[t] & (holistic.ids[t] != 1)).sum()
        assert (holistic.ids[t][scene.tracks.labels[t] == 1] == 1).mean() > 0.9
    for rendering in (anchor, holistic):
        np.testing.assert_array_equal(rendering.depth == 0, rendering.ids == HOLE)
        assert not rendering.rgb[rendering.ids == HOLE].any()
    assert (anchor.ids[-1] == HOLE).sum() > 2 * (holistic.ids[-1] == HOLE).sum()


@pytest.mark.parametrize("splat", ["point", "fixed"])
def test_other_footprints_and_a_white_hole(truth, built, splat):
    clip, _, camera, _ = truth
    options = RenderOptions(splat=splat, hole="white", close=0, threads=1)
    cloud = replace(built[0], size=None)
    rendering = render_condition(clip.size, camera, built[2], cloud, options)
    assert (rendering.rgb[rendering.ids == HOLE] == 255).all()
    assert (rendering.ids == 1).any()
    with pytest.raises(ValueError, match="point_size"):
        render_condition(clip.size, camera, built[2], cloud, RenderOptions())


def test_rendering_does_not_depend_on_threads(truth, built):
    clip, _, camera, _ = truth
    one, two = (render_condition(clip.size, camera, built[2], built[1], RenderOptions(threads=n)) for n in (1, 2))
    assert one.rgb.tobytes() == two.rgb.tobytes()
    assert one.depth.tobytes() == two.depth.tobytes()
    assert one.ids.tobytes() == two.ids.tobytes()


def test_an_empty_cloud_renders_the_subjects_alone(truth, built):
    clip, _, camera, _ = truth
    empty = Cloud(
        np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), np.zeros(0, np.int32), np.zeros(0, np.float32)
    )
    rendering = render_condition(clip.size, camera, built[2], empty, RenderOptions())
    assert set(np.unique(rendering.ids)) == {1, HOLE}


def test_quality_fills_every_column_and_notices_damage(truth, built):
    clip, scene, camera, _ = truth
    _, cloud, subjects, anchor, holistic = built
    found = measure_quality(clip, scene, camera, subjects, cloud, anchor, holistic)
    assert set(found) == set(QUALITY)
    assert all(np.isfinite(v) for v in found.values())
    assert found["selfcheck_psnr_db"] > 25
    assert found["selfcheck_depth_absrel"] < 0.01
    assert found["subject_observed_share"] == 1
    assert found["subject_area_share"] == pytest.approx((scene.tracks.labels > 0).mean())
    assert found["holistic_coverage"] > found["anchor_coverage"] > 0.5
    steps = np.diff(camera.c2w[:, :3, 3], axis=0)
    assert found["path_length_m"] == pytest.approx(np.linalg.norm(steps, axis=-1).sum(), rel=1e-5)
    use = scene.static & (holistic.ids == 0)
    mse = ((holistic.rgb[use].astype(float) - clip.frames[use]) ** 2).mean()
    assert found["selfcheck_psnr_db"] == pytest.approx(10 * np.log10(255**2 / mse), abs=1e-6)
    late = replace(holistic, rgb=np.roll(holistic.rgb, 3, 0), depth=holistic.depth * 1.1)
    worse = measure_quality(clip, scene, camera, subjects, cloud, anchor, late)
    assert worse["selfcheck_psnr_db"] < found["selfcheck_psnr_db"] - 3
    assert worse["selfcheck_depth_absrel"] > 0.08
    with pytest.raises(KeyError, match="depth_flicker"):
        measure_quality(clip, replace(scene, quality={}), camera, subjects, cloud, anchor, holistic)
