"""Batches that fit the device's memory, frames that are there once, and turns of two clips."""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.perception.compute import Batches, DeviceFrames, autocast, spread
from engine.perception.detector import Detection
from tests.engine.perception.small import make_clip


def test_a_failed_batch_is_gone_before_the_smaller_one_runs():
    """What the failed try held (its traceback keeps it alive) would else be in the way of the next try."""
    alive = []

    def run(part):
        gc.collect()
        assert not any(ref() is not None for ref in alive), "the failed batch still holds its tensors"
        held = torch.zeros(1000)
        alive.append(weakref.ref(held))
        if part.stop - part.start > 2:
            raise torch.OutOfMemoryError("synthetic")
        return part.stop - part.start

    batches = Batches(8, "moge")
    assert [n for _, n in batches(5, run)] == [2, 2, 1]
    assert batches.size == 2, "remembered"


def test_a_workspace_that_cannot_be_had_is_lack_of_memory_and_other_errors_are_not():
    def fails(message, most):
        def run(part):
            if part.stop - part.start > most:
                raise RuntimeError(message)
            return part

        return run

    batches = Batches(4, "sam2")
    assert len(list(batches(4, fails("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`", 1)))) == 4
    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(Batches(4, "sam2")(4, fails("shapes do not match", 1)))
    with pytest.raises(torch.OutOfMemoryError, match="sam2: one frame alone does not fit"):
        list(Batches(4, "sam2")(3, fails("CUDNN_STATUS_ALLOC_FAILED", 0)))
    with pytest.raises(ValueError, match=r"sam2\.batch: at least 1"):
        Batches(0, "sam2")


def test_frames_leave_the_device_with_their_clip(noise_clip):
    held = DeviceFrames(torch.device("meta"), clips=3)  # a device whose tensors do not share the array
    clips = [replace(noise_clip, frames=noise_clip.frames.copy()) for _ in range(2)]
    for clip in clips:
        assert held(clip) is held(clip)
    assert held.copies == 2
    del clips, clip
    gc.collect()
    held(noise_clip)
    assert len(held._held) == 1


def test_read_only_frames_are_taken_without_a_warning(noise_clip, recwarn):
    frames = noise_clip.frames.copy()
    frames.setflags(write=False)
    assert DeviceFrames(torch.device("cpu"))(replace(noise_clip, frames=frames)).dtype == torch.uint8
    assert not recwarn.list


@pytest.mark.parametrize(("precision", "expected"), [("auto", "fp32"), ("bf16", "bf16"), ("fp16", "fp16")])
def test_precision_on_a_cpu(precision, expected):
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    with autocast(torch.device("cpu"), precision, "bf16"):
        assert (torch.eye(2) @ torch.eye(2)).dtype == kinds[expected]


def test_spread_takes_both_ends():
    assert spread(81, 5) == [0, 20, 40, 60, 80]
    assert spread(3, 8) == [0, 1, 2]


def test_two_clips_at_once_say_what_they_say_alone(small_options, noise_clip):
    """Threads share the networks, one at a time in them; the answers are those of one after the other."""
    from engine.perception.foundation import FoundationActor

    actor = FoundationActor(replace(small_options, sam2=replace(small_options.sam2, side=64)))
    actor.setup()
    tracker = actor.models["tracker"]
    detect = tracker.finder.detect

    def scripted(clip, keyframes):
        detect(clip, keyframes)  # random weights detect nothing meaningful; the network runs all the same
        return [Detection(keyframes[0], (8.0, 8.0, 40.0, 60.0), "person", 0.9)]

    tracker.finder.detect = scripted
    clips = [make_clip(frames[:3].copy()) for frames in (noise_clip.frames, noise_clip.frames[:, ::-1])]
    alone = [actor.process(clip) for clip in clips]

    inside, most, lock = [0], [0], threading.Lock()

    def enter(*_):
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])

    def leave(*_):
        with lock:
            inside[0] -= 1

    networks = [tracker.finder.network, tracker.follower.network.image_encoder]
    networks += [tracker.follower.network.memory_attention, actor.models["geometry"].network]
    for network in [*networks, actor.models["depth"].network]:
        network.register_forward_pre_hook(enter)
        network.register_forward_hook(leave)
    start = threading.Barrier(2)

    def process(clip):
        start.wait(30)
        return actor.process(clip)

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(process, clips))
    assert (most[0], inside[0]) == (1, 0)
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a.tracks.labels, b.tracks.labels)
        np.testing.assert_array_equal(a.geometry.depth, b.geometry.depth)
        np.testing.assert_array_equal(a.depth.values, b.depth.values)
    assert not tracker.follower._features, "image features go with the clip"
