"""A subject as a 3D Gaussian: fitted to one frame's pixels, then smoothed and bridged over time.

Reference point: the mean is the centroid of the VISIBLE surface, every pixel weighing the same; that is what pixels
know. It lies nearer to the camera than the body's centre (for a sphere of radius r seen from afar by 2/3 r).

The paper gives "the mean position and covariance of its point cloud" and no formula: `sample_gaussian` reads it as the
sample covariance with a ridge. Everything robust (trusted depth, smoothing, bridging) is this project's addition.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.ndimage import distance_transform_edt

from engine.geometry.camera import rays

RIDGE = 1e-6  # m^2 added to every variance, so that a covariance of few points can be inverted
CUT = 3.0  # robust standard deviations of depth
KEPT_VARIANCE = 0.973  # variance of a normal distribution cut at 3 sigma: 1 - 2*3*phi(3) / (2*Phi(3) - 1)


def sample_gaussian(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [3] and covariance [3,3] (n - 1) + 1e-6 I of points [P,3], float64. One point gives the ridge alone."""
    cov = np.cov(points, rowvar=False) if len(points) > 1 else np.zeros((3, 3))
    return points.mean(0), cov + RIDGE * np.eye(3)


def trusted_depth(mask: np.ndarray, depth: np.ndarray, focal: float, erode: int) -> np.ndarray:
    """bool [h,w]: pixels of the mask whose depth is the subject's own, not bleed from its surroundings.

    The mask's rim (`erode` pixels, fewer where that would leave less than a third) and depth that lies further
    from the median than a body can reach are left out: CUT robust sigmas, but no less than one and no more than two
    standard deviations of the subject's own extent in the image, so that a forward leg stays and a wall goes.
    """
    valid = mask & (depth > 0)
    core = valid
    for pixels in range(erode, 0, -1):
        shape = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pixels + 1, 2 * pixels + 1))
        smaller = cv2.erode(mask.astype(np.uint8), shape, borderType=cv2.BORDER_REPLICATE).astype(bool) & valid
        if 3 * smaller.sum() >= valid.sum():
            core = smaller
            break
    if not core.any():
        return core
    rows, columns = np.nonzero(mask)
    spread = (
        np.sqrt(np.linalg.eigvalsh(np.cov(np.stack([columns, rows])) + np.eye(2) / 12)[-1]) if len(rows) > 1 else 1.0
    )
    keep = core
    for _ in range(5):
        z = depth[keep]
        middle = np.median(z)
        sigma = 1.4826 * np.median(np.abs(z - middle))
        extent = spread * middle / focal
        new = core & (np.abs(depth - middle) <= np.clip(CUT * sigma, extent, 2 * extent))
        if (new == keep).all():
            break
        keep = new
    return keep


