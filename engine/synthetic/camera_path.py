"""How the cameras of a world move: hand-held while walking, in orbit, turning on the spot, still, zooming."""

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from engine.geometry import camera as geometry

KINDS = ("walk", "orbit", "rotation", "static", "zoom")
UP = np.array([0.0, -1.0, 0.0])
EYE = 0.87  # height of a hand-held camera in shares of the stature: in front of the face
AIM = 0.95  # metres above the ground: about the middle of a standing person


@dataclass(frozen=True)
class CameraPath:
    """K float64 [T,3,3] pixels, c2w float64 [T,4,4] in the world's frame, metres."""

    K: np.ndarray
    c2w: np.ndarray


def _wander(rng: np.random.Generator, t: np.ndarray, scale: float) -> np.ndarray:
    """Smooth unit-amplitude wander [T] of a hand: three slow sinusoids below 1.2 Hz."""
    out = np.zeros_like(t)
    for frequency in rng.uniform(0.15, 1.2, 3):
        out += np.sin(2 * np.pi * frequency * t + rng.uniform(0, 2 * np.pi)) / 3
    return scale * out


def _smooth(path: np.ndarray, frames: float) -> np.ndarray:
    """A path [T,...] under a Gaussian of `frames` standard deviation, ends repeated."""
    half = max(1, round(3 * frames))
    weight = np.exp(-0.5 * (np.arange(-half, half + 1) / frames) ** 2)
    padded = np.pad(path, [(half, half), (0, 0)], mode="edge")
    return np.stack([np.convolve(c, weight / weight.sum(), "valid") for c in padded.T], -1)


def hand_held(position, targets, phase, effort, stature, rng, times, fps) -> np.ndarray:
    """c2w [T,4,4] of a camera carried by a walker at ground position [T,2] and aimed at ground targets [T,2].

    It bobs twice and sways once a gait cycle, by 2.2 and 1.6 cm at a normal walk (hand-held with bent arms; the head
    itself moves 4 to 5 cm), and wanders in angle by up to about half a degree.
    """
    aim = _smooth(targets, 0.5 * fps)
    forward = aim - position
    forward /= np.linalg.norm(forward, axis=1, keepdims=True)
    side = np.stack([forward[:, 1], -forward[:, 0]], -1)
    # The camera is held 35 cm in front of the body's axis and sways sideways.
    ground = position + 0.35 * forward + (0.016 * effort * np.sin(phase) + _wander(rng, times, 0.01))[:, None] * side
    height = EYE * stature + 0.022 * effort * np.cos(2 * phase) + _wander(rng, times, 0.01)
    eye = np.stack([ground[:, 0], -height, ground[:, 1]], -1)
    spot = np.stack([aim[:, 0], np.full(len(aim), -AIM), aim[:, 1]], -1)
    c2w = np.stack([geometry.look_at(e, s, UP) for e, s in zip(eye, spot, strict=True)])
    return c2w @ _shake(rng, times, 0.008)


def _shake(rng: np.random.Generator, times: np.ndarray, scale: float) -> np.ndarray:
    """Small rotations [T,4,4] about the camera's own axes; `scale` in radians."""
    angles = np.stack([_wander(rng, times, scale) for _ in range(3)], -1)
    return geometry.pose(Rotation.from_rotvec(angles).as_matrix(), np.zeros((len(times), 3)))


def on_the_spot(kind: str, position, target, stature, rng, times) -> np.ndarray:
    """c2w [T,4,4] of a camera that stands at ground position [2] towards a ground target [2]: exactly still, or (kind
    "rotation") turning by about 14 degrees to and fro with a small tilt, about its exact centre."""
    eye = np.array([position[0], -EYE * stature, position[1]])
    base = geometry.look_at(eye, np.array([target[0], -AIM, target[1]]), UP)
    c2w = np.repeat(base[None], len(times), 0)
    if kind != "rotation":
        return c2w
    turn = rng.choice([-1, 1])
    pan = turn * 0.12 * np.sin(np.linspace(-0.5, 0.5, len(times)) * np.pi + _wander(rng, times, 0.05))
    tilt = 0.02 * np.sin(times * 1.1 + rng.uniform(0, 6)) + _wander(rng, times, 0.003)
    about_up = Rotation.from_rotvec(pan[:, None] * -UP).as_matrix()
    about_x = Rotation.from_rotvec(tilt[:, None] * np.array([1.0, 0, 0])).as_matrix()
    c2w[:, :3, :3] = about_up @ base[:3, :3] @ about_x
    return c2w


def intrinsics(focal: np.ndarray, height: int, width: int) -> np.ndarray:
    """K float64 [T,3,3] of focal lengths [T] in pixels, square pixels, principal point at the centre."""
    return np.stack([geometry.intrinsics(f, f, width, height) for f in focal])
