"""Static background as a point cloud: one frame back-projected, or all frames fused.

Fusion is point-based (Keller et al. 2013, "Real-time 3D reconstruction in dynamic scenes using point-based fusion"):
each frame meets the cloud built so far, rendered into it. A pixel whose depth agrees with the point it shows
refines that point along the viewing ray; a pixel that sees THROUGH the point votes against it, and takes its place
when the votes are used up; a pixel that shows nothing, or something nearer, adds a point. So the cloud is as fine as
the finest view of each surface and no finer, far scenery does not explode, and floating points die.

The paper back-projects frame 0 (anchor) and "fuses the per-frame background point clouds" (holistic) without a formula:
the fusion, its votes and its tolerances are this project's.
"""

from dataclasses import dataclass

import cv2
import numba
import numpy as np

from engine.geometry.camera import invert, pixel_grid, rays, transform
from engine.geometry.splat import NEAR, splat

MAX_VOTES = 8.0  # a point seen eight times needs eight contradictions before it is replaced
COARSEST = 1.5  # views up to this much coarser than the finest still tell a point's colour
BEFORE = 0.8  # a point nearer than this share of a person's depth stands before the person; depth of people is rough
FINER = 0.7  # a view this much finer than the point's own takes the point over (half its area)


@dataclass(frozen=True)
class Fused:
    """A fused cloud: xyz float32 [P,3] world metres; frame int32 [P], the frame of each point's finest observation;
    size float32 [P] metres; weight float32 [P], sum of confidence / z^2 over the observations."""

    xyz: np.ndarray
    frame: np.ndarray
    size: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True)
class Views:
    """The reconstruction that clouds are made from: frame t has depth[t] float32 [H,W] metres (0 = no value),
    confidence[t] [H,W], static[t] bool [H,W], subject[t] bool [H,W] (inside a person: seen through whatever would
    stand before it), sky[t] bool [H,W], K float64 [T,3,3], c2w float64 [T,4,4]."""

    depth: np.ndarray
    confidence: np.ndarray
    static: np.ndarray
    subject: np.ndarray
    sky: np.ndarray
    K: np.ndarray
    c2w: np.ndarray
    scale: np.ndarray  # [T] factor on each frame's depth


def point_size(xyz: np.ndarray, frame: np.ndarray, K: np.ndarray, c2w: np.ndarray, grain: float = 1.0) -> np.ndarray:
    """float32 [P] metres: the width of `grain` pixels at each point, in the camera of its source frame."""
    w2c = invert(c2w.astype(np.float64))[frame]
    z = np.einsum("pi,pi->p", w2c[:, 2, :3], xyz) + w2c[:, 2, 3]
    return (grain * np.maximum(z, 0) / K[frame, 0, 0]).astype(np.float32)


def clean_depth(depth: np.ndarray, window: int, tolerance: float) -> np.ndarray:
    """Depth [H,W] without flying pixels and, inside surfaces, without pixel noise: the median over window x window
    (3 or 5; 0 = leave as it is) where the pixel agrees with it within `tolerance` (relative), 0 where it does not."""
    if not window:
        return depth
    median = cv2.medianBlur(np.ascontiguousarray(depth, np.float32), window)
    return np.where(np.abs(median - depth) < tolerance * depth, median, 0).astype(np.float32)


def beside_edge(depth: np.ndarray, reach: int, tolerance: float) -> np.ndarray:
    """bool [H,W]: pixels on one side of what their (2 reach + 1)^2 neighbourhood shows, within `tolerance` (relative)
    of its nearest or its farthest value. Flying pixels, between the two sides of a depth edge, are on neither."""
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    farthest = cv2.dilate(depth, kernel)
    nearest = cv2.erode(np.where(depth > 0, depth, np.float32(np.inf)), kernel)
    return (depth > 0) & ((depth / (1 + tolerance) <= nearest) | (depth >= farthest * (1 - tolerance)))


