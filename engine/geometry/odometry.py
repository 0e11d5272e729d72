"""First poses from lifted depth: perspective-n-point frame by frame against points that earlier frames lifted."""

from dataclasses import dataclass

import cv2
import numpy as np

from engine.geometry.camera import invert, pose, project, transform, unproject


@dataclass(frozen=True)
class Path:
    """c2w float64 [T,4,4]; log_scale float64 [T] added to the log of each frame's depth; solved bool [T]: False where the
    pose was only extrapolated; points float64 [M,3] world points of the tracks, NaN where a track never had depth."""

    c2w: np.ndarray
    log_scale: np.ndarray
    solved: np.ndarray
    points: np.ndarray


def chain_poses(uv: np.ndarray, depth: np.ndarray, K: np.ndarray, threshold: float = 3.0, minimum: int = 12) -> Path:
    """Poses of T frames from tracks and the depth at each observation.

    uv         [M,T,2] pixels, NaN = not seen
    depth      [M,T] metres, 0 = none; each frame may carry its own unknown scale factor
    K          [3,3] pixels
    threshold  reprojection error of a RANSAC inlier, pixels
    minimum    inliers a pose needs; with fewer the motion is extrapolated and the frame marked unsolved
    SQPnP (Terzakis & Lourakis 2020) inside RANSAC with OpenCV's fixed seed, then Levenberg-Marquardt on the inliers. A
    point is the running mean of its lifted positions, so depth noise averages out along the path.
    """
    seen = np.isfinite(uv[..., 0])
    points = np.full((len(uv), 3), np.nan)
    lifted = np.zeros(len(uv))
    count = uv.shape[1]
    c2w = np.repeat(np.eye(4)[None], count, 0)
    log_scale, solved = np.zeros(count), np.zeros(count, bool)
    for t in range(count):
        if t > 0:
            c2w[t] = c2w[t - 1]
            known = np.flatnonzero(seen[:, t] & (lifted > 0))
            found = solve_pnp(points[known], uv[known, t], K, c2w[t - 1], threshold, minimum)
            if found is not None:
                c2w[t], inlier = found
                z = transform(invert(c2w[t]), points[known])[:, 2]
                usable = inlier & (depth[known, t] > 0) & (z > 0)
                log_scale[t] = log_scale[t - 1]
                if usable.sum() >= minimum:
                    log_scale[t] = np.median(np.log(z[usable] / depth[known[usable], t]))
            elif t > 1:
                c2w[t] = c2w[t - 1] @ invert(c2w[t - 2]) @ c2w[t - 1]
            solved[t] = found is not None
        new = np.flatnonzero(seen[:, t] & (depth[:, t] > 0))
        world = transform(c2w[t], unproject(K, uv[new, t], depth[new, t] * np.exp(log_scale[t])))
        share = 1 / (1 + lifted[new])
        points[new] = np.where(lifted[new, None] > 0, points[new] + (world - points[new]) * share[:, None], world)
        lifted[new] += 1
    solved[0] = True
    return Path(c2w, log_scale, solved, points)


def solve_pnp(
    points: np.ndarray, uv: np.ndarray, K: np.ndarray, guess: np.ndarray, threshold: float, minimum: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """(c2w [4,4], inliers bool [N]) of a camera that sees world points [N,3] at uv [N,2], or None without support."""
    if len(points) < minimum:
        return None
    w2c = invert(guess)
    rvec, tvec = cv2.Rodrigues(w2c[:3, :3])[0], w2c[:3, 3:].copy()
    ok, rvec, tvec, inliers = cv2.solvePnPRansac(
        points,
        uv.astype(np.float64),
        K,
        None,
        rvec,
        tvec,
        iterationsCount=200,
        reprojectionError=threshold,
        confidence=0.999,
        flags=cv2.SOLVEPNP_SQPNP,
    )
    if not ok or inliers is None or len(inliers) < minimum:
        return None
    index = inliers[:, 0]
    rvec, tvec = cv2.solvePnPRefineLM(points[index], uv[index].astype(np.float64), K, None, rvec, tvec)
    found = invert(pose(cv2.Rodrigues(rvec)[0], tvec[:, 0]))
    back, z = project(K, transform(invert(found), points))
    inlier = (np.linalg.norm(back - uv, axis=1) < threshold) & (z > 0)
    return (found, inlier) if inlier.sum() >= minimum else None


def robust_centre(values: np.ndarray, iterations: int = 20) -> float:
    """Huber's M-estimate of location: as robust as the median against outliers, 95 % as precise as the mean."""
    centre = float(np.median(values))
    sigma = 1.4826 * float(np.median(np.abs(values - centre))) + 1e-12
    for _ in range(iterations):
        weight = np.minimum(1, 1.345 * sigma / np.maximum(np.abs(values - centre), 1e-12))
        centre = float((weight * values).sum() / weight.sum())
    return centre
