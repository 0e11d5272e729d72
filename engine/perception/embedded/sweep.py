"""Plane-sweep stereo over the frames of a moving camera: inverse depth and confidence of static pixels.

Collins 1996 (plane sweep), zero-mean normalised cross-correlation, the better half of the neighbours against
occlusion (Kang et al. 2001), semi-global aggregation (Hirschmueller 2008), then a check of every map against its
neighbours. Works in the unit of the poses. Serial numba: equal inputs give equal outputs.
"""

import itertools
from dataclasses import dataclass

import cv2
import numba
import numpy as np

from engine.geometry.camera import invert, pixel_grid, rays
from engine.options import option


@dataclass
class SweepOptions:
    width: int = option(280, "width of the depth maps, pixels: a third of 832 (cost grows with its square)")
    every: int = option(2, "frames between two swept frames; those between look their depth up in both")
    planes: int = option(48, "inverse-depth hypotheses; their step is about a pixel of parallax at this width")
    neighbours: int = option(4, "frames compared with each frame, half before, half after; the two best count")
    baseline: float = option(0.08, "wanted baseline over the median depth: 4.6 degrees of parallax")
    radius: int = option(2, "half the correlation window, pixels: 5 x 5")
    smooth: float = option(0.06, "semi-global penalty of a step of one plane (costs lie in 0..1)")
    jump: float = option(0.5, "semi-global penalty of a larger step on even colour; falls at image edges")


def sweep(
    gray: np.ndarray, usable: np.ndarray, K: np.ndarray, c2w: np.ndarray, inverse: tuple[float, float], o: SweepOptions
) -> tuple[np.ndarray, np.ndarray]:
    """Inverse depth float32 [T,h,w] and confidence float32 [T,h,w] in 0..1 (0 = nothing known).

    gray     uint8 [T,h,w]; usable bool [T,h,w], False on moving things
    K        float64 [3,3] at this size; c2w float64 [T,4,4], any unit
    inverse  smallest and largest inverse depth looked at, 1 / unit of c2w
    """
    count, h, w = gray.shape
    planes = np.linspace(inverse[0], inverse[1], o.planes).astype(np.float32)
    near = _neighbours(c2w, 2 / (inverse[0] + inverse[1]), o)
    image = gray.astype(np.float32) / 255
    disparity = np.zeros((count, h, w), np.float32)
    confidence = np.zeros((count, h, w), np.float32)
    w2c, K_inverse = invert(c2w), np.linalg.inv(K)
    swept = sorted({*range(0, count, o.every), count - 1})
    for t in swept:
        if not near[t]:
            continue
        homographies = np.empty((len(near[t]), o.planes, 3, 3), np.float32)
        for i, s in enumerate(near[t]):
            relative = w2c[s] @ c2w[t]
            # Plane z = 1/p of camera t: x_s ~ K (R + p t e_z^T) K^-1 x_t.
            plane = relative[:3, :3] + planes[:, None, None] * np.outer(relative[:3, 3], [0, 0, 1])
            homographies[i] = K @ plane @ K_inverse
        cost = _cost_volume(image[t], image[near[t]], usable[near[t]], homographies, o.radius)
        smoothed = _aggregate(cost, image[t], np.float32(o.smooth), np.float32(o.jump))
        index, sure = _winner(smoothed, cost)
        disparity[t] = planes[0] + index * (planes[1] - planes[0])
        confidence[t] = sure * usable[t]
    return _agree(disparity, confidence, K, c2w, swept, float(planes[1] - planes[0]))


