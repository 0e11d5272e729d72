"""Poses from known points, frame by frame: perspective-n-point against lifted depth, refinement, depth scales."""

from dataclasses import dataclass

import cv2
import numpy as np

from engine.geometry.camera import invert, pose, project, transform, unproject


@dataclass(frozen=True)
class Trajectory:
    """c2w float64 [T,4,4]; log_scale float64 [T] added to the log of each frame's depth; solved bool [T]: False where
    the pose was only extrapolated; points float64 [M,3] world points of the tracks, NaN without any depth."""

    c2w: np.ndarray
    log_scale: np.ndarray
    solved: np.ndarray
    points: np.ndarray


def chain_poses(
    uv: np.ndarray, depth: np.ndarray, K: np.ndarray, threshold: float = 3.0, minimum: int = 12
) -> Trajectory:
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
    return Trajectory(c2w, log_scale, solved, points)


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


def refine_poses(
    uv: np.ndarray, points: np.ndarray, c2w: np.ndarray, K: np.ndarray, frames: np.ndarray, iterations: int = 8
) -> np.ndarray:
    """c2w [T,4,4] with the poses of `frames` moved to explain uv [M,T,2] of fixed world points [M,3].

    Gauss-Newton per frame on the reprojection error, with a Cauchy loss that narrows to 1 px. NaN rows take no part; a
    frame that sees fewer than 6 points keeps its pose.
    """
    out = c2w.copy()
    known = np.isfinite(points[:, 0])
    for t in frames:
        index = np.flatnonzero(known & np.isfinite(uv[:, t, 0]))
        if len(index) < 6:
            continue
        for _ in range(iterations):
            R, c = out[t, :3, :3], out[t, :3, 3]
            q = (points[index] - c) @ R
            ahead = q[:, 2] > 1e-3
            q, target = q[ahead], uv[index[ahead], t]
            x, y, inverse = q[:, 0] / q[:, 2], q[:, 1] / q[:, 2], 1 / q[:, 2]
            r = np.stack([K[0, 0] * x + K[0, 2] - target[:, 0], K[1, 1] * y + K[1, 2] - target[:, 1]], -1)
            zero = np.zeros_like(x)
            P = np.stack(
                [
                    np.stack([K[0, 0] * inverse, zero, -K[0, 0] * x * inverse], -1),
                    np.stack([zero, K[1, 1] * inverse, -K[1, 1] * y * inverse], -1),
                ],
                1,
            )
            cross = np.stack(  # [q]x, row by row
                [
                    np.stack([zero, -q[:, 2], q[:, 1]], -1),
                    np.stack([q[:, 2], zero, -q[:, 0]], -1),
                    np.stack([-q[:, 1], q[:, 0], zero], -1),
                ],
                1,
            )
            J = np.concatenate([P @ cross, -P @ R.T], -1)
            error = np.linalg.norm(r, axis=1)
            weight = 1 / (1 + (error / max(1.0, float(np.median(error)))) ** 2)
            H = np.einsum("n,nij,nik->jk", weight, J, J)
            step = -np.linalg.solve(
                H + 1e-9 * np.diag(np.diag(H)) + 1e-12 * np.eye(6), np.einsum("n,nij,ni->j", weight, J, r)
            )
            out[t, :3, :3] = R @ cv2.Rodrigues(step[:3])[0]
            out[t, :3, 3] = c + step[3:]
            if np.abs(step).max() < 1e-7:
                break
    return out


def lift_points(uv: np.ndarray, depth: np.ndarray, c2w: np.ndarray, K: np.ndarray) -> np.ndarray:
    """World points [M,3] of tracks uv [M,T,2]: the median over the sightings with depth [M,T]; NaN without any.

    c2w [T,4,4]; K [T,3,3] pixels."""
    world = np.full((*depth.shape, 3), np.nan)
    for t in range(depth.shape[1]):
        index = np.flatnonzero(np.isfinite(uv[:, t, 0]) & (depth[:, t] > 0))
        world[index, t] = transform(c2w[t], unproject(K[t], uv[index, t], depth[index, t]))
    out = np.full((len(uv), 3), np.nan)
    some = np.isfinite(world[..., 0]).any(1)
    out[some] = np.nanmedian(world[some], axis=1)
    return out


def synchronise_scales(log_depth: np.ndarray, sigma: float = 0.07, iterations: int = 20) -> np.ndarray:
    """Log factors s [T] that make log_depth [M,T] + s constant along every track (NaN = not seen).

    Two-way robust fit (Cauchy weights): the tracks' levels and the frames' factors in turn; the factors are pulled to 0
    with `sigma`, lightly, so that a long clip does not drift where tracks are short.
    """
    known = np.isfinite(log_depth)
    value = np.where(known, log_depth, 0)
    weight = known.astype(np.float64)
    s = np.zeros(log_depth.shape[1])
    for _ in range(iterations):
        level = (weight * (value + s)).sum(1) / np.maximum(weight.sum(1), 1e-9)
        residual = np.where(known, level[:, None] - value, 0)
        total = weight.sum(0)
        s = (weight * residual).sum(0) / np.maximum(total * (1 + 1e-2 * (0.05 / sigma) ** 2), 1e-9)
        off = residual - s
        width = 1.4826 * np.median(np.abs(off[known])) + 1e-9 if known.any() else 1.0
        weight = known / (1 + (off / (2 * width)) ** 2)
    return s


def robust_centre(values: np.ndarray, iterations: int = 20) -> float:
    """Huber's M-estimate of location: as robust as the median against outliers, 95 % as precise as the mean."""
    centre = float(np.median(values))
    sigma = 1.4826 * float(np.median(np.abs(values - centre))) + 1e-12
    for _ in range(iterations):
        weight = np.minimum(1, 1.345 * sigma / np.maximum(np.abs(values - centre), 1e-12))
        centre = float((weight * values).sum() / weight.sum())
    return centre
