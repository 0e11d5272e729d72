"""Depth codes give the depth back to the stated relative step, and 'no value' stays 'no value'."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import depth16


@pytest.mark.parametrize("step", [0.0, 1e-3, 1e-2])
@given(near=st.floats(0.05, 5), ratio=st.floats(1.5, 2000), seed=st.integers(0, 99))
def test_round_trip_is_within_half_a_step(step, near, ratio, seed):
    far = near * ratio
    depth = np.exp(np.random.default_rng(seed).uniform(np.log(near), np.log(far), (7, 9)))
    found = depth16.decode(depth16.encode(depth, near, far, step), near, far)
    level = np.log(ratio) / depth16.LEVELS
    assert np.abs(np.log(found / depth)).max() <= max(step, level) / 2 + 1e-6


def test_no_value_stays_no_value():
    depth = np.array([0, np.nan, np.inf, -1, 2])
    code = depth16.encode(depth, 1, 4, 1e-3)
    assert (code[:4] == 0).all()
    assert (depth16.decode(code, 1, 4)[:4] == 0).all()
    assert code[4] > 0


def test_codes_reach_both_ends():
    code = depth16.encode(np.array([1.0, 9.0]), 1, 9)
    assert code.tolist() == [1, 65535]


def test_range_holds_every_value_and_survives_emptiness():
    assert depth16.depth_range(np.zeros(3)) == (1.0, 2.0)
    near, far = depth16.depth_range(np.array([0, 2.0]), np.array([5.0]))
    assert (near, far) == (2.0, 5.0)