def back_project(depth: np.ndarray, keep: np.ndarray, K: np.ndarray, c2w: np.ndarray) -> np.ndarray:
    """World points float32 [P,3] of the kept pixels with depth, in row order. depth [H,W] metres, keep bool [H,W]."""
    keep = keep & (depth > 0)
    points = rays(K, pixel_grid(*depth.shape)[keep].astype(np.float64)) * depth[keep, None]
    return transform(c2w, points).astype(np.float32)


def fuse(
    views: Views,
    frames: np.ndarray,
    max_points: int,
    median: int = 5,
    flying: float = 0.1,
    threads: int = 1,
) -> tuple[Fused, float, float]:
    """Fuse the given frames (indices, in order) to at most `max_points` points.

    A coarse pilot, a sixteenth of the pixels, finds the two numbers that the full pass needs: the grain (pixels
    per point, 1 = every pixel) that meets the bound, and the clip's own depth disagreement.
    Returns the cloud, the grain and the tolerance (relative depth).
    """
    height, width = views.depth.shape[1:]
    pilot = _Fusion(views, frames, 4.0, 0.12, 2 * height * width + max_points, median, flying, threads)
    pilot.run()
    tolerance = float(np.clip(4 * 1.4826 * pilot.disagreement(), 0.03, 0.12))
    grain = max(1.0, 4.0 * np.sqrt(1.1 * pilot.count / max_points))
    while True:
        fusion = _Fusion(views, frames, grain, tolerance, int(1.2 * max_points) + 1, median, flying, threads)
        if fusion.run() and fusion.count <= max_points:
            break
        grain *= 1.15
    return fusion.result(), grain, tolerance


class _Fusion:
    """The growing cloud of one pass; every array has `capacity` rows, the first `count` are in use."""

    def __init__(self, views, frames, grain, tolerance, capacity, median, flying, threads):
        self.views, self.frames, self.grain, self.tolerance = views, frames, grain, tolerance
        self.median, self.flying, self.threads = median, flying, threads
        self.xyz = np.zeros((capacity, 3), np.float32)
        self.size = np.zeros(capacity, np.float32)
        self.weight = np.zeros(capacity, np.float32)
        self.votes = np.zeros(capacity, np.float32)
        self.frame = np.zeros(capacity, np.int32)
        self.count = 0
        self.residuals: list[np.ndarray] = []

    def run(self) -> bool:
        """False when the capacity does not hold the cloud."""
        views = self.views
        height, width = views.depth.shape[1:]
        rows, columns = _lattice(height, self.grain), _lattice(width, self.grain)
        for t in self.frames:
            K, c2w = views.K[t].astype(np.float64), views.c2w[t].astype(np.float64)
            w2c = invert(c2w)
            seen = splat(self.xyz[: self.count], K, w2c, height, width, self.size[: self.count], threads=self.threads)
            depth = clean_depth(views.depth[t], self.median, self.flying) * np.float32(views.scale[t])
            residual = np.full((height, width), np.nan, np.float32)
            self.count = _merge(
                depth, views.confidence[t], views.static[t], seen.ids, seen.depth, K, c2w, w2c, t,
                rows, columns, self.grain, self.tolerance,
                self.xyz, self.size, self.weight, self.votes, self.frame, self.count, residual,
            )  # fmt: skip
            if self.count < 0:
                return False
            self.residuals.append(residual[::4, ::4][np.isfinite(residual[::4, ::4])])
        return True

    def disagreement(self) -> float:
        """Median |log(observed / predicted depth)| of the points met again; 0 for a single frame."""
        found = np.concatenate(self.residuals) if self.residuals else np.zeros(0)
        return float(np.median(np.abs(found))) if found.size else 0.0

    def result(self) -> Fused:
        n = self.count
        return Fused(self.xyz[:n], self.frame[:n], self.size[:n], self.weight[:n])


def _lattice(length: int, grain: float) -> np.ndarray:
    """bool [length]: the pixels nearest to the centres of cells of `grain` pixels."""
    chosen = np.zeros(length, bool)
    chosen[((np.arange(int(length / grain)) + 0.5) * grain).astype(int)] = True
    return chosen


