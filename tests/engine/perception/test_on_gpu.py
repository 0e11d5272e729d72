"""The same networks on a GPU: `pytest -m gpu tests/engine/perception/test_on_gpu.py` on a machine that has one."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.perception.detector import Detection
from engine.perception.foundation import FoundationActor, from_dotlist
from tests.engine.perception.small import SMALL

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

FLOAT32 = [f"{model}.precision=fp32" for model in ("moge", "sam2", "depth_anything", "detector")]


def actor(weights_root, *words):
    made = FoundationActor(from_dotlist([*SMALL, f"weights.root={weights_root}", *words]))
    made.setup()
    detect = made.models["tracker"].finder.detect

    def scripted(clip, keyframes):
        detect(clip, keyframes)
        return [Detection(keyframes[0], (8.0, 8.0, 40.0, 60.0), "person", 0.9)]

    made.models["tracker"].finder.detect = scripted
    return made


@pytest.fixture
def reference(weights_root, noise_clip):
    return actor(weights_root, "device=cpu").process(noise_clip)


def near(found, expected, share):
    """Median distance of two clips' answers, in shares of the expected depth and of the disparity's range."""
    both = (found.geometry.depth > 0) & (expected.geometry.depth > 0)
    assert both.mean() > 0.9 * (expected.geometry.depth > 0).mean()
    depth = np.abs(np.log(found.geometry.depth[both] / expected.geometry.depth[both]))
    disparity = np.abs(found.depth.values - expected.depth.values) / np.ptp(expected.depth.values)
    assert np.median(depth) < share
    assert np.median(disparity) < share
    assert (found.tracks.labels == expected.tracks.labels).mean() > 1 - 5 * share


def test_float32_agrees_with_the_cpu(weights_root, noise_clip, reference):
    near(actor(weights_root, *FLOAT32).process(noise_clip), reference, 0.005)


def test_the_precisions_of_production_stay_near(weights_root, noise_clip, reference):
    made = actor(weights_root)
    near(made.process(noise_clip), reference, 0.03)
    assert made.frames.copies == 1
    assert next(made.models["geometry"].network.parameters()).is_cuda


def test_two_clips_at_once_say_what_they_say_alone(weights_root, noise_clip):
    made = actor(weights_root)
    clips = [noise_clip, replace(noise_clip, frames=noise_clip.frames[:, ::-1].copy())]
    alone = [made.process(clip) for clip in clips]
    with ThreadPoolExecutor(2) as pool:
        for a, b in zip(alone, pool.map(made.process, clips), strict=True):
            near(b, a, 1e-3)


def test_a_batch_that_does_not_fit_is_halved_and_the_memory_comes_back(weights_root, noise_clip):
    """The process may use little more than what is there already, so that a large batch runs out in earnest."""
    made = actor(weights_root, "moge.batch=64", "moge.tokens=3600")
    long = replace(noise_clip, frames=np.repeat(noise_clip.frames, 13, 0))
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 3 * 2**30) / total)
    try:
        found = made.geometry(long, None)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert made.models["geometry"].batches.size < 64
    assert np.isfinite(found.depth).all()
