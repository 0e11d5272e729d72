"""The ground plane: from reconstructed points where there is parallax, from people's feet where there is none."""

from dataclasses import dataclass

import numpy as np

from engine.options import option


@dataclass
class GroundOptions:
    tilt_sigma: float = option(
        12.0, "standard deviation of the angle between the ground's normal and the prior up, degrees"
    )
    thickness: float = option(0.02, "a point lies on the ground within this share of its distance from the camera")
    min_share: float = option(0.15, "least share of the points below the horizon that must lie on the ground plane")
    trials: int = option(400, "random planes tried (three points each; 99 % to hit a plane of 23 % of the points)")


@dataclass(frozen=True)
class Plane:
    """normal . X = offset in world axes; `normal` is the unit up direction, `support` the share of points on it."""

    normal: np.ndarray
    offset: float
    support: float

    def height(self, points: np.ndarray) -> np.ndarray:
        """Signed height [...] of points [...,3] above the plane, unit of the world."""
        return points @ self.normal - self.offset

    def inverse_depth(self, c2w: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """1/z [...] at which camera rays (directions [...,3], z = 1 in the camera frame) meet the plane; <= 0 where
        they do not."""
        return (directions @ (c2w[:3, :3].T @ self.normal)) / min(-self.height(c2w[:3, 3]), -1e-9)

    def scaled(self, factor: float) -> "Plane":
        """The same plane in a world whose unit is `factor` times smaller."""
        return Plane(self.normal, self.offset * factor, self.support)


def prior_up(c2w: np.ndarray, uprights: np.ndarray) -> np.ndarray:
    """Unit up direction in world axes before any plane is known.

    People hold cameras level: the mean of the cameras' own up (-y). Bodies that stand (uprights [k,3], world axes)
    say how far the camera looks down; each counts only when it is within 40 degrees of the cameras' up, and their
    median direction is believed as much as the cameras'.
    """
    level = _unit(-c2w[:, :3, 1].mean(0))
    standing = uprights[uprights @ level > np.cos(np.radians(40))] if len(uprights) else uprights
    if len(standing) < 3:
        return level
    return _unit(level + _unit(np.median(standing, 0)))


def fit_ground(
    points: np.ndarray, weight: np.ndarray, eyes: np.ndarray, up: np.ndarray, o: GroundOptions
) -> Plane | None:
    """The plane below the cameras with the most points on it and few under it; None when too few lie on any.

    points [M,3] world; weight [M]; eyes [M,3] the camera centre that saw each point; up [3] prior.
    """
    ray = points - eyes
    distance = np.linalg.norm(ray, axis=1)
    below = (ray @ up) < -0.03 * distance  # 2 degrees under the horizon
    points, weight, distance = points[below], weight[below], distance[below]
    if len(points) < 50:
        return None
    rng = np.random.default_rng(0)
    total, best, best_score = weight.sum(), None, 0.0
    for _ in range(o.trials):
        a, b, c = points[rng.integers(len(points), size=3)]
        normal = np.cross(b - a, c - a)
        if np.linalg.norm(normal) < 1e-9:
            continue
        normal = _unit(normal)
        normal = normal if normal @ up > 0 else -normal
        height = points @ normal - a @ normal
        tolerance = o.thickness * distance
        # A floor has nothing beneath it: points under the plane count against it.
        score = (weight * (np.abs(height) < tolerance)).sum() - (weight * (height < -2 * tolerance)).sum()
        score *= np.exp(-0.5 * (_degrees(normal, up) / o.tilt_sigma) ** 2)
        if score > best_score:
            best, best_score = (normal, float(a @ normal)), score
    if best is None:
        return None
    normal, offset = best
    for _ in range(5):
        on = np.abs(points @ normal - offset) < o.thickness * distance
        if on.sum() < 10:
            return None
        w = weight[on] / distance[on] ** 2
        centre = (w[:, None] * points[on]).sum(0) / w.sum()
        moment = np.einsum("n,ni,nj->ij", w, points[on] - centre, points[on] - centre)
        refined = np.linalg.eigh(moment)[1][:, 0]
        refined = refined if refined @ up > 0 else -refined
        if _degrees(refined, up) > 3 * o.tilt_sigma:
            break
        normal, offset = refined, float(centre @ refined)
    support = float((weight * (np.abs(points @ normal - offset) < o.thickness * distance)).sum() / total)
    plane = Plane(normal, offset, support)
    return plane if support >= o.min_share and (plane.height(eyes) > 0).mean() > 0.99 else None


def ground_from_feet(feet: np.ndarray, eyes: np.ndarray, up: np.ndarray, o: GroundOptions) -> Plane | None:
    """The plane under standing people: feet [k,3] metric world points, up [3] prior; least squares on the feet with
    the prior on the normal. None with fewer than three feet, or when a camera would be under it."""
    if len(feet) < 3:
        return None
    normal = up
    distance = np.median(np.linalg.norm(feet - eyes.mean(0), axis=1))
    sigma = 0.05 * distance  # PnP distances are good to a few per cent
    for _ in range(10):
        centre = np.median(feet, 0)
        local = feet - centre
        keep = np.abs(local @ normal) < 3 * sigma
        # Minimise sum (n . local)^2 / sigma^2 / effective + |n - up|^2 / tilt^2 over small turns of n; neighbouring
        # frames repeat each other, so that all feet together count as ten measurements.
        A = local[keep].T @ local[keep] / sigma**2 * (10 / max(len(feet), 10))
        prior = 1 / np.radians(o.tilt_sigma) ** 2
        normal = _unit(np.linalg.solve(A + prior * np.eye(3), prior * up))
    offset = float(np.median(feet @ normal))
    plane = Plane(normal, offset, float(keep.mean()))
    return plane if (plane.height(eyes) > 0.2).all() else None


def _degrees(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip(a @ b, -1, 1))))


def _unit(v: np.ndarray) -> np.ndarray:
    return v / max(float(np.linalg.norm(v)), 1e-12)
