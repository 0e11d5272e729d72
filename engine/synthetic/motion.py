"""Where the agents of a world walk: ground paths, headings and gait phases, smooth in time and seeded."""

from dataclasses import dataclass

import numpy as np

NORMAL_SPEED = 1.3  # metres per second at which the gait's effort is 1


@dataclass(frozen=True)
class Motion:
    """ground [T,2] (x, z) metres; heading [T] radians, atan2(d_x, d_z) of the facing direction; phase [T] radians of
    the gait cycle; effort [T] of the gait, 0 = standing, 1 = normal walk."""

    ground: np.ndarray
    heading: np.ndarray
    phase: np.ndarray
    effort: np.ndarray


def choreograph(camera: str, kind: str, agents: int, seed: int, times: np.ndarray, face_to_face: bool) -> list:
    """Ground path [T,2] and backward flag of every agent; agent 0 holds the camera whose class is asked for.

    The others stay 3 to 6 m in front of it and inside its picture.
    """
    rng = np.random.default_rng([seed, 11])
    if camera == "orbit":
        return _orbit(kind, agents, rng, times)
    if camera == "walk":
        return _follow(kind, agents, rng, times, face_to_face)
    return _stand(agents, rng, times)


def _follow(kind: str, agents: int, rng: np.random.Generator, t: np.ndarray, face_to_face: bool) -> list:
    speed = rng.uniform(1.05, 1.25) if kind == "street" else rng.uniform(0.65, 0.8)
    sway = rng.uniform(0, 2 * np.pi)
    lead = np.stack([0.25 * (np.sin(0.8 * t + sway) - np.sin(sway)), speed * t], -1)
    out = [(lead, False)]
    first = rng.choice([-1, 1])
    for i in range(1, agents):  # alternately left and right of the leader's line, at alternating distances
        side = first * (-1) ** i * (0.75 + 0.40 * ((i - 1) // 2))
        ahead = 4.3 + 0.7 * (i % 2) + rng.uniform(-0.2, 0.2)
        w, p = rng.uniform(0.7, 1.1), rng.uniform(0, 2 * np.pi)
        x = side + 0.30 * np.sin(w * t + p)
        z = speed * t + ahead + 0.30 * np.sin(0.9 * w * t + p + 1)
        out.append((np.stack([x, z], -1), face_to_face and i == 1))
    return out


def _orbit(kind: str, agents: int, rng: np.random.Generator, t: np.ndarray) -> list:
    radius, rate = (4.7, 0.20) if kind == "street" else (4.4, 0.18)
    start, turn = np.pi + rng.uniform(-0.15, 0.15), rng.choice([-1, 1])
    angle = start - turn * rate * t[-1] / 2 + turn * rate * t
    out = [(np.array([0, radius]) + radius * np.stack([np.sin(angle), np.cos(angle)], -1), False)]
    spin, first = rng.choice([-1, 1]) * 0.95, rng.uniform(0, 2 * np.pi)
    for i in range(1, agents):
        a = first + 2 * np.pi * (i - 1) / max(agents - 1, 1) + spin * t
        out.append((np.array([0, radius]) + 0.72 * np.stack([np.sin(a), np.cos(a)], -1), False))
    return out


def _stand(agents: int, rng: np.random.Generator, t: np.ndarray) -> list:
    out = [(np.zeros((len(t), 2)), False)]
    spin, first = rng.choice([-1, 1]) * 0.75, rng.uniform(0, 2 * np.pi)
    for i in range(1, agents):
        a = first + 2 * np.pi * (i - 1) / max(agents - 1, 1) + spin * t
        out.append((np.array([0, 4.7]) + np.stack([1.2 * np.sin(a), 0.75 * np.cos(a)], -1), False))
    return out


def walk_along(ground: np.ndarray, backward: bool, stride: float, fps: float, rest: float = 0.0) -> Motion:
    """The motion of a figure that walks along a ground path [T,2]: it faces the way it goes (or the opposite when
    `backward`), and its gait advances with the way. A figure that does not move faces `rest` radians."""
    velocity = np.gradient(ground, axis=0) * fps if len(ground) > 1 else np.zeros_like(ground)
    speed = np.linalg.norm(velocity, axis=1)
    if speed.max() < 1e-6:
        heading = np.full(len(ground), rest)
    else:
        heading = np.unwrap(np.arctan2(velocity[:, 0], velocity[:, 1]))
    steps = np.linalg.norm(np.diff(ground, axis=0), axis=1)
    way = np.concatenate([[0], np.cumsum(steps)])
    phase = 2 * np.pi * way / stride
    # Slow walkers take shorter steps more often: the stride shortens with the root of the speed.
    effort = np.clip(np.sqrt(speed / NORMAL_SPEED), 0, 1.1)
    mean_effort = max(float(effort.mean()), 0.3)
    phase = phase / mean_effort
    if backward:
        heading, phase = heading + np.pi, -phase
    return Motion(ground, heading, phase, effort)
