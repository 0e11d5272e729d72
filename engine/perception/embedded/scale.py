"""Metres: how the size of people scales the scene, and the scene the people."""

from dataclasses import dataclass

import numpy as np

from engine.options import option
from engine.perception.embedded.body import MetricBody
from engine.perception.embedded.pose import Body

SOLES = (29, 30, 31, 32)  # heels and toes: the landmarks that touch the ground


@dataclass
class ScaleOptions:
    stature: float = option(
        1.70,
        "assumed height of a person, metres (NCD-RisC 2016, adults: 1.59 women and 1.71 men worldwide, about 1.66 and "
        "1.80 in northern Europe)",
    )
    stature_sigma: float = option(
        0.06,
        "standard deviation of the log stature of an unknown adult (4 % within a sex, 4 % between sexes and countries)",
    )
    camera_height: float = option(
        1.5, "height of the camera above the ground where no person gives a scale, metres (hand-held, chest to eye)"
    )
    camera_height_sigma: float = option(0.25, "standard deviation of the log camera height")
    median_depth: float = option(
        6.0, "median depth of the scene where neither people nor a ground plane give a scale, metres"
    )
    median_depth_sigma: float = option(0.6, "standard deviation of the log median depth")
    failed_sigma: float = option(
        0.25,
        "added (in squares) where the camera's motion was not found: feet of different frames are then laid on one "
        "ground from one assumed place; a step of half a metre towards somebody two metres away is a log of 0.25",
    )


@dataclass(frozen=True)
class Contact:
    """Where a person stands in one frame: image point uv [2] (pixels) of the lowest sole and its metric z-depth."""

    frame: int
    uv: np.ndarray
    z: float


def contacts(person: dict[int, tuple[Body, MetricBody]], up: np.ndarray, c2w: np.ndarray) -> list[Contact]:
    """The lowest visible sole of a person in every frame that shows one. `up` [3] in world axes."""
    out = []
    soles = np.array(SOLES)
    for t, (body, metric) in sorted(person.items()):
        seen = soles[metric.visible[soles]]
        if len(seen) < 2:  # one visible landmark of four is mostly a guess at the picture's border
            continue
        lowest = seen[np.argmin(metric.joints[seen] @ (c2w[t, :3, :3].T @ up))]
        out.append(Contact(t, body.points[lowest].astype(np.float64), float(metric.joints[lowest, 2])))
    return out


def people_scale(ratios: list[np.ndarray], stature_sigma: float) -> tuple[float, float, list[float]] | None:
    """The scene's scale from the people in it.

    ratios  per person the metric depth of its soles over the scene's depth there, one per frame (may be empty)

    Returns metres per unit of the scene, the standard deviation of its log, and per person the factor that puts the
    person onto the scene (1 for a person of the assumed stature); None without measurements. Each person's median
    over time is one measurement of the scale with the uncertainty of a stature, plus its scatter.
    """
    logs, sigmas, index = [], [], []
    for i, r in enumerate(ratios):
        r = np.log(r[np.isfinite(r) & (r > 0)])
        if len(r) < 3:
            continue
        spread = 1.4826 * np.median(np.abs(r - np.median(r)))
        # Neighbouring frames repeat each other: about one independent measurement in eight (half a second).
        logs.append(np.median(r))
        sigmas.append(np.hypot(stature_sigma, max(spread, 0.03) / np.sqrt(max(len(r) / 8, 1))))
        index.append(i)
    if not logs:
        return None
    logs, weight = np.array(logs), 1 / np.array(sigmas) ** 2
    for _ in range(10):  # Cauchy weights: one person on a step must not move the others
        centre = float((weight * logs).sum() / weight.sum())
        weight = 1 / np.array(sigmas) ** 2 / (1 + ((logs - centre) / (2 * np.array(sigmas))) ** 2)
    factors = [1.0] * len(ratios)
    for i, value in zip(index, logs, strict=True):
        factors[i] = float(np.exp(np.clip(centre - value, -0.25, 0.25)))  # 1.32 m to 2.18 m of 1.70 m
    # The errors of the stature prior (which population?) are half shared by all people of a clip.
    sigma = np.sqrt(1 / weight.sum() + (0.5 * stature_sigma) ** 2)
    return float(np.exp(centre)), float(sigma), factors


def focal_sigma(focal: float, solved_sigma: float, prior: float, prior_sigma: float) -> float:
    """Standard deviation of the log focal length, which is that of every depth too: a person of known size at focal
    length f stands at a distance in proportion to f.

    Never more than the prior's where both agree. A solution more than two standard deviations off the prior puts one of
    them in the wrong; what it is off beyond that is added in squares. `prior_sigma` 0: the focal length is known.
    """
    if prior_sigma == 0:
        return 0.0
    beyond = max(abs(float(np.log(focal / prior))) - 2 * prior_sigma, 0.0)
    return float(np.hypot(min(solved_sigma, prior_sigma), beyond))


def smooth_distances(frames: np.ndarray, distance: np.ndarray, count: int, sigma: float = 2.0) -> np.ndarray:
    """A person's distance float64 [count] in every frame: outliers against a running median are dropped, then a
    Gaussian of `sigma` frames in log depth; outside the measured span the nearest value."""
    log = np.log(distance)
    running = np.array([np.median(log[np.abs(frames - t) <= 4]) for t in frames])
    good = np.abs(log - running) < 0.15
    frames, log = frames[good], log[good]
    t = np.arange(count)
    # A local line, not a local mean: a person who walks away must not lag behind.
    window = np.maximum(sigma, np.abs(t[:, None] - frames).min(1) + 1)[:, None]
    w = np.exp(-0.5 * ((t[:, None] - frames) / window) ** 2)
    d = np.clip(frames - t[:, None], -8, 8)
    s0, s1, s2 = w.sum(1), (w * d).sum(1), (w * d * d).sum(1) + 1.0
    y0, y1 = w @ log, (w * d) @ log
    return np.exp((s2 * y0 - s1 * y1) / np.maximum(s0 * s2 - s1 * s1, 1e-9))
