"""The people of a clip in metres, whoever made the masks: bodies found again inside them."""

import cv2
import numpy as np

from engine.perception.embedded.body import MetricBody, measure_body
from engine.perception.embedded.pose import Body, PoseNet


def find_bodies(net: PoseNet, frames: np.ndarray, labels: np.ndarray, label: int) -> dict[int, Body]:
    """The body behind a label in every frame where the landmark network finds one inside its mask."""
    bodies: dict[int, Body] = {}
    previous: Body | None = None
    for t in range(len(frames)):
        mask = labels[t] == label
        if mask.sum() < 64:  # 8 x 8 pixels: too small to find a body in
            previous = None
            continue
        body = None
        if previous is not None:
            body = _checked(net.landmarks(frames[t], previous.next_roi), mask)
        if body is None:
            body = _detected(net, frames[t], mask)
        if body is not None:
            bodies[t] = body
        previous = body
    return bodies


def _detected(net: PoseNet, frame: np.ndarray, mask: np.ndarray) -> Body | None:
    x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
    side = round(1.25 * max(w, h))
    tile = (x + w // 2 - side // 2, y + h // 2 - side // 2, side)
    for roi, _ in net.detect(frame, [tile], 0.4)[:3]:
        body = net.landmarks(frame, roi)
        body = _checked(net.landmarks(frame, body.next_roi), mask)
        if body is not None:
            return body
    return None


def _checked(body: Body, mask: np.ndarray) -> Body | None:
    if body.presence < 0.5:
        return None
    part, where = body.paste(*mask.shape)
    own = part > 0.5
    both = (own & mask[where]).sum()
    # The mask may hold more than the body (a bicycle), the body hardly more than the mask.
    return body if both >= 0.6 * max(own.sum(), 1) and both >= 0.25 * mask.sum() else None


def measure_people(
    net: PoseNet, frames: np.ndarray, labels: np.ndarray, count: int, K: np.ndarray, stature: float
) -> list[dict[int, tuple[Body, MetricBody]]]:
    """For each label 1..count, frame -> (body, its measure in the camera frame). K float64 [T,3,3]
    pixels, stature in metres."""
    size = labels.shape[1:]
    people = []
    for label in range(1, count + 1):
        found = {}
        for t, body in find_bodies(net, frames, labels, label).items():
            metric = measure_body(body, K[t], size, stature)
            if metric is not None:
                found[t] = (body, metric)
        people.append(found)
    return people
