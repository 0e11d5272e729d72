"""Subjects as solid ellipsoids: the surface of a 3D Gaussian at a number of standard deviations, seen exactly.

The paper superimposes "moving 3D Gaussian spheres" and says neither where their surface lies nor how they are coloured
and shaded: SIGMAS, AMBIENT and `shards.palette` are this project's reading (2.5 sigma, one stable colour a subject).

Each pixel's ray meets the quadric (x - m)^T S^-1 (x - m) = k^2 in closed form: exact perspective, exact depth, exact
normal, no mesh. Formulas: the quadric's outline box from its dual conic, Hartley & Zisserman ch. 8.3; the soft
footprint from Zwicker et al. 2002, "EWA splatting" (first-order projection of the covariance).
"""

import numba
import numpy as np

from engine.geometry.camera import invert, transform
from shards.palette import subject_colour

SIGMAS = 2.5  # standard deviations at the surface
AMBIENT = 0.35  # share of the colour that the rim keeps; the rest falls with Lambert's cosine to the camera


def outline_box(mean: np.ndarray, cov: np.ndarray, K: np.ndarray, height: int, width: int, sigmas: float = SIGMAS):
    """(x0, y0, x1, y1) half-open pixel box that holds the ellipsoid's outline, clipped to the image; None when it is
    behind the camera or the camera is inside it. mean [3], cov [3,3] in the camera frame."""
    extent = sigmas * np.sqrt(cov[2, 2])
    if mean[2] + extent <= 0 or mean @ np.linalg.solve(cov, mean) <= sigmas**2:
        return None
    if mean[2] - extent <= 1e-3:  # reaches through the image plane's horizon: its outline is not an ellipse
        return 0, 0, width, height
    dual = K @ (sigmas**2 * cov - np.outer(mean, mean)) @ K.T
    low, high = [], []
    for axis in range(2):
        root = np.sqrt(max(dual[axis, 2] ** 2 - dual[axis, axis] * dual[2, 2], 0.0))
        ends = sorted(((dual[axis, 2] - root) / dual[2, 2], (dual[axis, 2] + root) / dual[2, 2]))
        low.append(max(0, int(np.floor(ends[0]))))
        high.append(min((width, height)[axis], int(np.ceil(ends[1]))))
    return (*low, *high) if low[0] < high[0] and low[1] < high[1] else None


def draw_ellipsoid(
    rgb: np.ndarray,
    depth: np.ndarray,
    ids: np.ndarray,
    mean: np.ndarray,
    cov: np.ndarray,
    label: int,
    K: np.ndarray,
    c2w: np.ndarray,
    sigmas: float = SIGMAS,
    soft: bool = False,
) -> None:
    """Draw one subject into rgb uint8 [H,W,3], depth float32 [H,W] (metres, 0 = hole), ids uint8 [H,W], in place.

    mean [3], cov [3,3] in world metres; K [3,3] pixels; c2w [4,4]. Where the surface is nearer than `depth` the
    pixel takes its depth, its label and its shaded colour. soft = True blends the colour with the projected
    Gaussian's density exp(-m^2 / 2) instead of covering; depth and ids stay those of the surface. A subject that
    holds the camera inside is not drawn.
    """
    w2c = invert(c2w.astype(np.float64))
    m = transform(w2c, mean.astype(np.float64))
    S = w2c[:3, :3] @ cov.astype(np.float64) @ w2c[:3, :3].T
    S = (S + S.T) / 2
    K = K.astype(np.float64)
    box = outline_box(m, S, K, *depth.shape, sigmas)
    if box is None:
        return
    J = np.array([[K[0, 0], K[0, 1], 0], [0, K[1, 1], 0]]) / m[2]
    J[:, 2] = -(J[:, :2] @ m[:2]) / m[2]
    footprint = np.linalg.inv(J @ S @ J.T) if soft and m[2] > 0 else np.zeros((2, 2))
    centre = (K @ m)[:2] / m[2]
    A = np.linalg.inv(S) / sigmas**2
    colour = np.array(subject_colour(label), np.uint8)
    _draw(rgb, depth, ids, m, A, label, colour, K, np.array(box), soft, centre, footprint)


@numba.njit(nogil=True, cache=True)
def _draw(rgb, depth, ids, m, A, label, colour, K, box, soft, centre, footprint):
    Am0 = A[0, 0] * m[0] + A[0, 1] * m[1] + A[0, 2] * m[2]
    Am1 = A[1, 0] * m[0] + A[1, 1] * m[1] + A[1, 2] * m[2]
    Am2 = A[2, 0] * m[0] + A[2, 1] * m[1] + A[2, 2] * m[2]
    c = m[0] * Am0 + m[1] * Am1 + m[2] * Am2 - 1.0
    for y in range(box[1], box[3]):
        ry = (y + 0.5 - K[1, 2]) / K[1, 1]
        for x in range(box[0], box[2]):
            rx = (x + 0.5 - K[0, 2] - K[0, 1] * ry) / K[0, 0]
            # points on the ray are z * (rx, ry, 1): a z^2 - 2 b z + c = 0
            g0 = A[0, 0] * rx + A[0, 1] * ry + A[0, 2]
            g1 = A[1, 0] * rx + A[1, 1] * ry + A[1, 2]
            g2 = A[2, 0] * rx + A[2, 1] * ry + A[2, 2]
            a = rx * g0 + ry * g1 + g2
            b = rx * Am0 + ry * Am1 + Am2
            inside = b * b - a * c
            if inside < 0 or b <= 0:
                continue
            z = c / (b + np.sqrt(inside))  # the nearer root, without cancellation
            if z <= 0 or (depth[y, x] > 0 and z >= depth[y, x]):
                continue
            # cosine on the unit sphere that the ellipsoid is a stretched copy of: a thin one still reads as round
            shade = AMBIENT + (1.0 - AMBIENT) * np.sqrt(inside / a)
            alpha = 1.0
            if soft:
                u, v = x + 0.5 - centre[0], y + 0.5 - centre[1]
                alpha = np.exp(-0.5 * (footprint[0, 0] * u * u + 2 * footprint[0, 1] * u * v + footprint[1, 1] * v * v))
            for k in range(3):
                rgb[y, x, k] = np.uint8(alpha * shade * colour[k] + (1.0 - alpha) * rgb[y, x, k] + 0.5)
            depth[y, x] = z
            ids[y, x] = label
