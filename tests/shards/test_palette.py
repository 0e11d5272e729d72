"""The subjects' colours."""

import numpy as np

from shards.palette import subject_colour


def test_the_first_ten_subjects_have_distinct_hues():
    colours = np.array([subject_colour(n) for n in range(1, 11)])
    gaps = np.abs(colours[:, None] - colours[None]).sum(-1) + 1000 * np.eye(10, dtype=int)
    assert gaps.min() > 60
    assert subject_colour(21) == subject_colour(1)