@numba.njit(nogil=True, cache=True)
def _merge(
    depth, confidence, static, ids, predicted, K, c2w, w2c, t, rows, columns, grain, tolerance,
    xyz, size, weight, votes, frame, count, residual,
):  # fmt: skip
    """Bring one frame into the cloud; returns the new count, or -1 when the arrays are full."""
    height, width = depth.shape
    fx, fy, cx, cy, skew = K[0, 0], K[1, 1], K[0, 2], K[1, 2], K[0, 1]
    for y in range(height):
        for x in range(width):
            d = np.float64(depth[y, x])
            if d <= 0 or not static[y, x]:
                continue
            sure = max(np.float64(confidence[y, x]), 0.05)
            edge = grain * d / fx
            ray_y = (y + 0.5 - cy) / fy
            ray_x = (x + 0.5 - cx - skew * ray_y) / fx
            i = np.int64(ids[y, x])
            slot = np.int64(-1)
            if i >= 0:
                z = np.float64(predicted[y, x])
                # the point's own projection: only the pixel that holds it may judge it
                p0, p1, p2 = np.float64(xyz[i, 0]), np.float64(xyz[i, 1]), np.float64(xyz[i, 2])
                qx = w2c[0, 0] * p0 + w2c[0, 1] * p1 + w2c[0, 2] * p2 + w2c[0, 3]
                qy = w2c[1, 0] * p0 + w2c[1, 1] * p1 + w2c[1, 2] * p2 + w2c[1, 3]
                qx, qy = qx / z, qy / z
                u, v = fx * qx + skew * qy + cx, fy * qy + cy
                own = int(np.floor(u)) == x and int(np.floor(v)) == y
                if d < z * (1 - tolerance):
                    slot = count  # something nearer
                elif not own:
                    continue
                elif d <= z * (1 + tolerance):
                    d = _depth_at(depth, u - 0.5, v - 0.5, d, tolerance)
                    residual[y, x] = np.log(d / z)
                    w = sure / (d * d)
                    if edge < FINER * size[i]:
                        frame[i], size[i] = t, edge
                    step = w / (weight[i] + w) * (d - z)
                    for a in range(3):
                        xyz[i, a] += step * (c2w[a, 0] * qx + c2w[a, 1] * qy + c2w[a, 2])
                    weight[i] += w
                    votes[i] = min(votes[i] + sure, MAX_VOTES)
                    continue
                else:
                    votes[i] -= sure  # seen through
                    if votes[i] >= 0:
                        continue
                    slot = i
            elif not (rows[y] and columns[x]):
                continue
            else:
                slot = count
            if slot == count:
                if not (rows[y] and columns[x]):
                    continue
                if count >= len(xyz):
                    return -1
                count += 1
            for a in range(3):
                xyz[slot, a] = d * (c2w[a, 0] * ray_x + c2w[a, 1] * ray_y + c2w[a, 2]) + c2w[a, 3]
            size[slot], weight[slot], votes[slot], frame[slot] = edge, sure / (d * d), sure, t
    return count


@numba.njit(nogil=True, cache=True)
def _depth_at(depth, u, v, nearest, tolerance):
    """Depth between pixel centres, bilinear in 1/z (exact on planes); `nearest` at the border and across edges."""
    x, y = int(np.floor(u)), int(np.floor(v))
    if x < 0 or y < 0 or x + 1 >= depth.shape[1] or y + 1 >= depth.shape[0]:
        return nearest
    a, b = u - x, v - y
    inverse = 0.0
    for j in range(2):
        for i in range(2):
            d = np.float64(depth[y + j, x + i])
            if abs(d - nearest) > tolerance * nearest:
                return nearest
            inverse += (b if j else 1 - b) * (a if i else 1 - a) / d
    return 1.0 / inverse


