"""What kind of motion the tracks show: none, rotation about the centre, zoom, or translation.

A camera that only turns (and zooms) sees every static point in one direction for ever: u_t ~ K_t R_t^T d_p. Such
tracks hold no depth, and a solver that looks for translation in them drifts; so they are told apart first, from image
positions alone.
"""

from dataclasses import dataclass

import numpy as np

from engine.geometry.tracks import PointTracks
from engine.options import option
from engine.types import CameraKind

LEAST_SEEN = 6  # long tracks that every frame must see: twice the three directions that fix a rotation


@dataclass
class MotionOptions:
    static_px: float = option(0.5, "median displacement of static points below which a camera is static, pixels at 832")
    rotation_px: float = option(0.6, "median residual below which rotation or zoom explains the tracks, pixels at 832")
    minimum_tracks: int = option(24, "fewer long tracks than this and the class is `failed`")


@dataclass(frozen=True)
class Motion:
    """kind; c2w rotations float64 [T,3,3] (identity for static, the best turn for general and failed); focal float64
    [T] factors on the given focal length, which go with R; residuals in pixels: `displacement` of the static
    hypothesis, `rotation` of the turning one (the parallax that rotation does not explain), `zoom` with a focal length
    per frame. A class of "failed" leaves frames open: too few tracks cross them, or (all residuals inf) there are too
    few at all."""

    kind: CameraKind
    R: np.ndarray
    focal: np.ndarray
    displacement: float
    rotation: float
    zoom: float


def classify_motion(tracks: PointTracks, K: np.ndarray, width: int, options: MotionOptions) -> Motion:
    """The simplest hypothesis that explains the tracks: static, rotation, zoom, and otherwise general.

    K float64 [3,3] pixels; its focal length may be wrong by 35 %, a shared factor is fitted where it helps.
    """
    count = tracks.uv.shape[1]
    unit = width / 832
    long = long_tracks(tracks, options.minimum_tracks)
    eye, ones = np.repeat(np.eye(3)[None], count, 0), np.ones(count)
    if len(long.uv) < options.minimum_tracks:
        return Motion("failed", eye, ones, np.inf, np.inf, np.inf)
    displacement = displacement_px(long.uv)
    if not (long.seen.sum(0) >= LEAST_SEEN).all():  # what the gap hides may be any motion
        R, focal, rotation = fit_pan(long.uv, K, options.rotation_px * unit)
        return Motion("failed", R, focal, displacement, rotation, rotation)
    if displacement < options.static_px * unit:
        return Motion("static", eye, ones, displacement, displacement, displacement)
    limit = options.rotation_px * unit
    R, focal, rotation = fit_pan(long.uv, K, limit)
    if rotation < limit:
        return Motion("rotation", R, focal, displacement, rotation, rotation)
    R_zoom, focal_zoom, zoom = fit_turning(long.uv, K, zoom=True)
    if zoom < limit:
        return Motion("zoom", R_zoom, focal_zoom, displacement, rotation, zoom)
    return Motion("general", R, focal, displacement, rotation, zoom)


