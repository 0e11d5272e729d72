"""What a body says in metres: its distance by PnP of the world landmarks, its joints, where it faces and stands."""

from dataclasses import dataclass

import cv2
import numpy as np

from engine.perception.embedded.pose import FEET, LEFT_HIP, LEFT_SHOULDER, NOSE, RIGHT_HIP, RIGHT_SHOULDER, Body

# The landmark network's mean body: SQPnP of a ray-cast figure 1.8 m tall gave 0.88 of the true distance at 3 to 7 m
# and five headings, within 1.5 %; so its world landmarks are those of a person of 0.88 x 1.8 m.
MODEL_STATURE = 0.88 * 1.8


@dataclass(frozen=True)
class MetricBody:
    """A body in the camera frame of one frame, metres.

    joints      float64 [33,3] the landmarks
    visible     bool [33] seen inside the image
    facing      float64 [3] unit direction the chest points to
    upright     float64 [3] unit direction from the hips to the shoulders
    error       root mean square reprojection of the visible landmarks over the body's size in the image
    """

    joints: np.ndarray
    visible: np.ndarray
    facing: np.ndarray
    upright: np.ndarray
    error: float

    @property
    def distance(self) -> float:
        """z-depth of the middle between hips and shoulders, metres."""
        return float(self.joints[[LEFT_SHOULDER, RIGHT_SHOULDER, LEFT_HIP, RIGHT_HIP], 2].mean())

    @property
    def feet(self) -> np.ndarray:
        """Visible landmarks of the feet [k,3]; empty when the feet are not in the picture."""
        feet = np.array(FEET)
        return self.joints[feet[self.visible[feet]]]


def measure_body(body: Body, K: np.ndarray, size: tuple[int, int], stature: float) -> MetricBody | None:
    """PnP (SQPnP, Terzakis & Lourakis 2020) of the visible world landmarks, or None where it has no good answer.

    K float64 [3,3] pixels; size (height, width) of the image; stature in metres: the person's assumed height.
    """
    height, width = size
    points = body.points[:33].astype(np.float64)
    inside = ((points > 2) & (points < (width - 2, height - 2))).all(1)
    visible = inside & (body.visibility > 0.5)
    if visible.sum() < 6:  # PnP of a flat, partly wrong body needs more than its minimum of three
        return None
    world = body.world.astype(np.float64) * (stature / MODEL_STATURE)
    ok, rotation, translation = cv2.solvePnP(world[visible], points[visible], K, None, flags=cv2.SOLVEPNP_SQPNP)
    if not ok or not np.isfinite(translation).all() or translation[2, 0] <= 0.2:
        return None
    R = cv2.Rodrigues(rotation)[0]
    joints = world @ R.T + translation.T
    if (
        joints[visible, 2].min() <= 0.05 or np.trace(R) < 1
    ):  # world landmarks are camera-aligned: a turn over 90 degrees is wrong
        return None
    projected = joints[visible] @ K.T
    residual = projected[:, :2] / projected[:, 2:] - points[visible]
    extent = float(np.ptp(points[visible], axis=0).max())
    error = float(np.sqrt((residual**2).sum(1).mean()) / max(extent, 1))
    if error > 0.12:  # a tenth of the body: the landmarks do not fit one rigid person
        return None
    across = joints[LEFT_SHOULDER] - joints[RIGHT_SHOULDER] + joints[LEFT_HIP] - joints[RIGHT_HIP]
    upright = joints[[LEFT_SHOULDER, RIGHT_SHOULDER]].mean(0) - joints[[LEFT_HIP, RIGHT_HIP]].mean(0)
    # The chest looks along (towards the own left) x (up): for a person who faces the camera (facing -z) the own left
    # is the image's right (+x) and up is -y; x cross -y is -z.
    facing = np.cross(across, upright)
    return MetricBody(joints, visible, _unit(facing), _unit(upright), error)


def body_depth(metric: MetricBody, body: Body, height: int, width: int, step: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Smooth z-depth float32 on a coarse grid of the image, and the grid's pixel step: each place takes the mean of
    the joints' depths, weighted by the inverse square of the distance in the image.

    Landmarks lie inside the body; their depth serves for the visible surface (a hand's breadth too far).
    """
    h, w = -(-height // step), -(-width // step)
    v, u = np.mgrid[0:h, 0:w] * step + step / 2
    chosen = np.r_[NOSE, 11:33]
    uv, z = body.points[chosen], metric.joints[chosen, 2]
    softness = (0.05 * body.next_roi.size) ** 2
    weight = 1 / ((u[..., None] - uv[:, 0]) ** 2 + (v[..., None] - uv[:, 1]) ** 2 + softness)
    weight = weight**2
    return ((weight * z).sum(-1) / weight.sum(-1)).astype(np.float32), step


def _unit(v: np.ndarray) -> np.ndarray:
    return v / max(float(np.linalg.norm(v)), 1e-9)
