"""Does a masked thing move against the static background? A poster of a person does not.

Corners inside the mask and in the background are followed by Lucas-Kanade between pairs of frames. What the
background does is explained by a homography (a camera that only turns, or a flat world) or by epipolar geometry (a
camera that moves); a thing that belongs to the background obeys the same geometry, a living one breaks it somewhere.
"""

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np


@dataclass(frozen=True)
class Motion:
    """`residual` in pixels: over frame pairs the 75th percentile of the 75th percentile of the corners' residuals,
    so that neither one limb nor one pair that went wrong decides (0 when `points` is 0). `points` is the median number
    of corners measured per pair."""

    residual: float
    points: int


def residual_motion(frames: np.ndarray, mask: np.ndarray, moving: np.ndarray, pairs: int = 8) -> Motion:
    """How far the thing in `mask` departs from the background's geometry.

    frames uint8 [T,H,W,3]; mask bool [T,H,W] the thing; moving bool [T,H,W] everything that may move (kept out of the
    background). `pairs` frame pairs, a fifth of the clip apart at most, spread over the frames where it is seen.
    """
    seen = np.flatnonzero(mask.any((1, 2)))
    gap = max(1, len(frames) // 5)
    residuals, counts = [], []
    for start in seen[np.linspace(0, len(seen) - 1, min(pairs, len(seen))).astype(int)] if len(seen) else []:
        later = seen[(seen > start) & (seen <= start + gap)]
        if not len(later):
            continue
        r = _pair_residual(frames, mask, moving, int(start), int(later[-1]))
        if r is not None:
            residuals.append(np.percentile(r, 75))
            counts.append(len(r))
    if not residuals:
        return Motion(0.0, 0)
    return Motion(float(np.percentile(residuals, 75)), int(np.median(counts)))


def _pair_residual(frames: np.ndarray, mask: np.ndarray, moving: np.ndarray, a: int, b: int) -> np.ndarray | None:
    """Residual in pixels of each followed corner of the thing, or None when background or thing has too few."""
    grey = [cv2.cvtColor(frames[t], cv2.COLOR_RGB2GRAY) for t in range(a, b + 1)]
    background = ~cv2.dilate(moving[a].astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool)
    static = _follow(grey, background, 600)
    thing = _follow(grey, cv2.erode(mask[a].astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool), 200)
    if thing is not None and len(thing[0]):
        inside = mask[b][_pixels(thing[1], mask.shape[1:])]  # a corner that slid off the thing tells of what is behind
        thing = (thing[0][inside], thing[1][inside])
    if static is None or thing is None or len(static[0]) < 30 or len(thing[0]) < 8:
        return None
    H, inliers = cv2.findHomography(*static, cv2.USAC_MAGSAC, 1.5, maxIters=2000)
    if H is not None and inliers.mean() >= 0.8:
        moved = cv2.perspectiveTransform(thing[0][None], H)[0]
        return np.linalg.norm(moved - thing[1], axis=1)
    F, _ = cv2.findFundamentalMat(*static, cv2.USAC_MAGSAC, 1.0, 0.999, 2000)
    return None if F is None or F.shape != (3, 3) else _epipolar_distance(F, *thing)


def _follow(grey: list[np.ndarray], where: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Corners in the first image and where they are in the last, followed image by image, forward and back (< 1 px)."""
    corners = cv2.goodFeaturesToTrack(grey[0], count, 0.01, 5, mask=where.astype(np.uint8))
    if corners is None:
        return None
    first = now = corners.astype(np.float32)
    good = np.ones(len(first), bool)
    for image, following in pairwise(grey):
        ahead, found, _ = cv2.calcOpticalFlowPyrLK(image, following, now, None, winSize=(15, 15), maxLevel=3)
        back, returned, _ = cv2.calcOpticalFlowPyrLK(following, image, ahead, None, winSize=(15, 15), maxLevel=3)
        good &= (found & returned).ravel().astype(bool) & (np.linalg.norm(back - now, axis=-1).ravel() < 1)
        now = ahead
    return first[good, 0], now[good, 0]


def _epipolar_distance(F: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Symmetric distance of matched points [n,2] to their epipolar lines, pixels (Hartley & Zisserman 11.10)."""
    one = np.ones((len(a), 1))
    lines_b, lines_a = np.hstack([a, one]) @ F.T, np.hstack([b, one]) @ F
    error = np.abs((np.hstack([b, one]) * lines_b).sum(1))
    norms = [np.maximum(np.linalg.norm(lines[:, :2], axis=1), 1e-12) for lines in (lines_a, lines_b)]
    return error * (1 / norms[0] + 1 / norms[1]) / 2


def _pixels(points: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    xy = np.clip(points.astype(int), 0, [size[1] - 1, size[0] - 1])
    return xy[:, 1], xy[:, 0]
