"""Short gaps of a subject's masks, bridged by flow: a red textured box slides over a grey textured wall."""

import cv2
import numpy as np
import pytest

from engine.perception.embedded.bridge import bridge_gaps
from engine.perception.embedded.flow import neighbour_flow, shrink
from engine.perception.embedded.link import overlap

T, H, W = 9, 120, 160


def textured(rng, height: int, width: int, colour: tuple[int, int, int]) -> np.ndarray:
    grain = cv2.GaussianBlur(rng.normal(size=(height, width)), (0, 0), 1.5)
    return np.clip(np.array(colour) + 40 * grain[..., None] / grain.std(), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def film() -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """frames, exact labels, flows at half size; 4 pixels a frame to the right."""
    rng = np.random.default_rng(0)
    wall, box = textured(rng, H, W, (110, 120, 110)), textured(rng, 60, 30, (190, 60, 50))
    frames, labels = np.repeat(wall[None], T, 0), np.zeros((T, H, W), np.uint8)
    for t in range(T):
        where = np.s_[30:90, 40 + 4 * t : 70 + 4 * t]
        frames[t][where], labels[t][where] = box, 2
    return frames, labels, neighbour_flow(np.stack([cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in shrink(frames, 2)]))


def test_a_gap_is_filled_where_the_subject_is(film):
    frames, exact, flows = film
    lost = exact.copy()
    lost[3:6] = 0
    found = bridge_gaps(lost, frames, flows, 3, 0.45)
    assert min(overlap(found[t] == 2, exact[t] == 2) for t in range(3, 6)) > 0.85
    assert (found[[0, 1, 2, 6, 7, 8]] == exact[[0, 1, 2, 6, 7, 8]]).all()
    assert not lost[3:6].any()  # the argument stays as it was


def test_the_first_and_last_frames_are_filled(film):
    frames, exact, flows = film
    lost = exact.copy()
    lost[:2] = lost[7:] = 0
    found = bridge_gaps(lost, frames, flows, 3, 0.45)
    assert min(overlap(found[t] == 2, exact[t] == 2) for t in (0, 1, 7, 8)) > 0.7


def test_a_longer_gap_stays(film):
    frames, exact, flows = film
    lost = exact.copy()
    lost[3:6] = 0
    assert (bridge_gaps(lost, frames, flows, 2, 0.45) == lost).all()
    assert (bridge_gaps(lost, frames, flows, 0, 0.45) == lost).all()


def test_pixels_of_others_stay_theirs(film):
    frames, exact, flows = film
    lost = exact.copy()
    lost[4] = 0
    lost[4, 50:60, 40:100] = 1
    found = bridge_gaps(lost, frames, flows, 3, 0.45)
    assert (found[4, 50:60, 40:100] == 1).all()
    assert (found[4] == 2).sum() > 0.7 * (exact[4] == 2).sum()


def test_what_hides_the_subject_is_not_painted(film):
    frames, exact, _ = film
    hidden, lost = frames.copy(), exact.copy()
    hidden[4, 20:100, 50:95] = textured(np.random.default_rng(1), 80, 45, (40, 80, 200))
    lost[4] = 0
    flows = neighbour_flow(np.stack([cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in shrink(hidden, 2)]))
    assert (bridge_gaps(lost, hidden, flows, 3, 0.45)[4] == 0).all()
