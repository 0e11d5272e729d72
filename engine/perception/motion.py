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
    """`residual_motions` of one thing."""
    return residual_motions(frames, [mask], moving, pairs)[0]


def residual_motions(frames: np.ndarray, masks: list[np.ndarray], moving: np.ndarray, pairs: int = 8) -> list[Motion]:
    """How far the thing in each mask departs from the background's geometry.

    frames uint8 [T,H,W,3]; masks bool [T,H,W] one per thing; moving bool [T,H,W] everything that may move (kept out of
    the background). `pairs` frame pairs, a fifth of the clip apart at most, spread over the frames where a thing is
    seen. Things seen on the same pairs share the background's corners, which cost most.
    """
    wanted: dict[tuple[int, int], list[int]] = {}
    for n, mask in enumerate(masks):
        for pair in frame_pairs(mask, pairs):
            wanted.setdefault(pair, []).append(n)
    residuals: list[list[np.ndarray]] = [[] for _ in masks]
    for (a, b), things in sorted(wanted.items()):
        for n, r in zip(things, _pair_residuals(frames, [masks[n] for n in things], moving, a, b), strict=True):
            if r is not None:
                residuals[n].append(r)
    return [_summary(r) for r in residuals]


def frame_pairs(mask: np.ndarray, count: int) -> list[tuple[int, int]]:
    """Up to `count` pairs of frames where the thing in `mask` [T,H,W] is seen, at most a fifth of the clip apart."""
    seen, gap = np.flatnonzero(mask.any((1, 2))), max(1, len(mask) // 5)
    found = []
    for start in seen[np.linspace(0, len(seen) - 1, min(count, len(seen))).astype(int)] if len(seen) else []:
        later = seen[(seen > start) & (seen <= start + gap)]
        if len(later):
            found.append((int(start), int(later[-1])))
    return found


def _summary(residuals: list[np.ndarray]) -> Motion:
    if not residuals:
        return Motion(0.0, 0)
    worst = np.percentile([np.percentile(r, 75) for r in residuals], 75)
    return Motion(float(worst), int(np.median([len(r) for r in residuals])))


def _pair_residuals(
    frames: np.ndarray, masks: list[np.ndarray], moving: np.ndarray, a: int, b: int
) -> list[np.ndarray | None]:
    """Residual in pixels of each thing's followed corners; None where the background or the thing has too few."""
    grey = [cv2.cvtColor(frames[t], cv2.COLOR_RGB2GRAY) for t in range(a, b + 1)]
    background = ~cv2.dilate(moving[a].astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool)
    inside = [cv2.erode(mask[a].astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool) for mask in masks]
    static, *things = _follow(grey, [(background, 600), *((where, 200) for where in inside)])
    if len(static[0]) < 30:
        return [None] * len(masks)
    H, inliers = cv2.findHomography(*static, cv2.USAC_MAGSAC, 1.5, maxIters=2000)
    F = None
    if H is None or inliers.mean() < 0.8:
        H, (F, _) = None, cv2.findFundamentalMat(*static, cv2.USAC_MAGSAC, 1.0, 0.999, 2000)
    out: list[np.ndarray | None] = []
    for mask, (first, last) in zip(masks, things, strict=True):
        on = mask[b][_pixels(last, mask.shape[1:])]  # a corner that slid off the thing tells of what is behind
        if on.sum() < 8 or (H is None and (F is None or F.shape != (3, 3))):
            out.append(None)
        elif H is not None:
            out.append(np.linalg.norm(cv2.perspectiveTransform(first[on][None], H)[0] - last[on], axis=1))
        else:
            out.append(_epipolar_distance(F, first[on], last[on]))
    return out


def _follow(grey: list[np.ndarray], wanted: list[tuple[np.ndarray, int]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Corners [n,2] of the first image and where they are in the last, for every (mask, most corners) asked for:
    followed image by image, forward and back (< 1 px), all in one pass."""
    none = np.zeros((0, 1, 2), np.float32)
    corners = [cv2.goodFeaturesToTrack(grey[0], count, 0.01, 5, mask=where.astype(np.uint8)) for where, count in wanted]
    corners = [none if c is None else c for c in corners]
    first = now = np.concatenate(corners)
    good = np.ones(len(first), bool)
    for image, following in pairwise(grey) if len(first) else []:
        ahead, found, _ = cv2.calcOpticalFlowPyrLK(image, following, now, None, winSize=(15, 15), maxLevel=3)
        back, returned, _ = cv2.calcOpticalFlowPyrLK(following, image, ahead, None, winSize=(15, 15), maxLevel=3)
        good &= (found & returned).ravel().astype(bool) & (np.linalg.norm(back - now, axis=-1).ravel() < 1)
        now = ahead
    ends = np.cumsum([len(c) for c in corners])[:-1]
    return [
        (f[g, 0], n[g, 0])
        for f, n, g in zip(np.split(first, ends), np.split(now, ends), np.split(good, ends), strict=True)
    ]


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