def robust_gaussian(
    mask: np.ndarray, depth: np.ndarray, trusted: np.ndarray, K: np.ndarray, origin: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean [3] and covariance [3,3] in the camera frame of the subject that `mask` [h,w] covers.

    Every pixel of the mask keeps its direction; a pixel whose depth is not `trusted` takes the depth of the nearest
    trusted pixel, so thin limbs are not lost to erosion. origin = (x, y) of the arrays' corner in the image.
    """
    nearest = distance_transform_edt(~trusted, return_distances=False, return_indices=True)
    filled = depth[nearest[0], nearest[1]]
    rows, columns = np.nonzero(mask)
    uv = np.stack([columns + origin[0] + 0.5, rows + origin[1] + 0.5], -1).astype(np.float64)
    points = rays(K, uv) * filled[rows, columns, None].astype(np.float64)
    mean, cov = sample_gaussian(points)
    along = mean / np.linalg.norm(mean)
    stretch = np.eye(3) + (KEPT_VARIANCE**-0.5 - 1) * np.outer(along, along)
    return mean, stretch @ cov @ stretch


@dataclass(frozen=True)
class Motion:
    """Smoothed positions mean [T,3] metres and velocities [T,3] metres per second."""

    mean: np.ndarray
    velocity: np.ndarray


def smooth_path(
    mean: np.ndarray, noise: np.ndarray, observed: np.ndarray, fps: float, agility: float, memory: float
) -> Motion:
    """The most likely path behind noisy positions: Kalman filter and Rauch-Tung-Striebel smoother, Student-t weights.

    mean [T,3] metres (any value where not observed), noise [T,3,3] covariance of each, observed bool [T].
    Model: velocity is an Ornstein-Uhlenbeck process, white acceleration of density `agility` (m^2/s^3) forgotten over
    `memory` seconds, so that a subject that is not seen slows down instead of flying off. Outliers lose weight by
    a Student-t law with 4 degrees of freedom, iterated. Formulas: Sarkka 2013, Bayesian Filtering and Smoothing, 8.2.
    """
    if not observed.any():
        raise ValueError("smooth_path needs at least one observed position, found none")
    steps, dt = len(mean), 1.0 / fps
    decay = np.exp(-dt / memory)
    F = np.kron([[1, memory * (1 - decay)], [0, decay]], np.eye(3))
    Q = np.kron(agility * np.array([[dt**3 / 3, dt**2 / 2], [dt**2 / 2, dt]]), np.eye(3))
    H = np.eye(3, 6)
    weight = np.ones(steps)
    first = int(np.argmax(observed))
    start = np.concatenate([mean[first], np.zeros(3)])
    wide = np.diag([25.0] * 3 + [agility * memory / 2 + 1.0] * 3)  # 5 m, and the stationary speed with 1 m/s to spare
    for _ in range(8):
        x, P = start, wide
        filtered, predicted = [], []
        for t in range(steps):
            if t:
                x, P = F @ x, F @ P @ F.T + Q
            predicted.append((x, P))
            if observed[t]:
                gain = P @ H.T @ np.linalg.inv(H @ P @ H.T + noise[t] / weight[t])
                x, P = x + gain @ (mean[t] - H @ x), P - gain @ H @ P
                P = (P + P.T) / 2
            filtered.append((x, P))
        states = [filtered[-1][0]]
        for t in range(steps - 2, -1, -1):
            ahead, covariance = predicted[t + 1]
            back = filtered[t][1] @ F.T @ np.linalg.inv(covariance)
            states.append(filtered[t][0] + back @ (states[-1] - ahead))
        state = np.stack(states[::-1])
        residual = np.where(observed[:, None], mean - state[:, :3], 0)
        distance = np.einsum("ti,tij,tj->t", residual, np.linalg.inv(noise), residual)
        weight = (4 + 3) / (4 + distance)
    return Motion(state[:, :3], state[:, 3:])


def smooth_covariance(cov: np.ndarray, observed: np.ndarray, weight: np.ndarray, sigma: float) -> np.ndarray:
    """Covariances [T,3,3] averaged over time with a Gaussian kernel of `sigma` frames over the observed frames.

    The mean is log-Euclidean (Arsigny et al. 2006), so the result is always positive definite and an average of two
    shapes does not swell. weight [T] >= 0. Far from any observation the nearest ones are blended by 1 / distance^2.
    """
    values, vectors = np.linalg.eigh(cov[observed])
    logs = np.einsum("tij,tj,tkj->tik", vectors, np.log(np.maximum(values, RIDGE)), vectors)
    gap = np.arange(len(cov))[:, None] - np.flatnonzero(observed)[None]
    kernel = (np.exp(-0.5 * (gap / sigma) ** 2) + 1e-6 / (1.0 + gap**2)) * weight[observed]
    kernel /= kernel.sum(1, keepdims=True)
    values, vectors = np.linalg.eigh(np.einsum("ts,sij->tij", kernel, logs))
    return np.einsum("tij,tj,tkj->tik", vectors, np.exp(values), vectors)
