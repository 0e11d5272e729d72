"""Scene: the depth of all sources brought into one metric depth, and the pixels that stand still."""

from dataclasses import dataclass, replace
from itertools import pairwise

import cv2
import numpy as np

from engine.geometry.align import Matches, align_disparity
from engine.options import option
from engine.types import Clip, DepthEstimate, GeometryEstimate, Scene, Tracks


@dataclass
class SceneOptions:
    edge: float = option(0.05, "relative depth change per pixel, |grad z| / z, from which a pixel is a depth edge")
    dilation: float = option(0.015, "growth of the dynamic mask, as a share of the image width")
    minimum_confidence: float = option(0.05, "pixels with a lower depth confidence are not static")
    remove_sky: bool = option(
        True,
        "the sky has no depth; off = keep what geometry says there, where its sky mask takes walls or water for sky",
    )
    align_stride: int = option(8, "pixels between the samples that align the two depth heads")
    align_scale_sigma: float = option(
        0.05,
        "flicker of the log scale of geometry's depth from frame to frame (MoGe-2: about 5 %); 0 trusts every frame",
    )
    align_trim: float = option(0.1, "share of the worst residuals left out of the alignment")


def fuse_scene(
    clip: Clip, tracks: Tracks, geometry: GeometryEstimate, depth: DepthEstimate | None, options: SceneOptions
) -> Scene:
    """One metric depth with the smoothness of `depth` and the scale of `geometry`, and the static pixels.

    Without a Depth geometry's depth is kept. A Depth of kind "metric" takes geometry's scale by one factor for the
    whole clip; one of kind "disparity" is aligned frame by frame and over time (`engine.geometry.align`). quality has
    depth_flicker before (`_raw`: geometry's depth) and after.
    """
    if not options.remove_sky:
        geometry = replace(geometry, sky=np.zeros_like(geometry.sky))
    count = len(clip.frames)
    static = np.stack([static_pixels(t, tracks, geometry, geometry.depth[t], options) for t in range(count)])
    flow = follow_grid(clip.frames, options.align_stride)
    quality = {"depth_flicker_raw": depth_flicker(flow, geometry.depth, static)}
    fused = geometry.depth
    if depth is not None:
        fused = _fuse(depth, geometry, static, flow, options)
        static = np.stack([static_pixels(t, tracks, geometry, fused[t], options) for t in range(count)])
    quality["depth_flicker"] = depth_flicker(flow, fused, static)
    quality["depth_confidence"] = float(geometry.confidence[static].mean()) if static.any() else 0.0
    quality["static_share"] = float(static.mean())
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


def static_pixels(
    t: int, tracks: Tracks, geometry: GeometryEstimate, depth: np.ndarray, options: SceneOptions
) -> np.ndarray:
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


def _fuse(
    depth: DepthEstimate, geometry: GeometryEstimate, static: np.ndarray, flow: "Flow", options: SceneOptions
) -> np.ndarray:
    """float32 [T,H,W] metres: the Depth's values on the Geometry's scale; 0 where either has none, and in the sky."""
    count = len(static)
    reference = np.where(static, geometry.depth, 0)[:, flow.y, flow.x]
    values = depth.values[:, flow.y, flow.x].astype(np.float64)
    fused = np.zeros_like(geometry.depth)
    if depth.kind == "metric":
        both = (reference > 0) & np.isfinite(values) & (values > 0)
        scale = np.median(reference[both] / values[both]) if both.any() else 1.0
        for t in range(count):
            fused[t] = np.nan_to_num(depth.values[t] * scale, nan=0.0)
    else:
        height, width = static.shape[1:]
        xy = np.stack([flow.x + 0.5 - width / 2, flow.y + 0.5 - height / 2], -1)
        carried = flow.valid & static[:-1, flow.y, flow.x]
        t = np.arange(count - 1)[:, None]
        carried &= static[t + 1, flow.y_next, flow.x_next]
        matches = Matches(
            before=np.where(carried, values[:-1], np.nan),
            after=np.where(carried, depth.values[t + 1, flow.y_next, flow.x_next], np.nan),
            xy=xy,
        )
        a, b = align_disparity(values, reference, matches, options.align_scale_sigma, options.align_trim)
        near, far = np.percentile(reference[reference > 0], [0.1, 99.9])
        for t in range(count):
            disparity = a[t] * depth.values[t] + b[t]
            known = np.isfinite(disparity) & (disparity > 0.5 / far)
            fused[t][known] = np.maximum(1 / disparity[known], 0.5 * near)
    fused[geometry.sky | (geometry.depth <= 0)] = 0
    return fused


@dataclass(frozen=True)
class Flow:
    """Where optical flow carries a grid of N pixels: x, y int64 [N] in every frame t = 0..T-2, x_next, y_next int64
    [T-1,N] in frame t + 1; `valid` bool [T-1,N] where that is inside the image (elsewhere the nearest pixel stands)."""

    x: np.ndarray
    y: np.ndarray
    x_next: np.ndarray
    y_next: np.ndarray
    valid: np.ndarray


def follow_grid(frames: np.ndarray, step: int) -> Flow:
    """Flow of a grid of pixels `step` apart through frames uint8 [T,H,W,3] (DIS, Kroeger et al. 2016, at half size)."""
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    height, width = frames.shape[1:3]
    y, x = (g.reshape(-1) for g in np.mgrid[step // 2 : height : step, step // 2 : width : step])
    small = [cv2.resize(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), (width // 2, height // 2)) for f in frames]
    at = np.minimum(y // 2, height // 2 - 1), np.minimum(x // 2, width // 2 - 1)
    moves = [2 * dis.calc(a, b, None)[at] for a, b in pairwise(small)]
    move = np.stack(moves) if moves else np.zeros((0, len(x), 2), np.float32)
    x_next, y_next = np.rint(x + move[..., 0]).astype(int), np.rint(y + move[..., 1]).astype(int)
    valid = (x_next >= 0) & (x_next < width) & (y_next >= 0) & (y_next < height)
    return Flow(x, y, np.clip(x_next, 0, width - 1), np.clip(y_next, 0, height - 1), valid)


def depth_flicker(flow: Flow, depth: np.ndarray, static: np.ndarray) -> float:
    """Median of |z_{t+1}(p') / z_t(p) - 1| over static points p that optical flow carries to p' one frame later.

    Camera motion changes depth too: the number compares two depths of one clip. 0 when there is nothing to compare.
    """
    changes = []
    for t, ok in enumerate(flow.valid):
        ok = ok & static[t, flow.y, flow.x] & static[t + 1, flow.y_next[t], flow.x_next[t]]
        before, after = depth[t, flow.y[ok], flow.x[ok]], depth[t + 1, flow.y_next[t, ok], flow.x_next[t, ok]]
        changes.append(np.abs(after / before - 1))
    changed = np.concatenate(changes) if changes else np.zeros(0)
    return float(np.median(changed)) if len(changed) else 0.0
