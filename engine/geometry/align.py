"""One metric depth from two heads: smooth relative disparity brought to the scale of metric depth, all frames at once.

minimise  sum_t sum_i  w_i rho(a_t d_ti + b_t - 1/z_ti) + smoothness of (log a_t, b_t) over time,
by iteratively reweighted least squares (Huber; Holland & Welsch 1977) on a grid of static pixels. Points are weighed so
that near and far disparities count alike, and the worst residuals are trimmed in addition to the mask.
"""

import numpy as np
from scipy.linalg import solveh_banded


def balance_bins(disparity: np.ndarray, bins: int = 8) -> np.ndarray:
    """Weights [N] (mean 1) that give each of `bins` equal steps of log disparity the same total weight."""
    log = np.log(disparity)
    low, high = np.percentile(log, [1, 99])
    index = np.clip(((log - low) / max(high - low, 1e-6) * bins).astype(int), 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    # a bin with few points is not trusted beyond 4 x its share
    weight = np.minimum(
        1 / np.maximum(count[index], 1), 4 * bins / len(index) / np.maximum(count.sum() / len(index), 1)
    )
    return weight / weight.mean()


def align_disparity(
    disparity: np.ndarray,
    depth: np.ndarray,
    smoothness: float = 1.0,
    trim: float = 0.1,
    iterations: int = 10,
) -> tuple[np.ndarray, np.ndarray]:
    """(a [T], b [T]) with a_t d + b_t close to 1/depth.

    disparity  [T,N] relative disparity of N static sample pixels a frame, NaN = not usable
    depth      [T,N] metres at the same pixels, 0 = no value
    smoothness weight of the change of (log a_t, b_t) between frames, in units of one frame's data
    trim       share of the worst residuals ignored
    Raises ValueError when fewer than two samples a frame are usable over the whole clip.
    """
    count = len(disparity)
    usable = np.isfinite(disparity) & (depth > 0)
    if usable.sum() < 2 * count:
        raise ValueError(
            f"depth alignment: {int(usable.sum())} usable samples over {count} frames, expected at least {2 * count}; "
            "are the masks or the sky covering everything?"
        )
    d = np.where(usable, disparity, 0.0).astype(np.float64)
    target = np.where(usable, 1 / np.where(usable, depth, 1), 0.0).astype(np.float64)
    base = np.zeros_like(d)
    base[usable] = balance_bins(target[usable])
    # Disparity errors grow with disparity (depth errors are relative): residuals are measured relative to it.
    base = np.where(usable, base / np.maximum(target, 1e-6) ** 2, 0)
    weight = base.copy()
    a, b = np.zeros(count), np.zeros(count)
    link = np.zeros((2, 2))
    for _ in range(iterations):
        H, g = _normal_equations(weight, d, target)
        if smoothness > 0:
            link = smoothness * np.diag(np.median(np.stack([H[:, 0, 0], H[:, 1, 1]]), axis=1)) * 1e-3
        a, b = _solve_chain(H, g, link)
        relative = np.abs(a[:, None] * d + b[:, None] - target) / np.maximum(target, 1e-6)
        sigma = 1.4826 * np.median(relative[usable]) + 1e-9
        cut = np.quantile(relative[usable], 1 - trim) if trim > 0 else np.inf
        huber = np.minimum(1, 1.345 * sigma / np.maximum(relative, 1e-12))
        weight = base * huber * (relative <= max(cut, 3 * sigma))
    return a, b


def _normal_equations(weight: np.ndarray, d: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    H = np.empty((len(d), 2, 2))
    H[:, 0, 0], H[:, 1, 1] = (weight * d * d).sum(1), weight.sum(1)
    H[:, 0, 1] = H[:, 1, 0] = (weight * d).sum(1)
    return H, np.stack([(weight * d * target).sum(1), (weight * target).sum(1)], -1)


def _solve_chain(H: np.ndarray, g: np.ndarray, link: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Solve for (a_t, b_t) with a quadratic pull `link` [2,2] between neighbours: a banded symmetric system."""
    count = len(H)
    band = np.zeros((4, 2 * count))  # upper form: band[3 - k, j] = A[j - k, j]
    degree = np.full(count, 2.0)
    degree[[0, -1]] -= 1 if count > 1 else 2
    diagonal = H + degree[:, None, None] * link
    ridge = 1e-9 * (np.trace(diagonal.mean(0)) + 1e-30)
    band[3, 0::2], band[3, 1::2] = diagonal[:, 0, 0] + ridge, diagonal[:, 1, 1] + ridge
    band[2, 1::2] = diagonal[:, 0, 1]
    band[1, 2::2], band[1, 3::2] = -link[0, 0], -link[1, 1]
    x = solveh_banded(band, g.reshape(-1))
    return x[0::2], x[1::2]
