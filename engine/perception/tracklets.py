"""From mask tracks to subjects: which tracks are the same one, who rides what. Pure functions on arrays.

A tracklet is what one box prompt became: mask logits over the whole clip. Several tracklets can show one subject,
because it was detected on several keyframes, or because it left and came back.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels


@dataclass(frozen=True)
class Tracklet:
    """logits float16 [T,h,w] (> 0 is the object; the frame stretched to h x w); `frame` is where it was prompted."""

    frame: int
    prompt: str
    score: float
    logits: np.ndarray

    def visible(self, least: float) -> np.ndarray:
        """bool [T]: the mask covers at least the share `least` of the frame."""
        return (self.logits > 0).mean((1, 2)) >= least


@dataclass(frozen=True)
class Group:
    """Tracklets that show one thing, best score first."""

    members: tuple[Tracklet, ...]

    @property
    def prompt(self) -> str:
        return self.members[0].prompt

    @property
    def score(self) -> float:
        return self.members[0].score

    def logits(self, least: float) -> np.ndarray:
        """float16 [T,h,w]: in every frame the logits of the visible member that was prompted nearest in time.

        SAM 2 is most certain near its prompt; a member that does not see the subject there has no say.
        """
        visible = np.stack([m.visible(least) for m in self.members])
        distance = np.stack([np.abs(np.arange(visible.shape[1]) - m.frame) for m in self.members]).astype(float)
        choice = np.where(visible, distance, np.inf).argmin(0)
        out = np.stack([self.members[c].logits[t] for t, c in enumerate(choice)])
        out[~visible.any(0)] = -10
        return out


def mask_box(mask: np.ndarray, size: tuple[int, int]) -> Box | None:
    """Box of a bool mask [h,w] in pixels of a frame of `size` (height, width); None when it is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    sy, sx = size[0] / mask.shape[0], size[1] / mask.shape[1]
    return columns[0] * sx, rows[0] * sy, (columns[-1] + 1) * sx, (rows[-1] + 1) * sy


def box_iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(w, 0) * max(h, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return inter / union if union > 0 else 0.0


def already_followed(box: Box, frame: int, tracklets: Sequence[Tracklet], size: tuple[int, int], iou: float) -> bool:
    """True when some tracklet's mask on that frame fills the box (box IoU of at least `iou`)."""
    boxes = (mask_box(t.logits[frame] > 0, size) for t in tracklets)
    return any(b is not None and box_iou(b, box) >= iou for b in boxes)


def merge_duplicates(tracklets: Sequence[Tracklet], iou: float, least: float) -> list[Group]:
    """Tracklets that cover the same pixels while both are seen (mean mask IoU of at least `iou`) become one group."""
    groups: list[Group] = []
    for tracklet in sorted(tracklets, key=lambda t: (-t.score, t.frame)):
        for i, group in enumerate(groups):
            if group.prompt == tracklet.prompt and _overlap(group.members[0], tracklet, least) >= iou:
                groups[i] = Group((*group.members, tracklet))
                break
        else:
            groups.append(Group((tracklet,)))
    return groups


def merge_returns(groups: Sequence[Group], frames: np.ndarray, farthest: float, least: float) -> list[Group]:
    """Groups of one kind that are never seen together and look alike become one: the subject left and came back.

    `frames` uint8 [T,h,w,3] at the logits' size. Looks are colour histograms inside the masks; `farthest` is the
    largest Hellinger distance (0 equal, 1 nothing in common) of a match. Nearest pairs are joined first.
    """
    groups = list(groups)
    looks = [appearance(g.logits(least), frames, least) for g in groups]
    seen = [np.any([m.visible(least) for m in g.members], 0) for g in groups]
    while True:
        pairs = [
            (hellinger(looks[i], looks[j]), i, j)
            for i in range(len(groups))
            for j in range(i + 1, len(groups))
            if groups[i].prompt == groups[j].prompt and not (seen[i] & seen[j]).any()
        ]
        if not pairs or min(pairs)[0] > farthest:
            return groups
        _, i, j = min(pairs)
        members = sorted((*groups[i].members, *groups[j].members), key=lambda t: (-t.score, t.frame))
        groups[i] = Group(tuple(members))
        looks[i], seen[i] = appearance(groups[i].logits(least), frames, least), seen[i] | seen[j]
        del groups[j], looks[j], seen[j]


def appearance(logits: np.ndarray, frames: np.ndarray, least: float) -> np.ndarray:
    """Mean colour histogram [2, 6^3] of the upper and lower half of a subject (shirt and trousers), each of sum 1."""
    total = np.zeros((2, 216))
    for mask, frame in zip(logits > 0, frames, strict=True):
        rows, columns = np.nonzero(mask)
        if len(rows) < max(least * mask.size, 1):
            continue
        bins = (frame[rows, columns].astype(int) * 6 // 256) @ np.array([36, 6, 1])
        lower = (rows > np.median(rows)).astype(int)
        np.add.at(total, (lower, bins), 1 / len(rows))
    return total / np.maximum(total.sum(1, keepdims=True), 1e-12)


def hellinger(a: np.ndarray, b: np.ndarray) -> float:
    """Hellinger distance of two stacks of histograms [k,bins], averaged: 0 equal, 1 disjoint."""
    return float(np.sqrt(np.maximum(0, 1 - np.sqrt(a * b).sum(-1))).mean())


def rider_of(ridden: np.ndarray, riders: Sequence[np.ndarray], least: float, apart: float = 0.25) -> int | None:
    """Which of the subjects rides the thing; None when nobody does. All bool [T,h,w] in undistorted proportions.

    A rider touches the thing in most of the frames where both are seen, and keeps still relative to it: the offset
    between their centres varies (standard deviation) by at most `apart` of the rider's height. Someone who walks past
    a parked bicycle touches it for a moment and moves on.
    """
    best: tuple[float, int] | None = None
    for n, rider in enumerate(riders):
        both = (ridden.mean((1, 2)) >= least) & (rider.mean((1, 2)) >= least)
        if both.sum() < max(2, 0.3 * (ridden.mean((1, 2)) >= least).sum()):
            continue
        touch = np.mean([_touching(ridden[t], rider[t]) for t in np.flatnonzero(both)])
        offsets = np.array([_centre(ridden[t]) - _centre(rider[t]) for t in np.flatnonzero(both)])
        height = np.median([np.ptp(np.flatnonzero(rider[t].any(1))) + 1 for t in np.flatnonzero(both)])
        wander = float(np.linalg.norm(offsets.std(0)) / height)
        if touch >= 0.6 and wander <= apart and (best is None or wander < best[0]):
            best = (wander, n)
    return None if best is None else best[1]


def _overlap(a: Tracklet, b: Tracklet, least: float) -> float:
    """Mean mask IoU over the frames where both are seen; 0 when they never are."""
    both = a.visible(least) & b.visible(least)
    if not both.any():
        return 0.0
    A, B = a.logits[both] > 0, b.logits[both] > 0
    return float(((A & B).sum((1, 2)) / (A | B).sum((1, 2))).mean())


def _centre(mask: np.ndarray) -> np.ndarray:
    return np.argwhere(mask).mean(0)


def _touching(a: np.ndarray, b: np.ndarray) -> bool:
    """The masks meet when one grows by two pixels."""
    import cv2

    return bool((cv2.dilate(a.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool) & b).any())
