"""From tracks over a clip to the observations and unknowns of a bundle adjustment over its keyframes."""

import numpy as np

from engine.geometry.bundle import Bundle, Observations
from engine.geometry.camera import rays


def shared_keyframes(seen: np.ndarray, every: int, share: float = 0.5) -> np.ndarray:
    """Frame indices int64 from the first to the last, at most `every` apart and closer where tracks die quickly: at
    least `share` of a keyframe's tracks live on to the next one (or it is the very next frame). seen bool [M,T]."""
    count, keys = seen.shape[1], [0]
    while keys[-1] < count - 1:
        last = keys[-1]
        alive = seen[seen[:, last]]
        following = range(min(last + every, count - 1), last, -1)
        keys.append(next((t for t in following if alive[:, t].sum() >= share * len(alive)), last + 1))
    return np.array(keys)


def observe(
    uv: np.ndarray, depth: np.ndarray | None, frames: np.ndarray, minimum: int
) -> tuple[Observations, np.ndarray]:
    """Sightings in `frames` of the tracks seen in at least `minimum` of them, and their rows in uv [M,T,2].

    Frames are numbered by their place in `frames`, points by their place in the returned rows; depth [M,T] (0 = none).
    """
    seen = np.isfinite(uv[:, frames, 0])
    rows = np.flatnonzero(seen.sum(1) >= minimum)
    point, frame = np.nonzero(seen[rows])
    at = (rows[point], frames[frame])
    measured = np.zeros(len(point)) if depth is None else depth[at].astype(np.float64)
    return Observations(frame, point, uv[at].astype(np.float64), measured), rows


def first_seen(observations: Observations, points: int) -> np.ndarray:
    """int64 [P]: index into the observations of each point's first sighting."""
    first = np.full(points, len(observations.frame))
    np.minimum.at(first, observations.point, np.arange(len(observations.frame)))
    return first


def build_bundle(
    c2w: np.ndarray,
    points: np.ndarray,
    observations: Observations,
    K: np.ndarray,
    log_focal: float = 0.0,
    log_scale: np.ndarray | None = None,
) -> Bundle:
    """A bundle from poses [F,4,4] and world points [P,3]; rows that are NaN take the depth of their nearest neighbours
    in the image. K is the prior's [3,3]; `log_focal` the factor on it under which the points were found."""
    first = first_seen(observations, len(points))
    anchor, at = observations.frame[first], observations.uv[first]
    scaled = K.copy()
    scaled[[0, 1], [0, 1]] *= np.exp(log_focal)
    local = np.einsum("pji,pj->pi", c2w[anchor, :3, :3], points - c2w[anchor, :3, 3])
    known = np.isfinite(local[:, 2]) & (local[:, 2] > 1e-3)
    z = np.where(known, local[:, 2], 1.0)
    log_depth = np.where(known, np.log(z), np.nan)
    ray = np.where(known[:, None], local[:, :2] / z[:, None], rays(scaled, at)[:, :2])
    middle = float(np.median(log_depth[known])) if known.any() else 0.0
    for i in np.flatnonzero(~known):
        seen_from = c2w[anchor[i]]
        near = (points[known] - seen_from[:3, 3]) @ seen_from[:3, :3]
        near = near[near[:, 2] > 1e-3]
        distance = np.linalg.norm(near[:, :2] / near[:, 2:] - ray[i], axis=1)
        closest = near[np.argsort(distance, kind="stable")[:5], 2]
        log_depth[i] = np.median(np.log(closest)) if len(closest) else middle
    scale = np.zeros(len(c2w)) if log_scale is None else log_scale
    return Bundle(c2w, scale, anchor, ray * np.exp(log_focal), log_depth, log_focal)
