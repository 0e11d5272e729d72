"""One metric depth from two heads: the shape of relative disparity on the scale of metric depth, all frames at once.

Unknown per frame are a_t, b_t (the affine map of the disparity d), s_t (the flicker of the metric head's log scale) and
v_t (the camera's motion along its view until the next frame, metres):

    minimise  sum_t sum_static w rho(log D_t(p) + log z_t(p) + s_t)           D = a d + b agrees with the metric depth z
            + sum_t sum_static w rho(log D_t+1(p') - log D_t(p) - motion)     and is steady along the optical flow
            + sum_t s_t^2 / sigma^2 + sum_t (v_t+1 - v_t)^2 / sigma_v^2

The raw a_t and b_t of a network may jump, since it normalises every frame for itself; so smoothness over time is asked
of what they produce, the aligned disparity D of static points that flow carries from p to p'. A small camera motion
changes its log by alpha x + beta y + v D; alpha and beta (rotation about the image axes) are eliminated for every pair,
v is steady because a person carries the camera. Logs make both terms blind to a common factor: nothing is gained by
shrinking D. Gauss-Newton with iteratively reweighted least squares (Huber; Holland & Welsch 1977); masks and trimming;
near and far count alike.
"""

from dataclasses import dataclass

import numpy as np

STEADY = (
    0.01  # metres per frame by which the camera's speed along its view changes from frame to frame (hand-held, 16 fps)
)
FAINTEST = 0.02  # disparities below this share of the frame's median have no useful log: the far end, beyond 50 medians
CELLS = 40  # independent samples in a frame: errors of depth networks are smooth over about 100 of 832 x 480 pixels


@dataclass(frozen=True)
class Matches:
    """Static points p of frame t found at p' in frame t + 1, t = 0..T-2.

    before, after  [T-1,N] the disparity at p in frame t and at p' in frame t + 1, NaN = no match
    xy             [N,2] image position of p, any unit, zero at the principal point
    """

    before: np.ndarray
    after: np.ndarray
    xy: np.ndarray


def balance_bins(disparity: np.ndarray, bins: int = 8) -> np.ndarray:
    """Weights [N] (mean 1) that give each of `bins` equal steps of log disparity the same total weight; a bin with few
    points is not raised beyond 4 times its share."""
    log = np.log(disparity)
    low, high = np.percentile(log, [1, 99])
    index = np.clip(((log - low) / max(high - low, 1e-6) * bins).astype(int), 0, bins - 1)
    share = np.bincount(index, minlength=bins)[index] / len(index)
    weight = np.minimum(1 / (bins * share), 4)
    return weight / weight.mean()


