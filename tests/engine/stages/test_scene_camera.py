"""Scene and camera stages on ray-cast rooms with imitated errors, and on real sensor depth."""

from dataclasses import replace

import numpy as np
import pytest

from engine.geometry.camera import first_frame_world, rotation_angle
from engine.geometry.tracks import TrackOptions
from engine.stages.camera import CameraOptions, solve_camera
from engine.stages.scene import SceneOptions, depth_edges, depth_flicker, follow_grid, fuse_scene
from engine.types import DepthEstimate
from tests.engine.geometry.analytic_room import disturb, film, make_room, turn, walk

SIZE = (144, 256)
K = np.array([[200.0, 0, 128], [0, 200, 72], [0, 0, 1]])
SMALL = CameraOptions(tracks=TrackOptions(cells=[9, 16], per_cell=3, window=11, levels=3))
FRAMES = 17


def films(path):
    return film(make_room(0), path, K, *SIZE)


@pytest.fixture(scope="module")
def walking():
    return films(walk(FRAMES, 0))


@pytest.fixture(scope="module")
def turning():
    return films(turn(FRAMES, 3))


@pytest.fixture(scope="module")
def still():
    return films(np.repeat(walk(1, 0), FRAMES, 0))


def solved(filmed, geometry=None, depth=None):
    clip, tracks, exact = filmed
    scene = fuse_scene(clip, tracks, geometry or exact, depth, SceneOptions())
    return scene, solve_camera(clip, scene, SMALL)


def errors(camera, path) -> tuple[float, float]:
    """Largest centre error as a share of the path, and largest rotation error in degrees."""
    truth = first_frame_world(path)
    length = np.linalg.norm(np.diff(truth[:, :3, 3], axis=0), axis=1).sum()
    off = np.linalg.norm(camera.c2w[:, :3, 3] - truth[:, :3, 3], axis=1).max()
    turned = rotation_angle(np.swapaxes(camera.c2w[:, :3, :3].astype(float), 1, 2) @ truth[:, :3, :3])
    return off / length, np.degrees(turned).max()


def test_exact_depth_gives_the_path(walking):
    _, camera = solved(walking)
    off, turned = errors(camera, walk(FRAMES, 0))
    assert camera.kind == "general"
    assert off < 0.02  # of a 1 m path; at 256 pixels a tenth of a pixel is 2 mm at 4 m
    assert turned < 0.3
    assert np.array_equal(camera.c2w[0], np.eye(4, dtype=np.float32))
    assert camera.inliers.mean() > 0.8
    assert np.median(camera.reprojection) < 0.5


@pytest.mark.parametrize("seed", range(3))
def test_noisy_depth_gives_the_path_and_its_flicker(walking, seed: int):
    clip, tracks, exact = walking
    noisy = replace(exact, depth=disturb(exact.depth, seed))
    _, camera = solved((clip, tracks, exact), noisy)
    assert camera.kind == "general"
    off, turned = errors(camera, walk(FRAMES, 0))
    assert off < 0.05  # 17 frames average a 5 % scale jitter to 1.3 %
    assert turned < 0.3
    remaining = [np.median(np.log(noisy.depth[t] * camera.scale_t[t] / exact.depth[t])) for t in range(FRAMES)]
    assert np.std(remaining) < 0.012  # of 0.05
    assert np.median(camera.scale_t) == pytest.approx(1, abs=0.03)
    assert camera.quality["log_scale_spread"] == pytest.approx(0.05, abs=0.03)


@pytest.mark.parametrize("seed", range(4))
def test_cameras_without_parallax_do_not_move_whatever_the_depth_says(turning, still, seed: int):
    for filmed, kind in ((turning, "rotation"), (still, "static")):
        clip, tracks, exact = filmed
        noisy = replace(exact, depth=disturb(exact.depth, seed))
        _, camera = solved((clip, tracks, exact), noisy)
        assert camera.kind == kind
        assert np.abs(camera.c2w[:, :3, 3]).max() == 0
        left = [np.median(np.log(noisy.depth[t] * camera.scale_t[t] / exact.depth[t])) for t in range(FRAMES)]
        assert np.std(left) < 0.012
    assert np.array_equal(camera.c2w, np.repeat(np.eye(4, dtype=np.float32)[None], FRAMES, 0))


def test_exact_poses_are_kept_and_measured(walking):
    clip, tracks, exact = walking
    path = first_frame_world(walk(FRAMES, 0)).astype(np.float32)
    given = replace(exact, c2w=path, c2w_exact=True)
    _, camera = solved((clip, tracks, exact), given)
    np.testing.assert_allclose(camera.c2w, path, atol=1e-6)
    assert camera.inliers.mean() > 0.8
    wrong = path.copy()
    wrong[:, 0, 3] += np.linspace(0, 1, FRAMES)
    _, worse = solved((clip, tracks, exact), replace(exact, c2w=wrong, c2w_exact=True))
    assert worse.inliers.mean() < camera.inliers.mean() - 0.2
    assert np.median(worse.reprojection) > 3 * np.median(camera.reprojection)