def long_tracks(tracks: PointTracks, minimum: int = 24) -> PointTracks:
    """The tracks that live for a sixth of the clip or, where blur ends them sooner and some frame would hold fewer than
    `minimum`, for half as long, and so on down to three frames."""
    length = max(3, tracks.uv.shape[1] // 6)
    while length > 3 and (tracks.longest(length).seen.sum(0) < minimum).any():
        length = max(3, length // 2)
    return tracks.longest(min(tracks.uv.shape[1], length))


def displacement_px(uv: np.ndarray) -> float:
    """Median over tracks [M,T,2] of the root mean square distance from the track's mean position, pixels."""
    return float(np.median(np.sqrt(np.nanmean(((uv - np.nanmean(uv, 1, keepdims=True)) ** 2).sum(-1), 1))))


def fit_turning(
    uv: np.ndarray, K: np.ndarray, zoom: bool, focal: float = 1.0, iterations: int = 12
) -> tuple[np.ndarray, np.ndarray, float]:
    """Rotations c2w [T,3,3], focal factors [T] and the median residual (pixels) of a camera that turns on the spot.

    uv [M,T,2] (NaN = not seen). Rotations are chained from frame to frame, then directions and rotations are averaged
    in turn, each by Wahba's problem (Kabsch 1976) with Cauchy weights; `zoom` also fits one focal factor per frame.
    """
    count = uv.shape[1]
    seen = np.isfinite(uv[..., 0])
    centred = np.where(seen[..., None], uv - K[:2, 2], 0).astype(np.float64)
    scale = np.array([K[0, 0], K[1, 1]]) * focal
    factor = np.ones(count)

    def bearings() -> np.ndarray:
        xy = centred / (scale * factor[:, None])
        b = np.concatenate([xy, np.ones((*xy.shape[:2], 1))], -1)
        return np.where(seen[..., None], b / np.linalg.norm(b, axis=-1, keepdims=True), 0)

    if zoom:
        factor = _chain_zoom(centred, seen)
    b = bearings()
    R = np.repeat(np.eye(3)[None], count, 0)
    for t in range(1, count):
        both = seen[:, t] & seen[:, t - 1]
        R[t] = R[t - 1] @ (_wahba_robust(b[both, t - 1], b[both, t], 1 / scale[0]) if both.sum() >= 3 else np.eye(3))
    weight = seen.astype(np.float64)
    residual = np.zeros(seen.shape)
    for _ in range(iterations):
        d = np.einsum("mt,tij,mtj->mi", weight, R, b)
        d /= np.maximum(np.linalg.norm(d, axis=1, keepdims=True), 1e-12)
        for t in np.flatnonzero(seen.sum(0) >= 3):  # fewer directions fix no rotation: the chained one stays
            R[t] = _wahba(d, b[:, t], weight[:, t])
        local = np.einsum("tji,mj->mti", R, d)
        plane = local[..., :2] / np.maximum(local[..., 2:], 1e-3) * scale
        if zoom:
            top = np.einsum("mt,mti,mti->t", weight, plane, centred)
            factor = top / np.maximum(np.einsum("mt,mti,mti->t", weight, plane, plane), 1e-9)
            factor /= factor[0]
            b = bearings()
        residual = np.linalg.norm(plane * factor[:, None] - centred, axis=-1)
        weight = seen / (1 + residual**2)
    rms = np.sqrt((residual**2 * seen).sum(1) / np.maximum(seen.sum(1), 1))
    R = R[0].T @ R
    return R, factor * focal, float(np.median(rms))


def fit_pan(uv: np.ndarray, K: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray, float]:
    """`fit_turning` without zoom; where its residual is above `limit` (pixels), but not hopeless, the focal length may
    be wrong: a shared factor on it is fitted too and taken if it explains clearly more (15 %)."""
    found = fit_turning(uv, K, zoom=False)
    if limit < found[2] < 20 * limit:
        other = _fit_focal(uv, K)
        found = other if other[2] < 0.85 * found[2] else found
    return found


def _fit_focal(uv: np.ndarray, K: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The turning camera with the shared focal factor in 0.6..2.5 that explains the tracks best (golden section): from
    a wide angle to a tele lens, whose pans are common in sports."""
    golden = (np.sqrt(5) - 1) / 2
    low, high = np.log(0.6), np.log(2.5)
    at = [high - golden * (high - low), low + golden * (high - low)]
    fits = [fit_turning(uv, K, False, float(np.exp(x)), 6) for x in at]
    for _ in range(9):
        if fits[0][2] < fits[1][2]:
            high, at[1], fits[1] = at[1], at[0], fits[0]
            at[0] = high - golden * (high - low)
            fits[0] = fit_turning(uv, K, False, float(np.exp(at[0])), 6)
        else:
            low, at[0], fits[0] = at[0], at[1], fits[1]
            at[1] = low + golden * (high - low)
            fits[1] = fit_turning(uv, K, False, float(np.exp(at[1])), 6)
    return min(fits, key=lambda fit: fit[2])


def _chain_zoom(centred: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Focal factors [T] from the median growth of distances between neighbouring points, frame to frame."""
    factor = np.ones(seen.shape[1])
    for t in range(1, len(factor)):
        both = np.flatnonzero(seen[:, t] & seen[:, t - 1])
        before = np.linalg.norm(np.diff(centred[both, t - 1], axis=0), axis=1)
        after = np.linalg.norm(np.diff(centred[both, t], axis=0), axis=1)
        factor[t] = factor[t - 1] * (np.median(after / np.maximum(before, 1e-6)) if len(both) > 1 else 1)
    return factor


def _wahba(target: np.ndarray, source: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Rotation R [3,3] that minimises sum w |target - R source|^2."""
    U, _, Vt = np.linalg.svd(np.einsum("n,ni,nj->ij", weight, target, source))
    return U @ np.diag([1, 1, np.sign(np.linalg.det(U @ Vt))]) @ Vt


def _wahba_robust(target: np.ndarray, source: np.ndarray, pixel: float, iterations: int = 8) -> np.ndarray:
    """Wahba's problem with Cauchy weights whose width starts at the median residual and ends at one pixel."""
    weight = np.ones(len(target))
    R = np.eye(3)
    for _ in range(iterations):
        R = _wahba(target, source, weight)
        residual = np.linalg.norm(target - source @ R.T, axis=1)
        width = max(pixel, float(np.median(residual))) if len(residual) else pixel
        weight = 1 / (1 + (residual / width) ** 2)
    return R