def align_disparity(
    disparity: np.ndarray,
    depth: np.ndarray,
    matches: Matches | None = None,
    scale_sigma: float = 0.05,
    trim: float = 0.1,
    iterations: int = 12,
) -> tuple[np.ndarray, np.ndarray]:
    """(a [T], b [T]) with a_t d + b_t close to 1/depth and steady over time.

    disparity    [T,N] relative disparity of N static samples a frame, NaN = not usable
    depth        [T,N] metres at the same pixels, 0 = no value
    matches      static points in neighbouring frames; None fits every frame by itself
    scale_sigma  flicker of the log scale of `depth` from frame to frame; 0 trusts every frame's scale
    trim         share of the worst residuals that is ignored
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
    z = np.where(usable, depth, 0.0).astype(np.float64)
    base = np.zeros_like(d)
    base[usable] = balance_bins(1 / z[usable])
    steady = matches is not None and count > 1 and scale_sigma > 0
    link = np.isfinite(matches.before + matches.after) if steady else None
    unknown = np.stack([_binned_fit(*pair) for pair in zip(d, z, usable, strict=True)])
    for step in range(iterations):
        joint = steady and step >= 3  # frame by frame first, until D is near
        H, g = _agreement(d, z, base, unknown, scale_sigma if joint else 0.0, trim)
        _steady_motion(H, g, unknown[:, 3])
        if joint:
            _add_consistency(H, g, matches, unknown, link, trim)
        unknown = unknown - np.linalg.solve(H, g).reshape(count, 4)
    return unknown[:, 0], unknown[:, 1]


def _binned_fit(d: np.ndarray, z: np.ndarray, usable: np.ndarray, bins: int = 12) -> np.ndarray:
    """(a, b, 0, 0) of one frame from the median 1/z of equal shares of sorted d: wild depths do not move it."""
    d, inverse = d[usable], 1 / z[usable]
    if len(d) < 2 * bins:
        return np.array([0.0, np.median(inverse) if len(d) else 0.0, 0.0, 0.0])
    parts = np.array_split(np.argsort(d, kind="stable"), bins)
    x, y = np.array([(np.median(d[p]), np.median(inverse[p])) for p in parts]).T
    a, b = np.polyfit(x, y, 1, w=1 / y)
    return np.array([a, b, 0.0, 0.0])


def _agreement(
    d: np.ndarray, z: np.ndarray, base: np.ndarray, unknown: np.ndarray, scale_sigma: float, trim: float
) -> tuple[np.ndarray, np.ndarray]:
    """Normal equations H [4T,4T], g [4T] of steps in (a, b, s, v). Every frame counts as CELLS samples."""
    count = len(d)
    H, g = np.zeros((4 * count, 4 * count)), np.zeros(4 * count)
    # Residuals are relative and of the order of 3 %; s is pulled to 0 with scale_sigma in the same unit.
    pull = (0.03 / scale_sigma) ** 2 if scale_sigma > 0 else 1e12
    for t, (a, b, s, _) in enumerate(unknown):
        D = a * d[t] + b
        known = base[t] > 0
        if known.any():
            known &= _bright(D, known)
        index = slice(4 * t, 4 * t + 3)
        H[index, index] += np.diag([1e-9, 1e-9, pull])
        g[4 * t + 2] += pull * s
        if known.sum() < 8:
            continue
        D = D[known]
        residual = np.log(D * z[t, known]) + s
        weight = base[t, known] * _huber(residual, np.ones(len(D), bool), trim)
        weight *= CELLS / weight.sum()
        J = np.stack([d[t, known] / D, 1 / D, np.ones_like(D)], -1)
        H[index, index] += J.T @ (weight[:, None] * J)
        g[index] += J.T @ (weight * residual)
    return H, g


def _steady_motion(H: np.ndarray, g: np.ndarray, v: np.ndarray) -> None:
    """Add the pull between the v of neighbouring pairs in place."""
    pull = (0.03 / STEADY) ** 2
    index = np.arange(3, len(g), 4)
    H[index, index] += 1e-6  # the last frame has no pair
    for i, change in zip(range(len(v) - 1), np.diff(v), strict=True):
        H[np.ix_(index[i : i + 2], index[i : i + 2])] += pull * np.array([[1, -1], [-1, 1]])
        g[index[i : i + 2]] += pull * change * np.array([-1, 1])


def _add_consistency(
    H: np.ndarray, g: np.ndarray, matches: Matches, unknown: np.ndarray, link: np.ndarray, trim: float
) -> None:
    """Add the terms between neighbouring frames in place; each pair's motion is eliminated by its Schur complement."""
    for t, known in enumerate(link):
        (a0, b0, _, v), (a1, b1, _, _) = unknown[t], unknown[t + 1]
        before, after, xy = matches.before[t, known], matches.after[t, known], matches.xy[known]
        D0, D1 = a0 * before + b0, a1 * after + b1
        if len(D0) < 50:
            continue
        every = np.ones(len(D0), bool)
        ahead = _bright(D0, every) & _bright(D1, every)
        before, after, D0, D1, xy = before[ahead], after[ahead], D0[ahead], D1[ahead], xy[ahead]
        if len(D0) < 50:
            continue
        change = np.log(D1 / D0) - v * D0
        M = xy / np.abs(xy).max()
        base, robust = balance_bins(D0), np.ones(len(D0))
        for _ in range(3):
            weight = base * robust
            MM = M.T @ (weight[:, None] * M) + 1e-9 * np.eye(2)
            residual = change - M @ np.linalg.solve(MM, M.T @ (weight * change))
            robust = _huber(residual, np.ones(len(D0), bool), trim)
        weight = base * robust
        weight *= CELLS / weight.sum()
        J = np.stack([-before / D0, -1 / D0, -D0, after / D1, 1 / D1], -1)
        MM = M.T @ (weight[:, None] * M) + 1e-9 * np.eye(2)
        across = J.T @ (weight[:, None] * M) @ np.linalg.inv(MM)
        index = np.r_[4 * t, 4 * t + 1, 4 * t + 3, 4 * t + 4, 4 * t + 5]
        H[np.ix_(index, index)] += J.T @ (weight[:, None] * J) - across @ (M.T @ (weight[:, None] * J))
        g[index] += J.T @ (weight * change) - across @ (M.T @ (weight * change))


def _bright(D: np.ndarray, known: np.ndarray) -> np.ndarray:
    return np.maximum(FAINTEST * np.median(D[known]), 1e-12) < D


def _huber(residual: np.ndarray, usable: np.ndarray, trim: float) -> np.ndarray:
    """Weights in 0..1: Huber's with the residuals' own spread, 0 for the worst share `trim` where beyond 3 sigma."""
    size = np.abs(residual)
    sigma = 1.4826 * float(np.median(size[usable])) + 1e-9
    cut = max(float(np.quantile(size[usable], 1 - trim)), 3 * sigma)
    return np.minimum(1, 1.345 * sigma / np.maximum(size, 1e-12)) * (size <= cut) * usable
