"""From bodies to labels at the frame's resolution."""

import cv2
import numpy as np

from engine.perception.embedded.people import Person


def paint_labels(people: list[Person], frames: np.ndarray, subjects: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels uint8 [T,H,W] of the first `subjects` people, and bool [T,H,W] of all further people.

    Where bodies overlap the pixel belongs to the body that is surest of it, and with equal probability (to 1/20) to the
    body whose lowest point is lower in the image: it stands nearer.
    """
    count, height, width = frames.shape[:3]
    labels = np.zeros((count, height, width), np.uint8)
    others = np.zeros((count, height, width), bool)
    for t in range(count):
        best = np.full((height, width), 0.5, np.float32)
        owner = np.zeros((height, width), np.int16)
        present = [(i, p.bodies[t]) for i, p in enumerate(people) if t in p.bodies]
        for i, body in sorted(present, key=lambda e: e[1].points[:33, 1].max()):  # far to near
            part, where = body.paste(height, width)
            better = main_parts(part > 0.5) & (part > best[where] - 0.05)
            best[where][better] = part[better]
            owner[where][better] = i + 1
        labels[t] = np.where(owner <= subjects, owner, 0)
        others[t] = owner > subjects
    return labels, others


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
