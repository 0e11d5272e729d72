"""Scene: the depth of all sources brought into one metric depth, and the pixels that stand still."""

from dataclasses import dataclass

import cv2
import numpy as np

from engine.geometry.align import align_disparity
from engine.options import option
from engine.types import Clip, DepthEstimate, GeometryEstimate, Scene, Tracks


@dataclass
class SceneOptions:
    edge: float = option(0.05, "relative depth change per pixel, |grad z| / z, from which a pixel is a depth edge")
    dilation: float = option(0.015, "growth of the dynamic mask, as a share of the image width")
    minimum_confidence: float = option(0.05, "pixels with a lower depth confidence are not static")
    align_stride: int = option(8, "pixels between the samples that align the two depth heads")
    align_smoothness: float = option(1.0, "pull of (log a, b) of neighbouring frames towards each other")
    align_trim: float = option(0.1, "share of the worst residuals left out of the alignment")


def fuse_scene(
    clip: Clip, tracks: Tracks, geometry: GeometryEstimate, depth: DepthEstimate | None, options: SceneOptions
) -> Scene:
    """One metric depth with the smoothness of `depth` and the scale of `geometry`, and the static pixels.

    Without a Depth, or with one whose kind is "metric", no affine alignment is needed: geometry's depth is kept, or the
    metric values take geometry's scale frame by frame.
    """
    static = np.stack([_static(t, tracks, geometry, geometry.depth[t], options) for t in range(len(clip.frames))])
    fused = geometry.depth if depth is None else _fuse(depth, geometry, static, options)
    if depth is not None:
        static = np.stack([_static(t, tracks, geometry, fused[t], options) for t in range(len(clip.frames))])
    quality = {
        "depth_flicker_raw": depth_flicker(clip.frames, geometry.depth, static),
        "depth_flicker": depth_flicker(clip.frames, fused, static),
        "depth_confidence": float(geometry.confidence[static].mean()) if static.any() else 0.0,
        "static_share": float(static.mean()),
    }
    return Scene(
        K=geometry.K,
        depth=fused,
        confidence=geometry.confidence,
        sky=geometry.sky,
        static=static,
        tracks=tracks,
        geometry=geometry,
        models={} if depth is None else depth.models,
        quality=quality,
    )


def _static(t: int, tracks: Tracks, geometry: GeometryEstimate, depth: np.ndarray, options: SceneOptions) -> np.ndarray:
    """bool [H,W]: valid, not sky, confident, not on a depth edge, not within the dilated dynamic mask."""
    radius = max(1, round(options.dilation * depth.shape[1]))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    moving = cv2.dilate(tracks.dynamic[t].astype(np.uint8), kernel) > 0
    sure = geometry.confidence[t] >= options.minimum_confidence
    return (depth > 0) & ~geometry.sky[t] & sure & ~depth_edges(depth, options.edge) & ~moving


def depth_edges(depth: np.ndarray, threshold: float) -> np.ndarray:
    """bool [H,W]: |grad z| / z per pixel above `threshold`, by a 3x3 Sobel (which averages pixel noise down by 2.3).

    A pixel beside one without a value (0) is an edge too.
    """
    dx = cv2.Sobel(depth, cv2.CV_32F, 1, 0, scale=1 / 8)
    dy = cv2.Sobel(depth, cv2.CV_32F, 0, 1, scale=1 / 8)
    return cv2.magnitude(dx, dy) > threshold * depth


def _fuse(depth: DepthEstimate, geometry: GeometryEstimate, static: np.ndarray, options: SceneOptions) -> np.ndarray:
    """float32 [T,H,W] metres: the Depth's values on the Geometry's scale; 0 where either has none, and in the sky."""
    step = options.align_stride
    grid = np.s_[:, step // 2 :: step, step // 2 :: step]
    reference = np.where(static[grid], geometry.depth[grid], 0).reshape(len(static), -1)
    values = depth.values[grid].reshape(len(static), -1).astype(np.float64)
    fused = np.zeros_like(geometry.depth)
    if depth.kind == "metric":
        both = (reference > 0) & np.isfinite(values) & (values > 0)
        for t, ok in enumerate(both):
            scale = np.median(reference[t, ok] / values[t, ok]) if ok.any() else 1.0
            fused[t] = np.nan_to_num(depth.values[t] * scale, nan=0.0)
    else:
        a, b = align_disparity(values, reference, options.align_smoothness, options.align_trim)
        near, far = _span(reference)
        for t in range(len(fused)):
            disparity = a[t] * depth.values[t] + b[t]
            known = np.isfinite(disparity) & (disparity > 0.5 / far)
            fused[t][known] = np.maximum(1 / disparity[known], 0.5 * near)
    fused[geometry.sky | (geometry.depth <= 0)] = 0
    return fused.astype(np.float32)


def _span(depth: np.ndarray) -> tuple[float, float]:
    """(near, far) metres: the 0.1 and 99.9 percentile of the positive values."""
    near, far = np.percentile(depth[depth > 0], [0.1, 99.9])
    return float(near), float(far)


def depth_flicker(frames: np.ndarray, depth: np.ndarray, static: np.ndarray, step: int = 8) -> float:
    """Median of |z_{t+1}(p') / z_t(p) - 1| over static points p that optical flow carries to p' one frame later.

    Camera motion changes depth too: the number compares two depths of one clip. 0 when there is nothing to compare.
    """
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    grays = [cv2.resize(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), None, fx=0.5, fy=0.5) for f in frames]
    height, width = depth.shape[1:]
    y, x = (g.reshape(-1) for g in np.mgrid[step // 2 : height : step, step // 2 : width : step])
    changes = []
    for t in range(len(frames) - 1):
        move = 2 * flow.calc(grays[t], grays[t + 1], None)
        dx, dy = move[np.minimum(y // 2, move.shape[0] - 1), np.minimum(x // 2, move.shape[1] - 1)].T
        x2, y2 = np.rint(x + dx).astype(int), np.rint(y + dy).astype(int)
        ok = (x2 >= 0) & (x2 < width) & (y2 >= 0) & (y2 < height)
        ok[ok] &= static[t, y[ok], x[ok]] & static[t + 1, y2[ok], x2[ok]]
        before, after = depth[t, y[ok], x[ok]], depth[t + 1, y2[ok], x2[ok]]
        changes.append(np.abs(after / before - 1))
    changed = np.concatenate(changes) if changes else np.zeros(0)
    return float(np.median(changed)) if len(changed) else 0.0
