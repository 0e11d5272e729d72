"""A z-buffer for point clouds: which point each pixel shows, and how far it is.

Every point scatters the 64-bit key (depth bits << 32 | point index) with "keep the smaller", so the nearest point
and its depth come out together, the result does not depend on the order of the points or of the threads, and
equal depths go to the lower index. Projection is float64, keys hold the depth rounded to float32.

Three footprints:
    points     the one pixel that holds the projection
    fixed      a flat disc of a given radius in pixels; 0.0025 * H is PyTorch3D's common 0.005 NDC
    surface    a disc of radius f * size / z that bends backwards by RIM * size at its rim. Flat discs of a slanted
               surface would show the point that is nearer to the camera, not the one nearer to the pixel, which
               shifts and smears texture; bent ones draw the surface's Voronoi cells (Hoff et al. 1999, "Fast
               computation of generalized Voronoi diagrams using graphics hardware") and leave no moire

Kernels release the GIL and are shared out over plain threads: safe inside Ray actors, after a fork and beside other
threads, which none of numba's own threading layers is everywhere.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numba
import numpy as np

NEAR = 0.05  # metres; what is closer is inside the lens
RIM = 8.0  # sizes; on a slope of s the shown point is off by s / 16 sizes, and a rim lies about 1 % of z deeper
EMPTY = np.uint64(0xFFFFFFFFFFFFFFFF)
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


@dataclass(frozen=True)
class Splats:
    """What each pixel shows: ids int32 [H,W], index of the point or -1; depth float32 [H,W] z-depth of that
    point's centre in metres, 0 where there is none."""

    ids: np.ndarray
    depth: np.ndarray

    def colour(self, rgb: np.ndarray, hole: tuple[int, int, int] = (0, 0, 0)) -> np.ndarray:
        """uint8 [H,W,3]: the points' colours rgb [P,3], `hole` where nothing is."""
        return _paint(self.ids, rgb, np.array(hole, np.uint8))


def cpu_threads() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def splat(
    xyz: np.ndarray,
    K: np.ndarray,
    w2c: np.ndarray,
    height: int,
    width: int,
    size: np.ndarray | None = None,
    radius: float = 0.0,
    max_radius: float = 8.0,
    threads: int = 1,
) -> Splats:
    """Render points xyz float32 [P,3] (world metres) with K [3,3] (pixels) and w2c [4,4] to height x width.

    size        float32 [P], edge in metres of the surface patch each point stands for: surface footprints of
                radius min(f * size / z, max_radius) pixels, f = K[0,0]
    radius      pixels; without `size`, fixed discs of this radius, 0 = points
    A pixel is covered by a disc that reaches its centre, and always by the point whose projection it holds.
    """
    xyz = np.ascontiguousarray(xyz, np.float32)
    if xyz.ndim != 2 or xyz.shape[1] != 3:
        raise ValueError(f"xyz must be [P,3], found {xyz.shape}")
    if len(xyz) > 2**31 - 1:
        raise ValueError(f"at most 2^31-1 points, found {len(xyz)}")
    if size is not None and len(size) != len(xyz):
        raise ValueError(f"size has {len(size)} entries for {len(xyz)} points")
    K, w2c = np.asarray(K, np.float64), np.asarray(w2c, np.float64)
    P = K @ w2c[:3]
    if size is not None:
        size = np.ascontiguousarray(size, np.float32)

    def scatter(part: slice) -> np.ndarray:
        key = np.full((height, width), EMPTY, np.uint64)
        if size is not None:
            _scatter_surface(xyz, size, part.start, part.stop, P, K[0, 0], max_radius, key)
        elif radius > 0:
            _scatter_discs(xyz, part.start, part.stop, P, radius, key)
        else:
            _scatter_points(xyz, part.start, part.stop, P, key)
        return key

    cuts = np.linspace(0, len(xyz), max(1, threads) + 1).astype(int)
    parts = [slice(a, b) for a, b in pairwise(cuts)]
    if len(parts) == 1:
        key = scatter(parts[0])
    else:
        with ThreadPoolExecutor(len(parts)) as pool:
            key, *rest = pool.map(scatter, parts)
        for other in rest:
            np.minimum(key, other, out=key)
    ids = np.empty((height, width), np.int32)
    depth = np.empty((height, width), np.float32)
    _resolve(key, xyz, P[2], ids, depth)
    return Splats(ids, depth)


def close_gaps(splats: Splats, reach: int) -> Splats:
    """The same picture with gaps of up to `reach` pixels closed; wider holes keep their shape.

    A hole pixel between two filled ones, along a row, a column or a diagonal, takes the farther of the two: what
    opens at a silhouette is background. The narrowest gap decides.
    """
    ids, depth = splats.ids.copy(), splats.depth.copy()
    if reach > 0:
        _close(splats.ids, splats.depth, reach, ids, depth)
    return Splats(ids, depth)