def review(
    fused: Fused, views: Views, images: np.ndarray, frames: np.ndarray, tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Look at every point again from all frames: (keep bool [P], rgb uint8 [P,3]).

    A point is kept when at least as many frames confirm its depth (within `tolerance`, relative) as see through it,
    sky and people included. Its colour is the channel-wise median, over the frames that confirm it from no further than
    COARSEST times its finest view, of images uint8 [T,H,W,3] read bilinearly: passing shadows and reflections drop
    out, detail stays. The finest view itself always counts.
    """
    return _reviewed(fused.xyz, fused.frame, views, images, frames, tolerance)


def agreed(xyz: np.ndarray, frame: np.ndarray, views: Views, frames: np.ndarray, tolerance: float) -> np.ndarray:
    """bool [P]: the points xyz [P,3], each made by frame[p], that `review` would keep."""
    return _reviewed(xyz, frame, views, np.zeros((0, 1, 1, 3), np.uint8), frames, tolerance)[0]


def _reviewed(xyz, frame, views: Views, images, frames, tolerance) -> tuple[np.ndarray, np.ndarray]:
    w2c = invert(views.c2w.astype(np.float64))
    K = views.K.astype(np.float64)
    P = (K @ w2c[:, :3])[frames]
    keep, rgb = np.empty(len(xyz), bool), np.zeros((len(xyz), 3), np.uint8)
    scale = views.scale.astype(np.float64)
    _review(
        xyz, frame, views.depth, views.static, views.subject, views.sky, scale, frames, P, K[:, 0, 0], images,
        tolerance, keep, rgb,
    )  # fmt: skip
    return keep, rgb


@numba.njit(nogil=True, cache=True)
def _review(xyz, source, depth, static, subject, sky, scale, frames, P, focal, images, tolerance, keep, rgb):
    """Fills keep and, for the kept points and where there are images, rgb."""
    height, width = depth.shape[1:]
    count = len(frames)
    found = np.empty((3, count), np.float32)
    footprint = np.empty(count, np.float64)
    for i in range(len(xyz)):
        p0, p1, p2 = np.float64(xyz[i, 0]), np.float64(xyz[i, 1]), np.float64(xyz[i, 2])
        votes, samples, finest = 0, 0, np.inf
        for k in range(count):
            t, M = frames[k], P[k]
            z = M[2, 0] * p0 + M[2, 1] * p1 + M[2, 2] * p2 + M[2, 3]
            if z < NEAR:
                continue
            u = (M[0, 0] * p0 + M[0, 1] * p1 + M[0, 2] * p2 + M[0, 3]) / z
            v = (M[1, 0] * p0 + M[1, 1] * p1 + M[1, 2] * p2 + M[1, 3]) / z
            if not (u >= 0 and v >= 0 and u < width and v < height):
                continue
            x, y = int(u), int(v)
            confirmed = t == source[i]
            if sky[t, y, x]:
                votes -= 1
            elif static[t, y, x]:
                d = depth[t, y, x] * scale[t]
                if z < d * (1 - tolerance):
                    votes -= 1
                elif z < d * (1 + tolerance):
                    votes += 1
                    confirmed = True
            elif subject[t, y, x] and z < BEFORE * depth[t, y, x] * scale[t]:
                votes -= 1
            if confirmed:
                if len(images) > 0:
                    footprint[samples] = z / focal[t]
                    finest = min(finest, footprint[samples])
                    _bilinear(images[t], u - 0.5, v - 0.5, found[:, samples])
                samples += 1
        keep[i] = votes >= 0 and samples > 0
        if not keep[i] or len(images) == 0:
            continue
        kept = 0
        for k in range(samples):
            if footprint[k] <= COARSEST * finest:
                found[:, kept] = found[:, k]
                kept += 1
        for c in range(3):
            rgb[i, c] = np.uint8(np.median(found[c, :kept]) + 0.5) if kept else 0


@numba.njit(nogil=True, cache=True)
def _bilinear(image, u, v, out):
    height, width = image.shape[:2]
    u, v = min(max(u, 0.0), width - 1.0), min(max(v, 0.0), height - 1.0)
    x, y = min(int(u), width - 2), min(int(v), height - 2)
    a, b = u - x, v - y
    for c in range(3):
        top = (1 - a) * image[y, x, c] + a * image[y, x + 1, c]
        low = (1 - a) * image[y + 1, x, c] + a * image[y + 1, x + 1, c]
        out[c] = (1 - b) * top + b * low
