"""A folder in the DAVIS layout as a clip: frames *.jpg, masks *.png with the same stem (value > 0 = foreground)."""

import hashlib
from pathlib import Path

import cv2
import numpy as np

from engine.types import Clip, View


def read_davis(folder: Path, fps: float = 24.0) -> tuple[Clip, np.ndarray]:
    """(clip of at most the longest 1 + 4k frames, truth bool [T,H,W]). Raises ValueError without pairs of frames and
    masks, or when their sizes differ."""
    pairs = [(p, p.with_suffix(".png")) for p in sorted(folder.glob("*.jpg")) if p.with_suffix(".png").exists()]
    if not pairs:
        raise ValueError(f"{folder}: no frame NAME.jpg with a mask NAME.png beside it")
    pairs = pairs[: 1 + 4 * ((len(pairs) - 1) // 4)]
    frames = np.stack([cv2.cvtColor(cv2.imread(str(p)), cv2.COLOR_BGR2RGB) for p, _ in pairs])
    masks = [cv2.imread(str(m), cv2.IMREAD_UNCHANGED) for _, m in pairs]
    truth = np.stack([(m if m.ndim == 2 else m.max(-1)) > 0 for m in masks])
    if truth.shape != frames.shape[:3]:
        raise ValueError(f"{folder}: frames are {frames.shape[1:3]}, masks {truth.shape[1:]}")
    count, height, width = truth.shape
    name = hashlib.sha256(folder.name.encode()).hexdigest()[:12]
    view = View(height, width, 0.0, 0.0, float(width), float(height), height, width)
    index = np.arange(count)
    return Clip(f"{name}-0000", name, folder.as_posix(), frames, fps, index / fps, index, view), truth
