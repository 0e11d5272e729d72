"""Cameras move as their class says; figures walk on the ground and stay whole in the picture."""

import numpy as np
import pytest

from engine.geometry import camera as geometry
from engine.synthetic import make_world, render
from engine.synthetic.figure import make_figure, pose_figure, skeleton
from engine.synthetic.mesh import yaw_pose

TINY = {"frames": 81, "height": 60, "width": 104}


def path(kind, camera, seed=0):
    return make_world(kind, camera, seed=seed, **TINY).agents[0].camera


@pytest.mark.parametrize("kind", ["street", "room"])
def test_rotation_turns_about_a_fixed_point(kind):
    camera = path(kind, "rotation")
    assert (camera.c2w[:, :3, 3] == camera.c2w[0, :3, 3]).all()
    turn = np.degrees(geometry.rotation_angle(camera.c2w[0, :3, :3].T @ camera.c2w[:, :3, :3]))
    assert 8 < turn.max() < 30
    assert np.ptp(camera.K, axis=0).max() == 0


@pytest.mark.parametrize("kind", ["static", "zoom"])
def test_still_cameras_are_still(kind):
    camera = path("street", kind)
    assert (camera.c2w == camera.c2w[0]).all()
    focal = camera.K[:, 0, 0]
    assert (focal == focal[0]).all() if kind == "static" else (np.diff(focal) > 0).all() and focal[-1] > 1.2 * focal[0]


@pytest.mark.parametrize("seed", range(4))
def test_walks_and_orbits_give_parallax(seed):
    for kind, camera, length in (("street", "walk", 4.5), ("room", "walk", 2.8), ("street", "orbit", 3.5)):
        centres = path(kind, camera, seed).c2w[:, :3, 3]
        assert np.linalg.norm(np.diff(centres, axis=0), axis=1).sum() > length
    heights = -path("street", "walk", seed).c2w[:, 1, 3]
    assert 0.02 < np.ptp(heights) < 0.12  # the hand bobs


def test_all_poses_are_rigid():
    for camera in ("walk", "orbit", "rotation"):
        R = path("street", camera).c2w[:, :3, :3]
        np.testing.assert_allclose(R @ R.swapaxes(1, 2), np.broadcast_to(np.eye(3), R.shape), atol=1e-12)
        assert (np.linalg.det(R) > 0).all()


def test_a_static_background_stays_as_it_is():
    view = render(make_world("room", "static", seed=1, frames=5, fps=4.0, height=60, width=104))
    still = (view.labels == 0).all(0)
    assert still.mean() > 0.5
    assert (view.depth[:, still] == view.depth[0, still]).all()
    # Colours differ only where shadows of the walkers pass.
    assert ((view.frames[:, still] == view.frames[0, still]).all(-1).mean()) > 0.85


@pytest.mark.parametrize("camera", ["walk", "orbit", "rotation", "static", "zoom"])
@pytest.mark.parametrize("kind", ["street", "room"])
def test_people_are_whole_in_the_picture_at_3_to_6_metres(kind, camera):
    """Heads, hips and feet of everybody else project inside agent 0's picture, in (nearly) every frame of 4 seeds."""
    inside, distances = [], []
    for seed in range(4):
        world = make_world(kind, camera, seed=seed, **TINY)
        for t in range(0, 81, 5):
            w2c, K = geometry.invert(world.agents[0].camera.c2w[t]), world.agents[0].camera.K[t]
            for agent in world.agents[1:]:
                x, z = agent.motion.ground[t]
                body = np.array([[x, -h, z] for h in (0.0, 0.5 * agent.figure.stature, agent.figure.stature)])
                points = geometry.transform(w2c, body)
                uv, depth = geometry.project(K, points)
                inside.append(((uv > 0) & (uv < [104, 60])).all() and (depth > 0).all())
                distances.append(depth[1])
    assert np.mean(inside) > 0.97
    assert min(distances) > 2.5
    assert max(distances) < 6.5


def soles(figure, phase, effort):
    bones = skeleton(figure, phase, effort)
    parts = dict(figure.parts)
    return {
        side: geometry.transform(bones[f"{side} foot"], parts[f"{side} foot"].vertices) for side in ("left", "right")
    }


def test_the_gait_swings_and_stands_on_the_ground():
    figure = make_figure(1, 0)
    assert 1.7 <= figure.stature <= 1.85
    phases = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    feet = [soles(figure, p, 1.0) for p in phases]
    lowest = [max(f[side][:, 1].max() for side in f) for f in feet]
    np.testing.assert_allclose(lowest, 0, atol=1e-12)  # y is down: nothing below the ground, something on it
    left, right = (np.array([f[side][:, 2].mean() for f in feet]) for side in ("left", "right"))
    assert np.ptp(left) > 0.5  # a step of more than half a metre
    assert np.corrcoef(left, right)[0, 1] < -0.9  # the feet alternate
    # The standing foot goes back about as fast as the body goes on: it does not skate.
    way = figure.stride / len(phases)
    standing = np.array([max(f, key=lambda side: f[side][:, 1].max()) == "left" for f in feet])
    slide = np.diff(left)[standing[:-1] & standing[1:]] + way
    assert np.median(np.abs(slide)) < 0.3 * way


def test_stature_is_the_height_of_the_standing_figure():
    for agent in range(4):
        figure = make_figure(agent, 5)
        mesh, root = pose_figure(figure, yaw_pose(0.3, (1, 0, 2)), 0.0, 0.0)
        assert abs(np.ptp(mesh.vertices[:, 1]) - figure.stature) < 0.03
        np.testing.assert_allclose(root[[0, 2]], [1, 2], atol=0.02)


def test_heading_is_the_way_they_walk():
    world = make_world("street", "walk", seed=2, face_to_face=True, **TINY)
    for i, agent in enumerate(world.agents):
        step = np.diff(agent.motion.ground, axis=0)
        forward = np.stack([np.sin(agent.motion.heading), np.cos(agent.motion.heading)], -1)[:-1]
        along = np.einsum("tc,tc->t", step, forward)
        assert (along < 0).all() if i == 1 else (along > 0).all()  # agent 1 walks backwards


def test_unknown_worlds_are_refused():
    with pytest.raises(ValueError, match="kind must be one of"):
        make_world("forest")
    with pytest.raises(ValueError, match="camera of"):
        make_world("room", "drone")
