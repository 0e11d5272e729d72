"""Headings: travel when moving, torso when not, unknown when neither; no jump where the angle wraps."""

import numpy as np

from engine.geometry.heading import TORSO, UNKNOWN, VELOCITY, angle, headings, moving

FPS = 16.0


def test_angle_convention():
    np.testing.assert_allclose(angle(np.array([[0, 0, 1.0], [1, 0, 0], [0, 5, -1]])), [0, np.pi / 2, np.pi])


def test_a_full_circle_is_followed_through_the_wrap():
    turn = np.linspace(0, 2 * np.pi, 81)
    velocity = np.stack([np.sin(turn), 0 * turn, np.cos(turn)], -1)
    heading, source = headings(velocity, None, FPS, 0.5, 0.3, 2.0)
    assert (source == VELOCITY).all()
    off = np.angle(np.exp(1j * (heading - turn)))
    assert np.abs(off[8:-8]).max() < 1e-5
    assert np.abs(off).max() < 0.15


def test_torso_decides_while_standing_and_nothing_where_it_is_unknown():
    velocity = np.zeros((40, 3))
    velocity[:20, 2] = 1.0
    facing = np.tile([1.0, 0, 0], (40, 1))
    facing[30:] = np.nan
    heading, source = headings(velocity, facing, FPS, 0.5, 0.3, 1.0)
    assert (source[:20] == VELOCITY).all()
    assert (source[20:30] == TORSO).all()
    assert (source[30:] == UNKNOWN).all()
    np.testing.assert_allclose(heading[[5, 26]], [0, np.pi / 2], atol=1e-3)
    assert np.isnan(heading[30:]).all()
    alone, source = headings(velocity, None, FPS, 0.5, 0.3, 1.0)
    assert np.isnan(alone[20:]).all()
    assert (source[20:] == UNKNOWN).all()


def test_hysteresis_does_not_flicker_between_the_thresholds():
    speed = np.array([0.1, 0.4, 0.6, 0.4, 0.35, 0.45, 0.2, 0.4, 0.45])
    np.testing.assert_array_equal(moving(speed, 0.5, 0.3), [0, 0, 1, 1, 1, 1, 0, 0, 0])
