"""From bodies to labels at the frame's resolution."""

import cv2
import numpy as np

from engine.perception.embedded.people import Person
from engine.perception.embedded.pose import Body

BONES = ((0, 11), (0, 12), (11, 12), (11, 23), (12, 24), (23, 24), (11, 13), (13, 15), (15, 19), (12, 14), (14, 16)) + (
    (16, 20),
    (23, 25),
    (25, 27),
    (27, 31),
    (27, 29),
    (24, 26),
    (26, 28),
    (28, 32),
    (28, 30),
)


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
            own = part > 0.5
            near = own & near_skeleton(body, height, width)[where]
            # What a hand holds is a tenth of a person at most; more than a quarter away from all bones is a tree
            # that flowed into dark hair.
            own = near if near.sum() < 0.75 * own.sum() else own
            better = main_parts(own) & (part > best[where] - 0.05)
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


def near_skeleton(body: Body, height: int, width: int, reach: float = 0.11) -> np.ndarray:
    """bool [H,W]: places within `reach` of the region's edge from a bone (about a seventh of the body's height, wide
    enough for clothes and hair)."""
    out = np.zeros((height, width), np.uint8)
    points = np.clip(body.points, -4 * width, 4 * width).astype(int)
    for a, b in BONES:
        cv2.line(out, points[a].tolist(), points[b].tolist(), 1, max(1, round(2 * reach * body.roi.size)))
    return out > 0
