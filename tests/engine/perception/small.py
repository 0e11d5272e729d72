"""Small clips and the options of shrunken foundation perception, shared by its tests."""

import numpy as np

from engine.types import Clip, View

SMALL = [
    "moge.variant=vits",
    "moge.tokens=60",
    "sam2.variant=tiny",
    "sam2.side=256",
    "depth_anything.short_side=70",
    "tracker.verify=false",
    "weights.random=true",
]


def make_clip(frames: np.ndarray, K: np.ndarray | None = None) -> Clip:
    T, H, W, _ = frames.shape
    return Clip(
        key="0123456789ab-0000",
        video_id="0123456789ab",
        uri="memory://clip",
        frames=frames,
        fps=16.0,
        times=np.arange(T) / 16,
        source_frames=np.arange(T),
        view=View(H, W, 0, 0, W, H, H, W),
        K=K,
        K_source="user" if K is not None else "none",
    )
