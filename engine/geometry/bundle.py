"""Bundle adjustment: keyframe poses, points, per-frame depth scales and a focal factor, all at once.

A point lives in the camera that saw it first (its anchor), as an image ray (x, y, 1) and the log of its depth there.
That is well conditioned for points at any distance, keeps depths positive, and makes a depth measurement linear. For an
observation in frame j of a point anchored in frame a

    q = R_j^T (R_a (x, y, 1) + exp(-l) (c_a - c_j))        the point in camera j, divided by its depth in the anchor
    residuals: f q_xy / q_z - uv   and   log q_z + l - log depth - s_j

with c2w = (R, c), depth the measured depth and s_j the log scale of frame j's depth. Levenberg-Marquardt on the Schur
complement of the points (Triggs et al. 2000), Cauchy losses by iteratively reweighted least squares.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.spatial.transform import Rotation
from threadpoolctl import threadpool_limits

from engine.geometry import residuals
from engine.options import option

FRAME = 7  # unknowns of a frame: rotation 3 (right increment, radians), centre 3 (world), log depth scale 1


@dataclass
class BundleOptions:
    pixel_sigma: float = option(1.0, "noise of one reprojection, pixels")
    cauchy: float = option(1.0, "width of the Cauchy losses in sigmas (depth: twice that); 1e6 = plain least squares")
    depth_sigma: float = option(0.05, "noise of the log of one depth value (MoGe-2 and the like: 3 to 5 %)")
    depth_cells: float = option(
        40.0,
        "independent depth values in a frame: their noise is smooth over about 100 px, so many samples count as few",
    )
    scale_sigma: float = option(0.07, "noise of the log of one frame's depth scale (flicker of metric heads, 5 %)")
    acceleration_sigma: float = option(
        0.01, "plausible camera acceleration, as a share of the median depth per frame squared (a hand-held walk)"
    )
    low_parallax_px: float = option(10.0, "below this parallax the velocity prior tightens in proportion")
    iterations: int = option(30, "most Levenberg-Marquardt steps")


@dataclass(frozen=True)
class Observations:
    """O sightings: frame, point int64 [O]; uv float64 [O,2] pixels; depth float64 [O] (0 = none)."""

    frame: np.ndarray
    point: np.ndarray
    uv: np.ndarray
    depth: np.ndarray


@dataclass(frozen=True)
class Bundle:
    """The unknowns: c2w [F,4,4]; log_scale [F] of the frames' depth; anchor int64 [P]; ray [P,2] (x/z, y/z in the
    anchor camera under the given K); log_depth [P] in the anchor camera; log_focal, a shared factor on the focal
    length.
    """

    c2w: np.ndarray
    log_scale: np.ndarray
    anchor: np.ndarray
    ray: np.ndarray
    log_depth: np.ndarray
    log_focal: float = 0.0

    def world_points(self) -> np.ndarray:
        """Points [P,3] in the world."""
        xy = self.ray / np.exp(self.log_focal)
        local = np.concatenate([xy, np.ones((len(xy), 1))], 1) * np.exp(self.log_depth)[:, None]
        pose = self.c2w[self.anchor]
        return np.einsum("pij,pj->pi", pose[:, :3, :3], local) + pose[:, :3, 3]


@dataclass(frozen=True)
class Prior:
    """What is known besides the observations. Every sigma may be inf (= nothing known).

    times               [F] of the frames, for the velocity prior
    acceleration_sigma  [F] world units per time squared
    scale_sigma         of log_scale around 0
    focal_sigma         of log_focal around 0; 0 keeps it fixed
    log_depth_sigma     of log_depth around `log_depth` (a weak pull that keeps points without parallax finite)
    fixed               frames whose pose stays as it is (the gauge)
    """

    times: np.ndarray
    acceleration_sigma: np.ndarray
    scale_sigma: float = np.inf
    focal_sigma: float = 0.0
    log_depth_sigma: float = np.inf
    log_depth: float = 0.0
    fixed: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Solution:
    """The adjusted bundle, its robust cost, the standard deviation [P] of the points' log depth (with the poses held,
    so a lower bound) and of the log focal factor, whether the steps converged, and the cost before every step."""

    bundle: Bundle
    cost: float
    log_depth_sigma: np.ndarray
    converged: bool
    focal_log_sigma: float = 0.0
    history: list[float] = field(default_factory=list)


def adjust(
    bundle: Bundle,
    observations: Observations,
    K: np.ndarray,
    prior: Prior,
    pixel_sigma: float = 1.0,
    depth_sigma: float = 0.05,
    iterations: int = 30,
    tolerance: float = 1e-7,
    cauchy: float = 1.0,
) -> Solution:
    """Minimise reprojection, depth and prior residuals over the whole bundle.

    K [3,3] pixels. Stops when a step lowers the cost by less than `tolerance` of it. BLAS is held to one thread, so
    that equal inputs give equal bytes however many cores a worker has.
    """
    with threadpool_limits(limits=1, user_api="blas"):
        return _adjust(bundle, observations, K, prior, (pixel_sigma, depth_sigma, cauchy), iterations, tolerance)


def _adjust(bundle, observations, K, prior, noise, iterations, tolerance) -> Solution:
    frames = len(bundle.c2w)
    free = np.ones(FRAME * frames + 1, bool)
    for f in prior.fixed:
        free[FRAME * f : FRAME * f + 6] = False
    if not np.isfinite(prior.scale_sigma):
        free[6 : FRAME * frames : FRAME] = False
    free[-1] = prior.focal_sigma > 0
    damping, history = 1e-4, []
    cost, H, g, W, V, gp = _normal_equations(bundle, observations, K, prior, noise)
    converged = False
    for _ in range(iterations):
        history.append(cost)
        step = _solve(H, g, W, V, gp, free, damping)
        if step is not None:
            trial = _move(bundle, *step)
            trial_cost = _evaluate(trial, observations, K, prior, noise)
        if step is None or not trial_cost < cost:
            if step is not None and abs(trial_cost - cost) <= tolerance * cost:
                converged = True
                break
            damping *= 8
            if damping > 1e8:
                break
            continue
        gain = (cost - trial_cost) / max(cost, 1e-300)
        bundle, damping = trial, max(damping / 5, 1e-9)
        cost, H, g, W, V, gp = _normal_equations(bundle, observations, K, prior, noise)
        if gain < tolerance:
            converged = True
            break
    V = V + 1e-9 * np.eye(3)  # a point that no camera has before it any more knows nothing
    sigma = np.sqrt(np.linalg.inv(V)[:, 2, 2])
    focal_sigma = 0.0
    if free[-1]:
        S = _schur(H, W, V, free, 1e-9)
        try:
            focal_sigma = float(np.sqrt(cho_solve(cho_factor(S), np.eye(len(S))[-1])[-1]))
        except LinAlgError:
            focal_sigma = np.inf
    return Solution(bundle, cost, sigma, converged, focal_sigma, history)


def _move(bundle: Bundle, camera_step: np.ndarray, point_step: np.ndarray) -> Bundle:
    per_frame = camera_step[:-1].reshape(-1, FRAME)
    c2w = bundle.c2w.copy()
    c2w[:, :3, :3] = c2w[:, :3, :3] @ Rotation.from_rotvec(per_frame[:, :3]).as_matrix()
    c2w[:, :3, 3] += per_frame[:, 3:6]
    return replace(
        bundle,
        c2w=c2w,
        log_scale=bundle.log_scale + per_frame[:, 6],
        ray=bundle.ray + point_step[:, :2],
        log_depth=bundle.log_depth + np.clip(point_step[:, 2], -1, 1),
        log_focal=bundle.log_focal + float(np.clip(camera_step[-1], -0.2, 0.2)),
    )


def _solve(H, g, W, V, gp, free, damping) -> tuple[np.ndarray, np.ndarray] | None:
    """Damped step (cameras [7F+1], points [P,3]), or None when the system is not positive definite."""
    try:
        V = V + damping * V * np.eye(3) + 1e-12 * np.eye(3)
        inverse = np.linalg.inv(V)
        S = _schur(H, W, V, free, damping)
        reduced = g[free] - np.einsum("pif,pi->f", W[:, :, free], np.einsum("pij,pj->pi", inverse, gp))
        step = np.zeros(len(g))
        step[free] = -cho_solve(cho_factor(S), reduced)
    except LinAlgError:
        return None
    return step, -np.einsum("pij,pj->pi", inverse, gp + W @ step)


def _schur(H, W, V, free, damping) -> np.ndarray:
    """The reduced camera matrix over the free unknowns: H - W^T V^-1 W."""
    root = np.linalg.cholesky(V)
    A = np.linalg.solve(root, W[:, :, free]).reshape(-1, int(free.sum()))
    S = H[np.ix_(free, free)]
    return S + damping * np.diag(np.diag(S)) + 1e-12 * np.eye(len(S)) - A.T @ A


def _evaluate(bundle, observations, K, prior, noise) -> float:
    """The robust cost of a bundle; noise = (pixel sigma, depth sigma, Cauchy width)."""
    unused = [np.zeros((0,) * axes) for axes in (2, 1, 3, 3, 2)]
    data = residuals.accumulate(*_arrays(bundle, observations, K), *noise, False, *unused)
    return data + _prior_terms(bundle, prior, None, None, None, None)


def _arrays(bundle: Bundle, observations: Observations, K: np.ndarray) -> tuple:
    log_measured = np.where(observations.depth > 0, np.log(np.maximum(observations.depth, 1e-12)), np.nan)
    return (
        np.ascontiguousarray(bundle.c2w),
        bundle.log_scale,
        bundle.anchor,
        bundle.ray,
        bundle.log_depth,
        bundle.log_focal,
        np.array([K[0, 0], K[1, 1], K[0, 2], K[1, 2]]),
        observations.frame,
        observations.point,
        observations.uv,
        log_measured,
    )


def _normal_equations(bundle, observations, K, prior, noise) -> tuple:
    """cost; H [D,D], g [D] of the cameras (D = 7F + 1); W [P,3,D]; V [P,3,3], gp [P,3] of the points."""
    size, points = FRAME * len(bundle.c2w) + 1, len(bundle.log_depth)
    H, g = np.zeros((size, size)), np.zeros(size)
    W, V, gp = np.zeros((points, 3, size)), np.zeros((points, 3, 3)), np.zeros((points, 3))
    cost = residuals.accumulate(*_arrays(bundle, observations, K), *noise, True, H, g, W, V, gp)
    cost += _prior_terms(bundle, prior, H, g, V, gp)
    return cost, H, g, W, V, gp


def _prior_terms(bundle, prior, H, g, V, gp) -> float:
    """Cost of the priors; with H, g, V, gp given, their normal equations are added in place."""
    frames = len(bundle.c2w)
    cost = 0.0
    if np.isfinite(prior.scale_sigma):
        s, weight = bundle.log_scale, 1 / prior.scale_sigma**2
        cost += 0.5 * weight * float((s * s).sum())
        if H is not None:
            index = np.arange(6, FRAME * frames, FRAME)
            H[index, index] += weight
            g[index] += weight * s
    if 0 < prior.focal_sigma < np.inf:
        cost += 0.5 * (bundle.log_focal / prior.focal_sigma) ** 2
        if H is not None:
            H[-1, -1] += 1 / prior.focal_sigma**2
            g[-1] += bundle.log_focal / prior.focal_sigma**2
    if np.isfinite(prior.log_depth_sigma):
        r, weight = bundle.log_depth - prior.log_depth, 1 / prior.log_depth_sigma**2
        cost += 0.5 * weight * float((r * r).sum())
        if V is not None:
            V[:, 2, 2] += weight
            gp[:, 2] += weight * r
    for k in range(1, frames - 1):
        if not np.isfinite(prior.acceleration_sigma[k]):
            continue
        before, after = prior.times[k] - prior.times[k - 1], prior.times[k + 1] - prior.times[k]
        mean = (before + after) / 2
        factors = np.array([1 / before, -1 / before - 1 / after, 1 / after]) / mean / prior.acceleration_sigma[k]
        residual = factors @ bundle.c2w[k - 1 : k + 2, :3, 3]
        cost += 0.5 * float(residual @ residual)
        if H is not None:
            for axis in range(3):
                index = FRAME * np.arange(k - 1, k + 2) + 3 + axis
                H[np.ix_(index, index)] += np.outer(factors, factors)
                g[index] += factors * residual[axis]
    return cost