@numba.njit(nogil=True, cache=True)
def _close(ids, depth, reach, out_ids, out_depth):
    height, width = ids.shape
    for y in range(height):
        for x in range(width):
            if ids[y, x] >= 0:
                continue
            narrowest = reach + 1
            for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
                ends, by, bx = 0, -1, -1
                gap = -1
                for side in (-1, 1):
                    for k in range(1, reach + 1):
                        ny, nx = y + side * k * dy, x + side * k * dx
                        if ny < 0 or nx < 0 or ny >= height or nx >= width:
                            break
                        if ids[ny, nx] >= 0:
                            ends, gap = ends + 1, gap + k
                            if by < 0 or depth[ny, nx] > depth[by, bx]:
                                by, bx = ny, nx
                            break
                if ends == 2 and gap < narrowest:
                    narrowest = gap
                    out_ids[y, x], out_depth[y, x] = ids[by, bx], depth[by, bx]


@numba.njit(nogil=True, cache=True, inline="always")
def _put(key, y, x, depth, i):
    packed = (np.uint64(np.float32(depth).view(np.uint32)) << _32) | np.uint64(i)
    if packed < key[y, x]:
        key[y, x] = packed


@numba.njit(nogil=True, cache=True, inline="always")
def _project(xyz, i, P):
    """(u, v, depth) of point i under P [3,4]; u and v mean nothing before NEAR."""
    x, y, z = np.float64(xyz[i, 0]), np.float64(xyz[i, 1]), np.float64(xyz[i, 2])
    w = P[2, 0] * x + P[2, 1] * y + P[2, 2] * z + P[2, 3]
    inverse = 1.0 / max(w, NEAR)
    u = (P[0, 0] * x + P[0, 1] * y + P[0, 2] * z + P[0, 3]) * inverse
    v = (P[1, 0] * x + P[1, 1] * y + P[1, 2] * z + P[1, 3]) * inverse
    return u, v, w


@numba.njit(nogil=True, cache=True, inline="always")
def _span(centre, radius, length):
    """(first, last + 1) pixel of a row or column of `length` whose middle lies within `radius` of `centre`."""
    return max(0, int(np.ceil(centre - radius - 0.5))), min(length - 1, int(np.floor(centre + radius - 0.5))) + 1


@numba.njit(nogil=True, cache=True)
def _scatter_points(xyz, start, stop, P, key):
    height, width = key.shape
    for i in range(start, stop):
        u, v, w = _project(xyz, i, P)
        if w < NEAR:
            continue
        if u >= 0 and v >= 0 and u < width and v < height:
            _put(key, int(v), int(u), w, i)


@numba.njit(nogil=True, cache=True)
def _scatter_discs(xyz, start, stop, P, radius, key):
    height, width = key.shape
    for i in range(start, stop):
        u, v, w = _project(xyz, i, P)
        if w < NEAR:
            continue
        if not (u > -radius and v > -radius and u < width + radius and v < height + radius):
            continue
        if u >= 0 and v >= 0 and u < width and v < height:
            _put(key, int(v), int(u), w, i)
        (x0, x1), (y0, y1) = _span(u, radius, width), _span(v, radius, height)
        for py in range(y0, y1):
            dy = py + 0.5 - v
            reach = radius * radius - dy * dy
            for px in range(x0, x1):
                dx = px + 0.5 - u
                if dx * dx <= reach:
                    _put(key, py, px, w, i)


@numba.njit(nogil=True, cache=True)
def _scatter_surface(xyz, size, start, stop, P, focal, max_radius, key):
    height, width = key.shape
    for i in range(start, stop):
        u, v, w = _project(xyz, i, P)
        if w < NEAR:
            continue
        edge = np.float64(size[i])
        radius = min(focal * edge / w, max_radius)
        if not (u > -radius and v > -radius and u < width + radius and v < height + radius):
            continue
        bend = RIM * edge
        squared = radius * radius
        fall = bend / max(squared, 1e-12)
        if u >= 0 and v >= 0 and u < width and v < height:
            px, py = int(u), int(v)
            dx, dy = px + 0.5 - u, py + 0.5 - v
            _put(key, py, px, w + min(fall * (dx * dx + dy * dy), bend), i)
        # the nearest neighbouring pixel centre is at least half a pixel away, so smaller discs are done
        if radius <= 0.5:
            continue
        (x0, x1), (y0, y1) = _span(u, radius, width), _span(v, radius, height)
        for py in range(y0, y1):
            dy = py + 0.5 - v
            for px in range(x0, x1):
                dx = px + 0.5 - u
                d2 = dx * dx + dy * dy
                if d2 <= squared:
                    _put(key, py, px, w + fall * d2, i)


@numba.njit(nogil=True, cache=True)
def _resolve(key, xyz, row, ids, depth):
    for y in range(key.shape[0]):
        for x in range(key.shape[1]):
            if key[y, x] == EMPTY:
                ids[y, x], depth[y, x] = -1, 0
            else:
                i = np.int64(key[y, x] & _LOW)
                ids[y, x] = i
                p = xyz[i]
                depth[y, x] = row[0] * np.float64(p[0]) + row[1] * np.float64(p[1]) + row[2] * np.float64(p[2]) + row[3]


@numba.njit(nogil=True, cache=True)
def _paint(ids, rgb, hole):
    out = np.empty((*ids.shape, 3), np.uint8)
    for y in range(ids.shape[0]):
        for x in range(ids.shape[1]):
            i = ids[y, x]
            for c in range(3):
                out[y, x, c] = hole[c] if i < 0 else rgb[i, c]
    return out
