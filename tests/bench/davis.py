"""A folder with masks in the DAVIS layout as a clip.

Either frames NAME.jpg with masks NAME.png beside them (value > 0 = foreground), or `video.mp4` with `mask.mp4` of the
same frames (> 127: its compression is lossy).
"""

import hashlib
from pathlib import Path

import cv2
import numpy as np

from engine.types import Clip, View


def read_davis(folder: Path, fps: float = 24.0) -> tuple[Clip, np.ndarray]:
    """(clip of at most the longest 1 + 4k frames, truth bool [T,H,W]). Raises ValueError without frames and masks, or
    when their numbers or sizes differ."""
    images = [p for p in sorted(folder.glob("*.jpg")) if p.with_suffix(".png").exists()]
    if images:
        pictures = [cv2.imread(str(p)) for p in images]
        masks = [cv2.imread(str(p.with_suffix(".png")), cv2.IMREAD_UNCHANGED) for p in images]
        truth = np.stack([(m if m.ndim == 2 else m.max(-1)) > 0 for m in masks])
    elif (folder / "video.mp4").exists() and (folder / "mask.mp4").exists():
        pictures = _read(folder / "video.mp4")
        truth = np.stack([m[..., 0] > 127 for m in _read(folder / "mask.mp4")])
    else:
        raise ValueError(f"{folder}: neither frames NAME.jpg with masks NAME.png nor video.mp4 with mask.mp4")
    keep = 1 + 4 * ((len(pictures) - 1) // 4)
    frames = np.stack([cv2.cvtColor(p, cv2.COLOR_BGR2RGB) for p in pictures])
    if truth.shape != frames.shape[:3]:
        raise ValueError(f"{folder}: frames are {frames.shape[:3]}, masks {truth.shape}")
    frames, truth = frames[:keep], truth[:keep]
    count, height, width = truth.shape
    name = hashlib.sha256(folder.name.encode()).hexdigest()[:12]
    view = View(height, width, 0.0, 0.0, float(width), float(height), height, width)
    index = np.arange(count)
    return Clip(f"{name}-0000", name, folder.as_posix(), frames, fps, index / fps, index, view), truth


def _read(path: Path) -> list[np.ndarray]:
    """All frames of a video, uint8 [H,W,3] BGR."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        frames.append(read[1])
    return frames
