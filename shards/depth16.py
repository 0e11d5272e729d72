"""Depth in 16 bits, invertible: logarithmic codes over a stored range.

code 0 = no value; code q in 1..65535 means z = near * (far / near) ** ((q - 1) / 65534). The relative step is
constant: ln(far / near) / 65534, that is 0.011 % over a range of 0.1 m to 100 m.
"""

import numpy as np

LEVELS = 65534


def depth_range(*depths: np.ndarray) -> tuple[float, float]:
    """(near, far) metres that hold every positive value of the maps; (1, 2) when there is none."""
    present = [d[d > 0] for d in depths]
    present = [d for d in present if d.size]
    if not present:
        return 1.0, 2.0
    near, far = min(float(d.min()) for d in present), max(float(d.max()) for d in present)
    return near, max(far, near * 1.001)


def encode(depth: np.ndarray, near: float, far: float, step: float = 0.0) -> np.ndarray:
    """uint16 codes of z-depth in metres (0 or non-finite = no value). Values outside [near, far] are clipped.

    `step` is the relative resolution asked for: codes are rounded to every k-th level so that neighbours differ by
    at most `step`, which compresses far better and is read by the same formula. 0 uses every level.
    """
    valid = np.isfinite(depth) & (depth > 0)
    span = float(np.log(far / near))
    every = max(1, int(step * LEVELS / span))
    log = np.log(np.where(valid, np.clip(depth, near, far), near) / near) / span
    return np.where(valid, 1 + np.minimum(every * np.rint(log * (LEVELS / every)), LEVELS), 0).astype(np.uint16)


def decode(code: np.ndarray, near: float, far: float) -> np.ndarray:
    """float32 z-depth in metres of the codes, 0 = no value."""
    table = near * (far / near) ** (np.arange(-1, LEVELS + 1) / LEVELS)
    table[0] = 0
    return table.astype(np.float32)[code]
