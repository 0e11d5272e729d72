"""Where a subject faces: its direction of travel when it moves, its torso when it does not.

A heading is atan2(d_x, d_z) of a direction d in world axes, radians: 0 looks along +z, pi/2 along +x.

The paper derives facing from "the instantaneous velocity" and names the lack of an explicit angle as its limit. The
angle's convention, the torso at low speed, hysteresis and smoothing are this project's.
"""

import numpy as np

UNKNOWN, VELOCITY, TORSO = 0, 1, 2  # shards.schema.HEADING_SOURCES


def angle(direction: np.ndarray) -> np.ndarray:
    """Heading [...] of directions [...,3] in world axes."""
    return np.arctan2(direction[..., 0], direction[..., 2])


def moving(speed: np.ndarray, start: float, stop: float) -> np.ndarray:
    """bool [T]: a subject starts to move above `start` and stops below `stop` (same unit as speed [T])."""
    out = np.zeros(len(speed), bool)
    state = bool(len(speed)) and speed[0] >= (start + stop) / 2
    for t, s in enumerate(speed):
        state = s >= stop if state else s > start
        out[t] = state
    return out


def smooth_directions(direction: np.ndarray, sigma: float) -> np.ndarray:
    """Directions [T,2] averaged over the known neighbours in time, Gaussian of `sigma` frames; NaN stays NaN."""
    known = np.isfinite(direction).all(-1)
    gap = np.arange(len(direction))[:, None] - np.arange(len(direction))[None]
    kernel = np.exp(-0.5 * (gap / sigma) ** 2) * known
    out = kernel @ np.where(known[:, None], direction, 0)
    return np.where(known[:, None], out, np.nan)


def headings(
    velocity: np.ndarray, facing: np.ndarray | None, fps: float, start: float, stop: float, sigma: float
) -> tuple[np.ndarray, np.ndarray]:
    """Heading float64 [T] (radians in [-pi, pi], NaN unknown) and its source uint8 [T].

    velocity [T,3] m/s and facing [T,3] (unit torso direction, NaN unknown; or None) in world axes. Travel decides
    above the speeds `start` / `stop` (m/s, hysteresis), the torso below, and nothing where the torso is unknown.
    Unit vectors, not angles, are smoothed (`sigma` frames), so there is no jump at +-pi.
    """
    flat = velocity[:, [0, 2]]
    speed = np.linalg.norm(flat, axis=-1)
    travel = moving(speed, start, stop)
    direction = np.full((len(velocity), 2), np.nan)
    source = np.full(len(velocity), UNKNOWN, np.uint8)
    direction[travel] = flat[travel] / np.maximum(speed[travel, None], 1e-9)
    source[travel] = VELOCITY
    if facing is not None:
        torso = facing[:, [0, 2]]
        length = np.linalg.norm(torso, axis=-1)
        use = ~travel & (length > 1e-3)  # NaN compares False
        direction[use] = torso[use] / length[use, None]
        source[use] = TORSO
    smooth = smooth_directions(direction, sigma)
    return np.arctan2(smooth[:, 0], smooth[:, 1]), source