def _neighbours(c2w: np.ndarray, depth: float, o: SweepOptions) -> list[list[int]]:
    """For each frame the frames to compare it with: on each side those nearest to the wanted baselines."""
    centres = c2w[:, :3, 3]
    wanted = o.baseline * depth * np.arange(1, o.neighbours // 2 + 1) / (o.neighbours // 2)
    out = []
    for t in range(len(c2w)):
        length = np.linalg.norm(centres - centres[t], axis=1)
        facing = c2w[:, :3, 2] @ c2w[t, :3, 2] > 0.85  # 32 degrees: still the same part of the scene
        chosen: list[int] = []
        sides = [np.flatnonzero(facing[:t]), t + 1 + np.flatnonzero(facing[t + 1 :])]
        for target in wanted:
            for side in sides:
                # A fifth of the wanted baseline at least, or the planes cannot be told apart.
                left = [s for s in side if s not in chosen and 0.2 * target < length[s] < 2.5 * target]
                if left:
                    chosen.append(int(min(left, key=lambda s: (abs(length[s] - target), abs(s - t)))))
        out.append(sorted(chosen))
    return out


@numba.njit(cache=True, fastmath=True)
def _box(a, r, out, column):
    """Sum of a [h,w] over (2r+1)^2 windows, clamped at the border."""
    h, w = a.shape
    for x in range(w):
        column[x] = 0
        for y in range(-r, r):
            column[x] += a[max(y, 0), x]
    for y in range(h):
        top, bottom = max(y - r - 1, 0), min(y + r, h - 1)
        for x in range(w):
            column[x] += a[bottom, x]
            if y > 0:
                column[x] -= a[top, x]
        total = numba.float32(0)
        for x in range(-r, r):
            total += column[max(x, 0)]
        for x in range(w):
            total += column[min(x + r, w - 1)]
            if x > 0:
                total -= column[max(x - r - 1, 0)]
            out[y, x] = total


@numba.njit(cache=True, fastmath=True)
def _warp(other, good, H, out, seen):
    """`other` [h,w] seen through the homography H (pixel centres at +0.5); 0.5 grey where it is not seen."""
    h, w = out.shape
    half = numba.float32(0.5)
    for y in range(h):
        v = y + half
        for x in range(w):
            u = x + half
            q = H[2, 0] * u + H[2, 1] * v + H[2, 2]
            out[y, x], seen[y, x] = half, False
            if q > numba.float32(1e-6):
                px = (H[0, 0] * u + H[0, 1] * v + H[0, 2]) / q - half
                py = (H[1, 0] * u + H[1, 1] * v + H[1, 2]) / q - half
                if 0 <= px < w - 1 and 0 <= py < h - 1:
                    ix, iy = int(px), int(py)
                    if good[iy, ix] and good[iy + 1, ix + 1]:
                        fx, fy = px - ix, py - iy
                        upper = other[iy, ix] + (other[iy, ix + 1] - other[iy, ix]) * fx
                        lower = other[iy + 1, ix] + (other[iy + 1, ix + 1] - other[iy + 1, ix]) * fx
                        out[y, x], seen[y, x] = upper + (lower - upper) * fy, True


@numba.njit(cache=True, fastmath=True)
def _correlate(image, warped, seen, mean, spread, r, out, columns):
    """(1 - correlation) / 2 of two images over (2r+1)^2 windows by running sums; 2 where `seen` is False."""
    h, w = image.shape
    n = numba.float32(1 / (2 * r + 1) ** 2)
    floor, half, one, nil = numba.float32(1e-5), numba.float32(0.5), numba.float32(1), numba.float32(0)
    columns[:] = 0
    for y in range(-r, r):
        for x in range(w):
            a = warped[max(y, 0), x]
            columns[0, x] += a
            columns[1, x] += a * a
            columns[2, x] += a * image[max(y, 0), x]
    for y in range(h):
        bottom, top = min(y + r, h - 1), max(y - r - 1, 0)
        for x in range(w):
            a, b = warped[bottom, x], warped[top, x] if y > 0 else nil
            columns[0, x] += a - b
            columns[1, x] += a * a - b * b
            columns[2, x] += a * image[bottom, x] - b * image[top, x]
        s0, s1, s2 = nil, nil, nil
        for x in range(-r, r):
            k = max(x, 0)
            s0, s1, s2 = s0 + columns[0, k], s1 + columns[1, k], s2 + columns[2, k]
        for x in range(w):
            k = min(x + r, w - 1)
            s0, s1, s2 = s0 + columns[0, k], s1 + columns[1, k], s2 + columns[2, k]
            if x > 0:
                k = max(x - r - 1, 0)
                s0, s1, s2 = s0 - columns[0, k], s1 - columns[1, k], s2 - columns[2, k]
            m = s0 * n
            deviation = np.sqrt(max(s1 * n - m * m, floor))
            cost = half - half * (s2 * n - m * mean[y, x]) / (deviation * spread[y, x])
            out[y, x] = min(max(cost, nil), one) if seen[y, x] else numba.float32(2)


@numba.njit(cache=True, fastmath=True)
def _cost_volume(image, others, usable, homographies, r):
    """Matching cost float32 [h,w,D] in 0..1: mean of the two best neighbours; 0.5 where none sees the place."""
    h, w = image.shape
    count, planes = homographies.shape[:2]
    n = numba.float32((2 * r + 1) ** 2)
    column = np.empty(w, np.float32)
    mean, second = np.empty((h, w), np.float32), np.empty((h, w), np.float32)
    _box(image, r, mean, column)
    _box(image * image, r, second, column)
    mean /= n
    spread = np.sqrt(np.maximum(second / n - mean * mean, np.float32(1e-5)))  # floor: noise of 0.3 % grey
    out = np.empty((h, w, planes), np.float32)
    warped, seen = np.empty((h, w), np.float32), np.empty((h, w), np.bool_)
    columns = np.empty((3, w), np.float32)
    costs = np.empty((count, h, w), np.float32)
    keep = max(1, (count + 1) // 2)
    for d in range(planes):
        for i in range(count):
            _warp(others[i], usable[i], homographies[i, d], warped, seen)
            _correlate(image, warped, seen, mean, spread, r, costs[i], columns)
        for y in range(h):
            for x in range(w):
                # The two smallest of at most a handful of costs; 2 = that neighbour does not see the place.
                first, second_best = numba.float32(2), numba.float32(2)
                for i in range(count):
                    value = costs[i, y, x]
                    if value < first:
                        first, second_best = value, first
                    elif value < second_best:
                        second_best = value
                if first >= numba.float32(1.5):
                    out[y, x, d] = numba.float32(0.5)
                elif second_best >= numba.float32(1.5) or keep == 1:
                    out[y, x, d] = first
                else:
                    out[y, x, d] = (first + second_best) / 2
    return out


@numba.njit(cache=True, fastmath=True)
def _aggregate(cost, image, p1, p2):
    """Semi-global sum over the four axis directions, divided by four; float32 [h,w,D]."""
    h, w, planes = cost.shape
    total = np.zeros_like(cost)
    before, now = np.empty((max(h, w), planes), np.float32), np.empty((max(h, w), planes), np.float32)
    for direction in range(4):
        vertical, reverse = direction < 2, direction % 2 == 1
        length, width = (h, w) if vertical else (w, h)
        for step in range(length):
            i = length - 1 - step if reverse else step
            for j in range(width):
                y, x = (i, j) if vertical else (j, i)
                if step == 0:
                    for d in range(planes):
                        now[j, d] = cost[y, x, d]
                else:
                    k = i + 1 if reverse else i - 1
                    py, px = (k, j) if vertical else (j, k)
                    least = before[j, 0]
                    for d in range(1, planes):
                        least = min(least, before[j, d])
                    # The large penalty falls to a quarter across an edge of a tenth of the grey range.
                    jump = max(p2 / (1 + 30 * abs(image[y, x] - image[py, px])), 1.5 * p1)
                    for d in range(planes):
                        value = min(before[j, d], least + jump)
                        if d > 0:
                            value = min(value, before[j, d - 1] + p1)
                        if d < planes - 1:
                            value = min(value, before[j, d + 1] + p1)
                        now[j, d] = cost[y, x, d] + value - least
                for d in range(planes):
                    total[y, x, d] += now[j, d] / 4
            before, now = now, before
    return total


@numba.njit(cache=True, fastmath=True)
def _winner(smoothed, cost):
    """Sub-plane index of the best hypothesis [h,w] and its confidence: how well it correlates, and how much better
    than hypotheses more than two planes away."""
    h, w, planes = smoothed.shape
    index, sure = np.empty((h, w), np.float32), np.empty((h, w), np.float32)
    for y in range(h):
        for x in range(w):
            s = smoothed[y, x]
            d = int(np.argmin(s))
            rival = numba.float32(1e9)
            for e in range(planes):
                if abs(e - d) > 2:
                    rival = min(rival, s[e])
            offset = numba.float32(0)
            if 0 < d < planes - 1:
                curve = s[d - 1] - 2 * s[d] + s[d + 1]
                if curve > 1e-6:
                    offset = min(max((s[d - 1] - s[d + 1]) / (2 * curve), numba.float32(-0.5)), numba.float32(0.5))
            index[y, x] = d + offset
            # cost 0.05 is a correlation of 0.9 (sure), 0.35 one of 0.3 (chance in a 5 x 5 window).
            match = min(max((numba.float32(0.35) - cost[y, x, d]) / numba.float32(0.3), 0), 1)
            unique = min(max((rival - s[d]) / numba.float32(0.15), 0), 1)
            sure[y, x] = match * unique
    return index, sure


def _agree(disparity, confidence, K, c2w, swept: list[int], step: float) -> tuple[np.ndarray, np.ndarray]:
    """Each swept map averaged with the two swept before and after it where they agree within one and a half planes
    (confidence falls to a tenth where none does), and the maps of the frames between."""
    fused, sure = disparity.copy(), confidence.copy()
    direction = rays(K, pixel_grid(*disparity.shape[1:]))
    for i, t in enumerate(swept):
        p, own = disparity[t], confidence[t]
        total, weight, agreeing = p * own, own.copy(), np.zeros_like(p)
        others = [s for s in swept[max(i - 2, 0) : i + 3] if s != t]
        for s in others:
            said, trust = _look_up(p, direction, K, c2w[t], c2w[s], disparity[s], confidence[s])
            ok = (np.abs(said - p) < 1.5 * step) & (trust > 0.05)
            agreeing += ok
            total += np.where(ok, said * trust, 0)
            weight += np.where(ok, trust, 0)
        fused[t] = np.where(weight > 1e-6, total / np.maximum(weight, 1e-6), p)
        sure[t] = own * (0.1 + 0.9 * np.minimum(agreeing / 2, 1))
    for a, b in itertools.pairwise(swept):
        for t in range(a + 1, b):
            found = []
            for s in (a, b):
                p = fused[s]
                for _ in range(3):  # the place moves by a pixel or two between neighbours: three look-ups settle it
                    p, trust = _look_up(p, direction, K, c2w[t], c2w[s], fused[s], sure[s])
                found.append((p, trust))
            (p, u), (q, v) = found
            together = np.abs(p - q) < 1.5 * step
            mean = (p * u + q * v) / np.maximum(u + v, 1e-6)
            fused[t] = np.where(together, mean, np.where(u > v, p, q))
            sure[t] = np.where(together, np.maximum(u, v), 0.5 * np.maximum(u, v))
    return fused, sure


def _look_up(p, direction, K, pose_t, pose_s, disparity, confidence) -> tuple[np.ndarray, np.ndarray]:
    """What frame s says about the inverse depth of the places of frame t that are thought to lie at p [h,w], and how
    sure it is. direction [h,w,3] rays of frame t."""
    relative = invert(pose_s) @ pose_t
    q = direction @ relative[:3, :3].T + p[..., None] * relative[:3, 3]  # the point in camera s, times p
    scale = np.maximum(q[..., 2], 1e-6)  # z_s = scale / p
    x = (q[..., 0] / scale * K[0, 0] + K[0, 2] - 0.5).astype(np.float32)
    y = (q[..., 1] / scale * K[1, 1] + K[1, 2] - 0.5).astype(np.float32)
    there = cv2.remap(disparity, x, y, cv2.INTER_NEAREST)
    trust = cv2.remap(confidence, x, y, cv2.INTER_NEAREST)
    return (there * scale).astype(np.float32), trust  # inverse depth there is p / scale
