"""Plane-sweep stereo over the frames of a moving camera: inverse depth and confidence of static pixels.

Collins 1996 (plane sweep), zero-mean normalised cross-correlation, the better half of the neighbours against
occlusion (Kang et al. 2001), semi-global aggregation (Hirschmueller 2008), then a check of every map against its
neighbours. Works in the unit of the poses. Serial numba: equal inputs give equal outputs.
"""

from dataclasses import dataclass

import cv2
import numba
import numpy as np

from engine.geometry.camera import invert, pixel_grid, rays
from engine.options import option


@dataclass
class SweepOptions:
    width: int = option(280, "width of the depth maps, pixels: a third of 832 (cost grows with its square)")
    planes: int = option(48, "inverse-depth hypotheses; their step is about a pixel of parallax at this width")
    neighbours: int = option(4, "frames compared with each frame, half before and half after")
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
    for t in range(count):
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
    return _agree(disparity, confidence, K, c2w, near, float(planes[1] - planes[0]))


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
def _cost_volume(image, others, usable, homographies, r):
    """Matching cost float32 [h,w,D] in 0..1: (1 - correlation) / 2, mean of the better half of the neighbours; 0.5
    where no neighbour sees the place."""
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
    warped = np.empty((h, w), np.float32)
    a, b, c = np.empty((h, w), np.float32), np.empty((h, w), np.float32), np.empty((h, w), np.float32)
    bad, bad_sum = np.empty((h, w), np.float32), np.empty((h, w), np.float32)
    costs = np.empty((count, h, w), np.float32)
    keep = max(1, (count + 1) // 2)
    for d in range(planes):
        for i in range(count):
            H, other, good = homographies[i, d], others[i], usable[i]
            for y in range(h):
                for x in range(w):
                    u, v = x + numba.float32(0.5), y + numba.float32(0.5)
                    q = H[2, 0] * u + H[2, 1] * v + H[2, 2]
                    warped[y, x], bad[y, x] = image[y, x], 1
                    if q > 1e-6:
                        px = (H[0, 0] * u + H[0, 1] * v + H[0, 2]) / q - numba.float32(0.5)
                        py = (H[1, 0] * u + H[1, 1] * v + H[1, 2]) / q - numba.float32(0.5)
                        if 0 <= px < w - 1 and 0 <= py < h - 1:
                            ix, iy = int(px), int(py)
                            fx, fy = px - ix, py - iy
                            if good[iy, ix] and good[iy + 1, ix + 1]:
                                upper = other[iy, ix] * (1 - fx) + other[iy, ix + 1] * fx
                                lower = other[iy + 1, ix] * (1 - fx) + other[iy + 1, ix + 1] * fx
                                warped[y, x], bad[y, x] = upper * (1 - fy) + lower * fy, 0
            _box(warped, r, a, column)
            _box(warped * warped, r, b, column)
            _box(warped * image, r, c, column)
            _box(bad, r, bad_sum, column)
            for y in range(h):
                for x in range(w):
                    m = a[y, x] / n
                    s = np.sqrt(max(b[y, x] / n - m * m, numba.float32(1e-5)))
                    ncc = (c[y, x] / n - m * mean[y, x]) / (s * spread[y, x])
                    cost = min(max((1 - ncc) / 2, numba.float32(0)), numba.float32(1))
                    costs[i, y, x] = cost if bad_sum[y, x] < n / 2 else numba.float32(2)
        for y in range(h):
            for x in range(w):
                total, used = numba.float32(0), 0
                last = numba.float32(-1)
                picked = 0
                # The `keep` smallest of at most a handful of costs, by repeated minimum.
                while used < keep and picked < count:
                    best, ties = numba.float32(3), 0
                    for i in range(count):
                        value = costs[i, y, x]
                        if last < value < best:
                            best, ties = value, 1
                        elif value == best:
                            ties += 1
                    if best >= 1.5:
                        break
                    take = min(ties, keep - used)
                    total += best * take
                    used += take
                    picked += ties
                    last = best
                out[y, x, d] = total / used if used > 0 else numba.float32(0.5)
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


def _agree(disparity, confidence, K, c2w, near, step) -> tuple[np.ndarray, np.ndarray]:
    """Each map averaged with its neighbours' maps where they agree within one and a half planes; confidence falls to
    a tenth where none agrees."""
    count, h, w = disparity.shape
    direction = rays(K, pixel_grid(h, w)).reshape(-1, 3)
    w2c = invert(c2w)
    fused, sure = disparity.copy(), confidence.copy()
    for t in range(count):
        if not near[t]:
            continue
        p = np.maximum(disparity[t].ravel(), 1e-6)
        total, weight = p * confidence[t].ravel(), confidence[t].ravel().copy()
        agreeing = np.zeros(h * w, np.float32)
        for s in near[t]:
            relative = w2c[s] @ c2w[t]
            q = direction @ relative[:3, :3].T + p[:, None] * relative[:3, 3]  # the point in camera s, times p
            scale = np.maximum(q[:, 2], 1e-6)  # z_s = scale / p
            x = (q[:, 0] / scale * K[0, 0] + K[0, 2] - 0.5).astype(np.float32).reshape(h, w)
            y = (q[:, 1] / scale * K[1, 1] + K[1, 2] - 0.5).astype(np.float32).reshape(h, w)
            there = cv2.remap(disparity[s], x, y, cv2.INTER_NEAREST).ravel()
            trust = cv2.remap(confidence[s], x, y, cv2.INTER_NEAREST).ravel()
            back = there * scale  # inverse depth there is p / scale; so this is what it says about p here
            ok = (np.abs(back - p) < 1.5 * step) & (trust > 0.05)
            agreeing += ok
            total += np.where(ok, back * trust, 0)
            weight += np.where(ok, trust, 0)
        fused[t] = np.where(weight > 1e-6, total / np.maximum(weight, 1e-6), p).reshape(h, w)
        share = np.minimum(agreeing / min(2, len(near[t])), 1).reshape(h, w)
        sure[t] = confidence[t] * (0.1 + 0.9 * share)
    return fused, sure
