"""From scattered inverse depths to a full surface: edge-aware least squares around a prior surface."""

import cv2
import numba
import numpy as np


def complete(
    value: np.ndarray,
    weight: np.ndarray,
    prior: np.ndarray,
    guide: np.ndarray,
    barrier: np.ndarray,
    pull: float = 0.003,
) -> np.ndarray:
    """float32 [h,w] that minimises sum w (x - value)^2 + pull (x - prior)^2 + sum_edges g (r_i - r_j)^2, r = x - prior.

    value, weight, prior  float32 [h,w]; weight 0 = nothing known
    guide    uint8 [h,w]: an image edge of 10 grey levels lets the surface break ten times more easily
    barrier  bool [h,w]: nothing passes between barrier and not barrier (the sky's border)

    The prior's slant is kept (only departures from it are smooth), so a ground plane stays a plane. Solved from
    coarse to fine by successive over-relaxation.
    """
    r = np.zeros((1, 1), np.float32)
    residual = (value - prior) * weight
    levels = [(residual.astype(np.float32), weight.astype(np.float32), guide, barrier.astype(np.float32))]
    while min(levels[-1][1].shape) > 12:
        h, w = levels[-1][1].shape
        size = ((w + 1) // 2, (h + 1) // 2)
        levels.append(tuple(cv2.resize(a, size, interpolation=cv2.INTER_AREA) for a in levels[-1]))
    for depth, (top, mass, image, wall) in reversed(list(enumerate(levels))):
        h, w = mass.shape
        r = cv2.resize(r, (w, h), interpolation=cv2.INTER_LINEAR)
        horizontal, vertical = _links(image, wall > 0.5)
        _relax(r, top, mass, horizontal, vertical, np.float32(pull), 60 if depth else 25)
    return prior + r


def _links(image: np.ndarray, wall: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smoothness weights to the right [h,w-1] and down [h-1,w]."""
    image, wall = image.astype(np.float32), wall.astype(np.int8)
    out = []
    for axis in (1, 0):
        g = 1 / (1 + (np.diff(image, axis=axis) / 3) ** 2)
        out.append(np.where(np.diff(wall, axis=axis) != 0, 1e-4, np.maximum(g, 0.003)).astype(np.float32))
    return out[0], out[1]


@numba.njit(cache=True)
def _relax(r, top, mass, horizontal, vertical, pull, sweeps):
    h, w = r.shape
    omega = numba.float32(1.8)
    for _ in range(sweeps):
        for y in range(h):
            for x in range(w):
                a, b = mass[y, x] + pull, top[y, x]
                if x > 0:
                    a += horizontal[y, x - 1]
                    b += horizontal[y, x - 1] * r[y, x - 1]
                if x < w - 1:
                    a += horizontal[y, x]
                    b += horizontal[y, x] * r[y, x + 1]
                if y > 0:
                    a += vertical[y - 1, x]
                    b += vertical[y - 1, x] * r[y - 1, x]
                if y < h - 1:
                    a += vertical[y, x]
                    b += vertical[y, x] * r[y + 1, x]
                r[y, x] += omega * (b / a - r[y, x])


def upsample(small: np.ndarray, guide_small: np.ndarray, guide: np.ndarray, radius: int = 3) -> np.ndarray:
    """Fast guided filter (He & Sun 2015): float32 [H,W] that follows the edges of `guide` (uint8 [H,W]).

    small float32 [h,w]; guide_small uint8 [h,w].
    """
    size = (2 * radius + 1, 2 * radius + 1)
    I, p = guide_small.astype(np.float32) / 255, small.astype(np.float32)
    mean_I, mean_p = cv2.blur(I, size), cv2.blur(p, size)
    var = cv2.blur(I * I, size) - mean_I**2
    cov = cv2.blur(I * p, size) - mean_I * mean_p
    a = cov / (var + 0.02**2)  # edges weaker than 2 % of the grey range are smoothed over
    b = mean_p - a * mean_I
    shape = (guide.shape[1], guide.shape[0])
    A, B = (cv2.resize(cv2.blur(m, size), shape, interpolation=cv2.INTER_LINEAR) for m in (a, b))
    out = A * (guide.astype(np.float32) / 255) + B
    low, high = (cv2.resize(f(small, np.ones(size, np.uint8)), shape) for f in (cv2.erode, cv2.dilate))
    return np.clip(out, low, high)