def test_estimated_poses_are_refined(walking):
    clip, tracks, exact = walking
    rough = first_frame_world(walk(FRAMES, 0))
    rough[1:, :3, 3] += 0.03 * np.random.default_rng(0).normal(size=(FRAMES - 1, 3))
    _, camera = solved((clip, tracks, exact), replace(exact, c2w=rough.astype(np.float32)))
    assert errors(camera, walk(FRAMES, 0))[0] < 0.02


def test_a_guess_of_depth_does_not_bend_the_path(walking):
    """Half of the image is guessed twice as deep as it is, and perception says that it guesses."""
    clip, tracks, exact = walking
    depth, confidence = exact.depth.copy(), exact.confidence.copy()
    depth[:, :, 128:] *= 2
    confidence[:, :, 128:] = 0.1
    path = first_frame_world(walk(FRAMES, 0)).astype(np.float32)
    scene = fuse_scene(clip, tracks, replace(exact, depth=depth, confidence=confidence, c2w=path), None, SceneOptions())
    off = [errors(solve_camera(clip, scene, replace(SMALL, sure_depth=s)), walk(FRAMES, 0))[0] for s in (0.3, 0.0)]
    assert off[0] < 0.02
    assert off[1] > 10 * off[0]


def test_fast_motion_has_keyframes_closer_together():
    """60 cm a frame: at every fourth frame hardly a track would be shared, and the turn would be off by 1.3 degrees."""
    path = walk(13, 0, speed=0.6)
    off, turned = errors(solved(films(path))[1], path)
    assert off < 0.01
    assert turned < 0.8


def test_noise_gives_no_path(walking):
    clip, tracks, exact = walking
    noise = np.random.default_rng(0).integers(0, 256, clip.frames.shape, dtype=np.uint8)
    _, camera = solved((replace(clip, frames=noise), tracks, exact))
    assert camera.kind == "failed"
    assert np.abs(camera.c2w[:, :3, 3]).max() == 0
    assert camera.inliers.mean() < 0.3


def test_perception_that_saw_no_translation_is_overruled_by_clear_parallax_alone(walking):
    """Turning leaves 2.2 pixels of this walk (at 256 wide): the limit decides whether poses at rest are believed."""
    clip, tracks, exact = walking
    scene = fuse_scene(
        clip, tracks, replace(exact, c2w=np.tile(np.eye(4, dtype=np.float32), (FRAMES, 1, 1))), None, SceneOptions()
    )
    overruled = solve_camera(clip, scene, SMALL)
    assert overruled.kind == "general"
    assert errors(overruled, walk(FRAMES, 0))[0] < 0.02
    believed = solve_camera(clip, scene, replace(SMALL, overrule_px=10.0))  # 10 at 832 are 3.1 at 256
    assert believed.kind == "rotation"
    assert np.abs(believed.c2w[:, :3, 3]).max() == 0


def test_an_estimated_focal_length_is_refined(turning, walking):
    clip, tracks, exact = walking
    wrong = exact.K.copy()
    wrong[:, [0, 1], [0, 1]] *= 1.06
    _, camera = solved((clip, tracks, exact), replace(exact, K=wrong, K_source="prior"))
    assert abs(camera.K[0, 0, 0] / K[0, 0] - 1) < 0.04
    _, kept = solved((clip, tracks, exact), replace(exact, K=wrong, K_source="user"))
    assert kept.K[0, 0, 0] == wrong[0, 0, 0]


def test_a_calibrated_zoom_is_trusted_while_the_camera_travels():
    path = walk(FRAMES, 0)
    zoom = np.repeat(K[None], FRAMES, 0)
    zoom[:, [0, 1], [0, 1]] *= np.linspace(1, 1.3, FRAMES)[:, None]
    clips = [film(make_room(0), path[t : t + 1], zoom[t], *SIZE) for t in range(FRAMES)]
    clip, tracks, exact = film(make_room(0), path, K, *SIZE)
    frames = np.concatenate([c.frames for c, _, _ in clips])
    geometry = replace(exact, K=zoom.astype(np.float32), depth=np.concatenate([g.depth for _, _, g in clips]))
    found = []
    for focal in ("shared", "per_frame"):
        zoomed = replace(clip, frames=frames)
        scene = fuse_scene(zoomed, tracks, geometry, None, SceneOptions())
        found.append(solve_camera(zoomed, scene, replace(SMALL, focal=focal)))
    shared, own = (errors(camera, path) for camera in found)
    assert own[0] < 0.03
    assert own[0] < shared[0] / 3
    np.testing.assert_allclose(found[1].K, zoom, rtol=1e-6)
    assert (found[0].K[0] == found[0].K).all()


