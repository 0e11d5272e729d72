"""From presentation times and cuts to clips: which source frame every clip frame shows. Pure functions."""

import itertools
from dataclasses import dataclass

import numpy as np

from engine.ingest.options import ClipOptions

EPSILON = 0.02  # of a clip frame: float32 presentation times must not cost a clip its last frame


@dataclass(frozen=True)
class Window:
    """One clip of a video: start in seconds after the first frame, number of frames, source frames [first, stop)
    of its shot."""

    start_s: float
    frames: int
    first: int
    stop: int


def windows(times: np.ndarray, cuts: list[int], options: ClipOptions) -> list[Window]:
    """All clips of a video, in order of time.

    times  float64 [M] seconds, increasing
    cuts   first frames of new shots; a pause longer than options.max_gap_s cuts too

    A clip never crosses a cut and every clip frame lies within its shot's first and last presentation time.
    """
    gaps = 1 + np.flatnonzero(np.diff(times) > options.max_gap_s)
    edges = sorted({0, len(times), *cuts, *gaps.tolist()})
    least = min(options.min_frames, options.frames)
    stride = options.stride or options.frames
    out = []
    for first, stop in itertools.pairwise(edges):
        span = times[stop - 1] - times[first]
        available = int(np.floor(span * options.fps + EPSILON)) + 1
        for start in range(0, available, stride):
            frames = 1 + (min(options.frames, available - start) - 1) // 4 * 4
            if frames >= least:
                out.append(Window(float(times[first] + start / options.fps), frames, first, stop))
            if start + options.frames >= available:
                break
    return out


def source_frames(times: np.ndarray, window: Window, fps: float) -> np.ndarray:
    """int64 [T]: for clip frame k the source frame of the shot nearest in time to start_s + k / fps (the earlier
    one of two equally near)."""
    wanted = window.start_s + np.arange(window.frames) / fps
    shot = times[window.first : window.stop]
    after = np.clip(np.searchsorted(shot, wanted), 1, max(1, len(shot) - 1))
    if len(shot) == 1:
        return np.full(window.frames, window.first, np.int64)
    before = after - 1
    nearer = np.where(wanted - shot[before] <= shot[after] - wanted, before, after)
    return (window.first + nearer).astype(np.int64)
