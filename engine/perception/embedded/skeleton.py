"""A body's skeleton in the image: how far, in metres, every pixel lies from the nearest limb."""

import cv2
import numpy as np

from engine.perception.embedded.pose import (
    JOINTS,
    LEFT_ANKLE,
    LEFT_HIP,
    LEFT_KNEE,
    LEFT_SHOULDER,
    RIGHT_ANKLE,
    RIGHT_HIP,
    RIGHT_KNEE,
    RIGHT_SHOULDER,
    Body,
)

FAR = 1e3  # metres: from a part that is not in sight
FACE = tuple(range(11))  # nose, eyes, ears, mouth
TORSO = (LEFT_SHOULDER, RIGHT_SHOULDER, RIGHT_HIP, LEFT_HIP)
# Parts that look alike left and right, each as filled outlines and lines through joints.
PARTS = (
    (FACE,),
    (TORSO,),
    ((LEFT_SHOULDER, 13), (RIGHT_SHOULDER, 14)),  # upper arms
    ((13, 15, 19), (14, 16, 20)),  # forearms and hands
    ((LEFT_HIP, LEFT_KNEE), (RIGHT_HIP, RIGHT_KNEE)),
    ((LEFT_KNEE, LEFT_ANKLE, 31, 29), (RIGHT_KNEE, RIGHT_ANKLE, 32, 30)),  # shins and feet
)


def pixels_per_metre(body: Body) -> float:
    """Scale of a body in the image: spread of its visible image landmarks over that of its world landmarks (weak
    perspective)."""
    seen = body.visibility > 0.5
    if seen.sum() < 6:  # the least of a body, as in PeopleFinder: fewer joints say nothing of its size
        seen = np.ones(JOINTS, bool)
    uv, xy = body.points[:JOINTS][seen].astype(np.float64), body.world[seen, :2].astype(np.float64)
    spread = [float(((p - p.mean(0)) ** 2).sum()) for p in (uv, xy)]
    return float(np.sqrt(spread[0] / max(spread[1], 1e-9)))


def limb_distance(body: Body, where: tuple[slice, slice], scale: float = 1.0) -> np.ndarray:
    """Distance float32 [h,w] in metres from the skeleton of every pixel of the part `where` (rows, columns) of the
    image, or of the image `scale` times its size."""
    return _distance(body, PARTS, where, scale)


def part_distances(body: Body, where: tuple[slice, slice], scale: float = 1.0) -> np.ndarray:
    """As `limb_distance`, from each of the PARTS alone: float32 [parts,h,w]."""
    return np.stack([_distance(body, (part,), where, scale) for part in PARTS])


def _distance(body: Body, parts: tuple, where: tuple[slice, slice], scale: float) -> np.ndarray:
    rows, columns = where
    empty = np.ones((rows.stop - rows.start, columns.stop - columns.start), np.uint8)
    points = body.points[:JOINTS] * scale - (columns.start, rows.start)
    drawn = np.round(np.clip(points, -4096, 4096) * 16 - 8).astype(np.int32)  # sixteenths, pixel centres at +0.5
    for line in (line for part in parts for line in part):
        joints = drawn[list(line)]
        if line in (FACE, TORSO):
            joints = cv2.convexHull(joints)
            cv2.fillConvexPoly(empty, joints, 0, shift=4)
        cv2.polylines(empty, [joints], False, 0, 1, shift=4)
    if empty.all():
        return np.full(empty.shape, FAR, np.float32)
    return cv2.distanceTransform(empty, cv2.DIST_L2, 5) / np.float32(max(scale * pixels_per_metre(body), 1e-6))


def limb_fit(mask: np.ndarray, distance: np.ndarray) -> float:
    """Share in [0,1] of a mask within 0.1 m of the skeleton, a thigh's radius: 0.8 to 0.99 on people, 0.45 to 0.75
    where a car or a table passes for one (measured)."""
    return float((mask & (distance < 0.1)).sum() / max(int(mask.sum()), 1))