def test_without_synchronisation_frames_keep_their_own_scale(walking):
    clip, tracks, exact = walking
    noisy = replace(exact, depth=disturb(exact.depth, 0))
    scene = fuse_scene(clip, tracks, noisy, None, SceneOptions())
    camera = solve_camera(clip, scene, replace(SMALL, synchronise_scale=False))
    assert np.ptp(camera.scale_t) == 0
    assert errors(camera, walk(FRAMES, 0))[1] < 0.5


def test_a_sky_that_is_kept_has_its_depth(walking):
    clip, tracks, exact = walking
    sky = np.zeros_like(exact.sky)
    sky[:, :20] = True
    told = replace(exact, sky=sky)
    removed = fuse_scene(clip, tracks, told, None, SceneOptions())
    kept = fuse_scene(clip, tracks, told, None, SceneOptions(remove_sky=False))
    assert not removed.static[:, :20].any()
    assert kept.static[:, :20].any()
    assert not kept.sky.any()
    assert not kept.geometry.sky.any()


def test_a_clip_without_texture_is_failed(walking):
    clip, tracks, exact = walking
    _, camera = solved((replace(clip, frames=np.full_like(clip.frames, 127)), tracks, exact))
    assert camera.kind in ("failed", "static")
    assert np.isfinite(camera.c2w).all()


def test_static_pixels_leave_out_sky_edges_and_people(walking):
    clip, tracks, exact = walking
    dynamic = np.zeros_like(tracks.dynamic)
    dynamic[:, 60:90, 100:130] = True
    sky = np.zeros_like(exact.sky)
    sky[:, :10] = True
    depth = np.where(sky, 0, exact.depth)
    scene = fuse_scene(
        clip, replace(tracks, dynamic=dynamic), replace(exact, depth=depth, sky=sky), None, SceneOptions()
    )
    radius = round(0.015 * SIZE[1])
    assert not scene.static[:, 60 - radius + 1 : 90 + radius - 1, 100:130].any()
    assert not scene.static[:, :11].any()
    assert scene.static.mean() > 0.5
    step = np.ones((20, 20), np.float32) * 2
    step[:, 10:] = 3
    edge = depth_edges(step, 0.05)
    assert edge[:, 9:11].all()
    assert not edge[:, :8].any()


def test_disparity_takes_the_metric_scale_and_loses_the_flicker(walking):
    clip, tracks, exact = walking
    rng = np.random.default_rng(5)
    noisy = replace(exact, depth=disturb(exact.depth, 5))
    a = np.exp(0.2 * rng.normal(size=(FRAMES, 1, 1)))
    b = 0.02 * rng.normal(size=(FRAMES, 1, 1))
    values = (a / exact.depth + b).astype(np.float32)
    scene, camera = solved((clip, tracks, exact), noisy, DepthEstimate("disparity", values))
    assert scene.quality["depth_flicker"] < 0.5 * scene.quality["depth_flicker_raw"]
    ratio = scene.depth[scene.static] / exact.depth[scene.static]
    assert np.median(ratio) == pytest.approx(1, abs=0.04)
    assert np.median(np.abs(ratio - np.median(ratio))) < 0.02
    assert errors(camera, walk(FRAMES, 0))[0] < 0.05


def test_metric_depth_takes_one_scale(walking):
    clip, tracks, exact = walking
    scene = fuse_scene(clip, tracks, exact, DepthEstimate("metric", 3 * exact.depth), SceneOptions())
    np.testing.assert_allclose(scene.depth, exact.depth, rtol=1e-5)


def test_flicker_is_the_change_between_frames(still):
    clip, _, exact = still
    flow = follow_grid(clip.frames, 8)
    everywhere = np.ones_like(exact.sky)
    assert depth_flicker(flow, exact.depth, everywhere) == pytest.approx(0, abs=1e-6)
    shaken = exact.depth * np.where(np.arange(FRAMES) % 2, 1.0, 1.1).astype(np.float32)[:, None, None]
    assert depth_flicker(flow, shaken, everywhere) == pytest.approx(0.095, abs=0.01)


def test_equal_scenes_give_equal_bytes(walking):
    first, second = (solved(walking)[1] for _ in range(2))
    assert first.c2w.tobytes() == second.c2w.tobytes()
    assert first.scale_t.tobytes() == second.scale_t.tobytes()
