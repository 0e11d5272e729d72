"""Short gaps in which the networks lost somebody, bridged by optical flow from both sides."""

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
    appearance  largest colour distance (Hellinger, 0..1) of a bridged mask from the two that it lies between: somebody
                who went behind something is not painted on it
    The masks before and after the gap are carried into it; each counts in proportion to its nearness. Pixels of others
    stay theirs.
    """
    labels = labels.copy()
    for label in np.unique(labels[labels > 0]):
        seen = np.flatnonzero((labels == label).any((1, 2)))
        for last, following in itertools.pairwise(seen):
            if 1 < following - last <= most + 1:
                _bridge(labels, frames, flows, int(label), int(last), int(following), appearance)
    return labels


def _bridge(labels, frames, flows, label: int, last: int, following: int, appearance: float) -> None:
    """Fill the frames between `last` and `following`, in place."""
    forward, backward = flows
    height, width = labels.shape[1:]
    size = forward.shape[2], forward.shape[1]
    before, after = (
        cv2.resize((labels[t] == label).astype(np.float32), size, interpolation=cv2.INTER_AREA)
        for t in (last, following)
    )
    small = [cv2.resize(frames[t], size, interpolation=cv2.INTER_AREA) for t in range(last, following + 1)]
    known = colours(small[0], before > 0.5) + colours(small[-1], after > 0.5)
    come, gone = {}, {}
    for t in range(last + 1, following):
        come[t] = before = pull(before, backward[t - 1])
    for t in range(following - 1, last, -1):
        gone[t] = after = pull(after, forward[t])
    for t in range(last + 1, following):
        share = (following - t) / (following - last)
        mask = share * come[t] + (1 - share) * gone[t]
        here = colours(small[t - last], mask > 0.5)
        if here.sum() and hellinger(here, known) <= appearance:
            full = cv2.resize(mask, (width, height)) > 0.5
            labels[t][full & (labels[t] == 0)] = label
