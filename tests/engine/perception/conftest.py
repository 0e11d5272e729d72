"""Foundation perception without downloads: random checkpoints in the official formats, and small clips."""

from pathlib import Path

import numpy as np
import pytest

from engine.perception.foundation import FoundationOptions, from_dotlist, weight_names
from engine.perception.random_weights import write
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


@pytest.fixture(scope="session")
def weights_root(tmp_path_factory) -> Path:
    """Random checkpoints of every model in its official file format (MoGe-2 ViT-S with a small neck, SAM 2.1 tiny)."""
    root = tmp_path_factory.mktemp("weights")
    write(
        root, [*weight_names(from_dotlist(SMALL)), "rtdetr-r50vd", "depth-anything-v2-metric-indoor-small"], small=True
    )
    return root


@pytest.fixture
def small_options(weights_root) -> FoundationOptions:
    return from_dotlist([*SMALL, f"weights.root={weights_root}"])


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


@pytest.fixture
def noise_clip() -> Clip:
    """Five textured frames of 72 x 96."""
    rng = np.random.default_rng(0)
    return make_clip(np.repeat(np.repeat(rng.integers(0, 256, (5, 9, 12, 3), dtype=np.uint8), 8, 1), 8, 2))
