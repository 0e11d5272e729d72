"""Short gaps in which the networks lost somebody, bridged by optical flow."""

import itertools

import cv2
import numpy as np

from engine.perception.embedded.flow import pull
from engine.perception.embedded.link import colours, hellinger


def bridge_gaps(
    labels: np.ndarray, frames: np.ndarray, flows: tuple[np.ndarray, np.ndarray], most: int, appearance: float
) -> np.ndarray:
    """Labels uint8 [T,H,W] in which a subject that is missing in at most `most` frames in a row is there again.

    frames      uint8 [T,H,W,3] RGB
    flows       forward and backward flow [T-1,h,w,2] at a size of their own
    appearance  largest colour distance (Hellinger, 0..1) of a bridged mask from those beside the gap: somebody who went
                behind something is not painted on it
    The masks before and after a gap are carried into it; each counts in proportion to its nearness. The first and the
    last frames of the clip have one such mask. Pixels of others stay theirs.
    """
    labels = labels.copy()
    for label in np.unique(labels[labels > 0]):
        seen = np.flatnonzero((labels == label).any((1, 2)))
        for last, following in itertools.pairwise([-1, *map(int, seen), len(labels)]):
            if 1 < following - last <= most + 1:
                _bridge(labels, frames, flows, int(label), last, following, appearance)
    return labels


def _bridge(labels, frames, flows, label: int, last: int, following: int, appearance: float) -> None:
    """Fill the frames between `last` and `following` (-1 and T: there is none), in place."""
    forward, backward = flows
    height, width = labels.shape[1:]
    size = forward.shape[2], forward.shape[1]
    gap = range(last + 1, following)
    carried: dict[int, list[tuple[float, np.ndarray]]] = {t: [] for t in gap}  # (weight, mask)
    known = np.float32(0)
    for start, order, step in ((last, gap, backward), (following, gap[::-1], forward)):
        if not 0 <= start < len(labels):
            continue
        mask = cv2.resize((labels[start] == label).astype(np.float32), size, interpolation=cv2.INTER_AREA)
        known += colours(_small(frames[start], size), mask > 0.5)
        for t in order:
            mask = pull(mask, step[t - 1] if start < t else step[t])
            carried[t].append((1 / abs(t - start), mask))
    for t in gap:
        weights, masks = zip(*carried[t], strict=True)
        mask = np.average(masks, axis=0, weights=weights).astype(np.float32)
        here = colours(_small(frames[t], size), mask > 0.5)
        if here.any() and hellinger(here, known) <= appearance:
            full = cv2.resize(mask, (width, height)) > 0.5
            labels[t][full & (labels[t] == 0)] = label


def _small(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
