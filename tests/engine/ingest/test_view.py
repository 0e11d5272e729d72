"""A view and its intrinsics are one thing: points of the scene land on the same pixels by either way."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.geometry.camera import intrinsics, project
from engine.ingest.view import apply_view, view_for, view_intrinsics

SIZES = st.integers(16, 400)


@given(SIZES, SIZES, SIZES, SIZES, st.floats(0.5, 2.0))
def test_crop_is_centred_inside_and_has_the_wanted_aspect(source_h, source_w, h, w, aspect):
    view = view_for(source_h, source_w, h, w, aspect)
    right = source_w - view.crop_x - view.crop_width
    below = source_h - view.crop_y - view.crop_height
    assert view.crop_x >= 0
    assert view.crop_y >= 0
    assert abs(right - view.crop_x) <= 1
    assert abs(below - view.crop_y) <= 1
    # one of the two sides is whole, the other is within a pixel of the displayed aspect w : h
    assert view.crop_width == source_w or view.crop_height == source_h
    wide = view.crop_height * w / h / aspect
    high = view.crop_width * aspect * h / w
    assert abs(view.crop_width - wide) <= 1 or abs(view.crop_height - high) <= 1


@pytest.mark.parametrize(
    ("source", "size"), [((360, 640), (120, 208)), ((96, 128), (120, 208)), ((300, 200), (64, 112))]
)
def test_bright_points_land_where_the_adjusted_intrinsics_project_them(source, size):
    """Draw a soft blob where K projects a point, make the view, find its centre of mass: K of the view says where."""
    height, width = source
    K = intrinsics(0.9 * width, 0.8 * width, width, height)
    K[0, 2] += 3.3
    K[1, 2] -= 2.6
    view = view_for(height, width, *size)
    K_view = view_intrinsics(K, view)
    v, u = np.mgrid[0:height, 0:width] + 0.5
    for x, y in ((0.0, 0.0), (0.05, -0.08), (-0.11, 0.06)):
        point = np.array([2 * x, 2 * y, 2.0])
        (u0, v0), _ = project(K, point)
        image = 255 * np.exp(-((u - u0) ** 2 + (v - v0) ** 2) / (2 * (0.03 * width) ** 2))
        seen = apply_view(image.astype(np.float32), view)
        rows, columns = np.mgrid[0 : size[0], 0 : size[1]] + 0.5
        found = np.array([(seen * columns).sum(), (seen * rows).sum()]) / seen.sum()
        wanted, _ = project(K_view, point)
        np.testing.assert_allclose(found, wanted, atol=0.15)


def test_square_pixels_after_a_view_of_wide_pixels():
    """Pixels shown twice as wide as high: fx in source pixels is half of fy, and the view makes them equal."""
    K = intrinsics(100, 200, 160, 240)
    K_view = view_intrinsics(K, view_for(240, 160, 120, 160, pixel_aspect=2.0))
    assert K_view[0, 0] == pytest.approx(K_view[1, 1], rel=0.01)


def test_shrinking_keeps_the_mean_and_a_constant_stays_constant():
    image = np.random.default_rng(0).integers(0, 256, (360, 624, 3), np.uint8)
    small = apply_view(image, view_for(360, 624, 120, 208))
    assert small.dtype == np.uint8
    assert abs(small.mean() - image.mean()) < 0.5
    flat = np.full((97, 131, 3), 77, np.uint8)
    assert (apply_view(flat, view_for(97, 131, 200, 300)) == 77).all()


def test_labels_keep_their_values_and_follow_a_map_of_half_size():
    labels = np.random.default_rng(1).integers(0, 4, (60, 104), np.uint8)
    view = view_for(120, 208, 40, 72)
    assert set(np.unique(apply_view(labels, view, "nearest"))) <= {0, 1, 2, 3}
    # a linear ramp of the field of view, sampled at half size, reads the same coordinates
    _, u = np.mgrid[0:60, 0:104].astype(np.float32) + 0.5
    ramp = apply_view(2 * u, view, "linear")
    wanted = view.crop_x + (np.arange(72) + 0.5) * view.crop_width / 72
    np.testing.assert_allclose(ramp[20], wanted, atol=2 / 32)  # OpenCV interpolates in steps of 1/32 pixel, of 2 here


def test_errors_name_what_was_found():
    view = view_for(100, 100, 50, 50)
    with pytest.raises(ValueError, match="100x100 was expected, found 90x100"):
        apply_view(np.zeros((90, 100, 3), np.uint8), view)
    with pytest.raises(ValueError, match="found 'cubic'"):
        apply_view(np.zeros((100, 100, 3), np.uint8), view, "cubic")
    with pytest.raises(ValueError, match="must be positive"):
        view_for(0, 10, 5, 5)
