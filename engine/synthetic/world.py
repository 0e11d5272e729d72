"""A synthetic world: scenery, several agents that are figures and cameras at once, and everything exact."""

from dataclasses import dataclass

import numpy as np

from engine.synthetic import camera_path
from engine.synthetic.camera_path import CameraPath
from engine.synthetic.figure import Figure, make_figure
from engine.synthetic.motion import Motion, choreograph, walk_along
from engine.synthetic.scenery import Scenery, make_scenery

KINDS = ("street", "room")
LEAD_IN = 12  # frames of motion before the first, so that nobody starts from a smoothing edge


@dataclass(frozen=True)
class Agent:
    figure: Figure
    motion: Motion
    camera: CameraPath


@dataclass(frozen=True)
class World:
    """World axes: x right, y down, z forward, metres, the ground at y = 0. Everything is known at every frame."""

    kind: str
    camera: str
    seed: int
    frames: int
    height: int
    width: int
    fps: float
    scenery: Scenery
    agents: tuple[Agent, ...]


def make_world(
    kind: str = "street",
    camera: str = "walk",
    agents: int = 3,
    seed: int = 0,
    frames: int = 81,
    height: int = 480,
    width: int = 832,
    fps: float = 16.0,
    face_to_face: bool = False,
) -> World:
    """The world of a seed: `agents` people in a "street" or "room".

    Agent 0 carries the camera of class `camera` ("walk", "orbit", "rotation", "static" or "zoom") and sees all the
    others at 3 to 6 m; the others carry hand-held cameras that keep agent 0 in view. With `face_to_face` (walk)
    agent 1 walks backwards in front of agent 0, so that the two film each other. Equal arguments give equal worlds.
    """
    if kind not in KINDS or camera not in camera_path.KINDS:
        raise ValueError(f"world ({kind!r}, {camera!r}): kind must be one of {KINDS}, camera of {camera_path.KINDS}")
    if agents < 1:
        raise ValueError(f"a world needs at least one agent, got {agents}")
    times = np.arange(-LEAD_IN, frames) / fps
    figures = [make_figure(i, seed) for i in range(agents)]
    paths = choreograph(camera, kind, agents, seed, times, face_to_face)
    motions = [walk_along(p, back, f.stride, fps) for (p, back), f in zip(paths, figures, strict=True)]
    cameras = [_camera(i, camera, motions, figures, seed, times, fps, height, width) for i in range(agents)]
    people = [
        Agent(f, _cut(m), CameraPath(c.K[LEAD_IN:], c.c2w[LEAD_IN:]))
        for f, m, c in zip(figures, motions, cameras, strict=True)
    ]
    return World(kind, camera, seed, frames, height, width, fps, make_scenery(kind, seed), tuple(people))


def _cut(motion: Motion) -> Motion:
    return Motion(*(getattr(motion, name)[LEAD_IN:] for name in ("ground", "heading", "phase", "effort")))


def _camera(i, camera, motions, figures, seed, times, fps, height, width) -> CameraPath:
    rng = np.random.default_rng([seed, i, 5])
    focal = np.full(len(times), rng.uniform(0.82, 0.92) * width)  # 57 to 63 degrees across, a phone's main camera
    own, stature = motions[i], figures[i].stature
    others = [m.ground for j, m in enumerate(motions) if j != i]
    ahead = own.ground + 4 * np.stack([np.sin(own.heading), np.cos(own.heading)], -1)
    targets = np.mean(others, 0) if i == 0 and others else others[0] if others else ahead
    if i == 0 and camera in ("rotation", "static", "zoom"):
        c2w = camera_path.on_the_spot(camera, own.ground[0], targets.mean(0), stature, rng, times)
        if camera == "zoom":
            focal = focal * np.interp(times, [0, times[-1]], [0.85, 1.2])
    else:
        c2w = camera_path.hand_held(own.ground, targets, own.phase, own.effort, stature, rng, times, fps)
    return CameraPath(camera_path.intrinsics(focal, height, width), c2w)
