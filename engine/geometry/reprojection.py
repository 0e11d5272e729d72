"""What poses explain: distances between sightings and projections, and their statistics per frame."""

import numpy as np

from engine.geometry.camera import invert, pose, project, rays, transform


def reprojection_errors(uv: np.ndarray, points: np.ndarray, c2w: np.ndarray, K: np.ndarray) -> np.ndarray:
    """Distance [M,T] in pixels between uv [M,T,2] and the projections of world points [M,3]; inf behind the camera, NaN
    where there is no sighting or no point. K [3,3] or [T,3,3] pixels."""
    out = np.full(uv.shape[:2], np.nan)
    K_t = np.broadcast_to(K, (uv.shape[1], 3, 3))
    for t in range(uv.shape[1]):
        index = np.flatnonzero(np.isfinite(uv[:, t, 0]) & np.isfinite(points[:, 0]))
        at, z = project(K_t[t], transform(invert(c2w[t]), points[index]))
        out[index, t] = np.where(z > 1e-3, np.linalg.norm(at - uv[index, t], axis=1), np.inf)
    return out


def turning_errors(uv: np.ndarray, R: np.ndarray, K: np.ndarray) -> np.ndarray:
    """Distance [M,T] in pixels between uv [M,T,2] and the projections of each track's mean direction; K [T,3,3]."""
    d = np.stack([rays(K[t], uv[:, t]) @ R[t].T for t in range(uv.shape[1])], 1)
    d /= np.linalg.norm(d, axis=-1, keepdims=True)
    some = np.isfinite(d[..., 0]).any(1)
    points = np.full((len(uv), 3), np.nan)
    points[some] = np.nanmedian(d[some], axis=1)
    return reprojection_errors(uv, points, pose(R, np.zeros((len(R), 3))), K)


def share_within(errors: np.ndarray, limit: float) -> np.ndarray:
    """Share [T] of the known errors [M,T] that are at most `limit`; 0 for a frame without any."""
    known = ~np.isnan(errors)
    return (errors <= limit).sum(0) / np.maximum(known.sum(0), 1)


def median_of(errors: np.ndarray) -> np.ndarray:
    """Median [T] of the known errors [M,T]; inf for a frame without any."""
    return np.array([np.median(e[~np.isnan(e)]) if (~np.isnan(e)).any() else np.inf for e in errors.T])
