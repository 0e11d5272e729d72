"""From bodies to labels at the frame's resolution: which person a pixel belongs to where several claim it."""

import cv2
import numpy as np

from engine.perception.embedded.link import Person
from engine.perception.embedded.pose import Body
from engine.perception.embedded.skeleton import PARTS, part_distances, pixels_per_metre

REACH = 0.1  # metres from the skeleton within which a body is at home: a thigh's radius
HALF = 0.5  # ownership is decided at half size and its odds are enlarged
BINS = (6, 10, 10)  # of L, a, b


def paint_labels(people: list[Person], frames: np.ndarray, subjects: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels uint8 [T,H,W] of the first `subjects` people, and bool [T,H,W] of all further people.

    Where people meet, a pixel of any mask belongs to the person with the highest log odds: of the network, of the
    distance to each part of the skeleton with the colours of that part, and of standing nearer.
    """
    count, height, width = frames.shape[:3]
    labels = np.zeros((count, height, width), np.uint8)
    colours, crowded = _Colours(len(people)), []
    for t in range(count):
        present = [(i, p.bodies[t]) for i, p in enumerate(people) if t in p.bodies]
        several = np.zeros((height, width), np.uint8)
        for i, body in present:
            part, where = body.paste(height, width)
            mask = main_parts(part > 0.5)
            labels[t][where][mask] = i + 1
            several[where] += mask
        if len(present) > 1:
            crowded.append((t, present))
            if t % 2 == 0:  # every other frame tells enough of the colours
                colours.learn(present, frames[t], np.where(several == 1, labels[t], 0))
    for t, present in crowded:
        labels[t] = _divide(labels[t], present, frames[t], colours)
    others = labels > subjects
    labels[others] = 0
    return labels, others


def _divide(labels: np.ndarray, present: list[tuple[int, Body]], frame: np.ndarray, colours: "_Colours") -> np.ndarray:
    """uint8 [H,W]: 1 + the person to whom each pixel of `labels` > 0 belongs.

    Everybody is asked about every pixel: of an arm in front of somebody the network often sees only the other.
    """
    height, width = frame.shape[:2]
    bins = colours.bins(_half(frame))
    anyone = labels > 0
    best = np.full((height, width), -np.inf, np.float32)
    owner = np.zeros((height, width), np.uint8)
    for i, body in present:
        probability, small = body.paste(height, width, HALF)
        if not probability.size:
            continue
        sure = np.clip(probability, 0.2, 0.8)  # where people meet the network is often wrong
        places = -0.5 * np.minimum(part_distances(body, small, HALF) / REACH, 6) ** 2
        # A person who looks 30 % larger stands nearer and hides the other: log odds of 1.
        odds = np.log(sure / (1 - sure)) + 4 * np.log(pixels_per_metre(body))
        odds += (places + colours.log_shares(i, bins[small])).max(0)  # the part that explains a pixel best
        where = tuple(slice(2 * s.start, min(2 * s.stop, n)) for s, n in zip(small, (height, width), strict=True))
        size = (where[1].stop - where[1].start, where[0].stop - where[0].start)
        odds = cv2.resize(odds, size, interpolation=cv2.INTER_LINEAR)
        better = anyone[where] & (odds > best[where])
        best[where][better] = odds[better]
        owner[where][better] = i + 1
    # What is taken from somebody hangs together with what was one's own: a like-coloured face elsewhere does not.
    for i, _ in present:
        _, part = cv2.connectedComponents((owner == i + 1).astype(np.uint8))
        own = np.unique(part[(owner == i + 1) & (labels == i + 1)])
        lost = (part > 0) & ~np.isin(part, own)
        owner[lost] = labels[lost]
    return np.where(anyone & (owner == 0), labels, owner)


class _Colours:
    """How often each part of each person shows a colour, learned where that person alone claims the pixel."""

    def __init__(self, people: int) -> None:
        self.counts = np.zeros((people, len(PARTS), int(np.prod(BINS))), np.float32)

    def bins(self, frame: np.ndarray) -> np.ndarray:
        """int32 [h,w]: the colour bin of every pixel of a frame uint8 [h,w,3] RGB; chroma within 50 of grey."""
        L, a, b = cv2.split(cv2.cvtColor(frame, cv2.COLOR_RGB2LAB).astype(np.int32))
        k, m, n = BINS
        return (L * k // 256) * m * n + np.clip((a - 78) // 10, 0, m - 1) * n + np.clip((b - 78) // 10, 0, n - 1)

    def learn(self, present: list[tuple[int, Body]], frame: np.ndarray, owner: np.ndarray) -> None:
        """Add a frame's pixels; owner uint8 [H,W] is 1 + the person, 0 = not to be learned."""
        bins = self.bins(_half(frame))
        size = bins.shape[::-1]
        owner = cv2.resize(owner, size, interpolation=cv2.INTER_NEAREST)
        for i, body in present:
            ys, xs = np.nonzero(owner == i + 1)
            if not len(ys):
                continue
            where = (slice(ys.min(), ys.max() + 1), slice(xs.min(), xs.max() + 1))
            part = part_distances(body, where, HALF).argmin(0)[ys - where[0].start, xs - where[1].start]
            np.add.at(self.counts[i], (part, bins[ys, xs]), 1)

    def log_shares(self, person: int, bins: np.ndarray) -> np.ndarray:
        """float32 [parts,h,w]: log probability of the colours on each part of a person, mean of 5 x 5 pixels. A part of
        which little is known takes the whole person's colours (as if 500 pixels of them had been seen)."""
        counts = self.counts[person]
        whole = (counts.sum(0) + 1) / (counts.sum() + counts.shape[1])
        share = np.log((counts + 500 * whole) / (counts.sum(1, keepdims=True) + 500))
        return np.stack([cv2.blur(part[bins], (5, 5)) for part in np.maximum(share, -8).astype(np.float32)])


def _half(frame: np.ndarray) -> np.ndarray:
    size = (round(frame.shape[1] * HALF), round(frame.shape[0] * HALF))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def main_parts(mask: np.ndarray, share: float = 0.1) -> np.ndarray:
    """The connected parts of a bool mask [h,w] that have at least `share` of the largest part's area: an arm cut off
    by an occluder stays, specks of another thing go."""
    count, part, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    if count <= 2:
        return mask
    area = stats[:, cv2.CC_STAT_AREA]
    keep = area >= share * area[1:].max()
    keep[0] = False
    return keep[part]
