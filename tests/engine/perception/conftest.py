"""Foundation perception without downloads: random checkpoints in the official formats, and small clips."""

from pathlib import Path

import numpy as np
import pytest

from engine.perception.foundation import FoundationOptions, from_dotlist, weight_names
from engine.perception.random_weights import write
from engine.types import Clip
from tests.engine.perception.small import SMALL, make_clip


@pytest.fixture(scope="session")
def weights_root(tmp_path_factory) -> Path:
    """Random checkpoints of every model in its official file format (MoGe-2 ViT-S with a small neck, SAM 2.1 tiny)."""
    root = tmp_path_factory.mktemp("weights")
    write(
        root,
        [
            *weight_names(from_dotlist(SMALL)),
            "rtdetr-r50vd",
            "rf-detr-medium",
            "depth-anything-v2-metric-indoor-small",
        ],
        small=True,
    )
    return root


@pytest.fixture
def small_options(weights_root) -> FoundationOptions:
    return from_dotlist([*SMALL, f"weights.root={weights_root}"])


@pytest.fixture
def noise_clip() -> Clip:
    """Five textured frames of 72 x 96."""
    rng = np.random.default_rng(0)
    return make_clip(np.repeat(np.repeat(rng.integers(0, 256, (5, 9, 12, 3), dtype=np.uint8), 8, 1), 8, 2))
