"""Windows: lengths 1 + 4k, inside one shot, and every clip frame shows the source frame nearest in time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.ingest.options import ClipOptions
from engine.ingest.windows import source_frames, windows


def options(**changes) -> ClipOptions:
    return ClipOptions(**({"frames": 17, "min_frames": 9, "fps": 16.0} | changes))


@pytest.mark.parametrize(
    ("count", "fps", "expected"),
    [(17, 16, [17]), (81, 16, [17] * 4 + [13]), (16, 16, [13]), (8, 16, []), (33, 30, [17]), (34, 16, [17, 17])],
)
def test_lengths(count, fps, expected):
    found = windows(np.arange(count) / fps, [], options())
    assert [w.frames for w in found] == expected


def test_float32_times_do_not_cost_the_last_frame():
    times = (np.arange(81) / 16 + 1234.5).astype(np.float32).astype(float)
    assert [w.frames for w in windows(times - times[0], [], options(frames=81))] == [81]


def test_a_remainder_is_dropped_or_becomes_a_shorter_clip():
    times = np.arange(30) / 16
    assert [w.frames for w in windows(times, [], options())] == [17, 13]
    assert [w.frames for w in windows(times, [], options(min_frames=17))] == [17]


def test_stride_overlaps():
    found = windows(np.arange(33) / 16, [], options(stride=8))
    assert [round(w.start_s * 16) for w in found] == [0, 8, 16]


def test_cuts_and_gaps_are_never_crossed():
    times = np.concatenate([np.arange(20), np.arange(20) + 60]) / 16  # a pause of 2.5 s
    found = windows(times, [30], options())
    assert [(w.first, w.stop, w.frames) for w in found] == [(0, 20, 17), (20, 30, 9), (30, 40, 9)]


@given(st.lists(st.floats(0.005, 0.3), min_size=12, max_size=120), st.sampled_from([8.0, 16.0, 24.0]), st.data())
def test_every_clip_frame_is_the_nearest_of_its_shot(steps, fps, data):
    """Against brute force over the shot, at any frame rate and any jitter."""
    times = np.concatenate([[0.0], np.cumsum(steps)])
    cuts = data.draw(st.lists(st.integers(1, len(times) - 1), max_size=3))
    for window in windows(times, cuts, options(fps=fps, min_frames=5)):
        assert window.frames % 4 == 1
        assert not any(window.first < cut < window.stop for cut in cuts)
        wanted = window.start_s + np.arange(window.frames) / fps
        assert wanted[0] >= times[window.first] - 1e-9
        assert wanted[-1] <= times[window.stop - 1] + 0.02 / fps
        got = source_frames(times, window, fps)
        assert (np.diff(got) >= 0).all()
        shot = times[window.first : window.stop]
        best = np.abs(shot[None] - wanted[:, None]).min(1)
        np.testing.assert_allclose(np.abs(times[got] - wanted), best, atol=1e-12)
        assert got.min() >= window.first
        assert got.max() < window.stop
