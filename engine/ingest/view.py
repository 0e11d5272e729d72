"""How a source frame becomes a clip frame: a centred crop of the wanted aspect, then a resize, with K to match.

Image coordinates are continuous with the top-left corner at (0, 0), so pixel centres lie at +0.5 and a crop by c
and a scale by s map u to (u - c) s with no half-pixel terms. "Source" is the upright image: rotation metadata
has been applied.
"""

import cv2
import numpy as np

from engine.types import View


def view_for(source_h: int, source_w: int, h: int, w: int, pixel_aspect: float = 1.0) -> View:
    """The largest centred crop of the source whose displayed aspect is w : h, resized to (h, w).

    `pixel_aspect` is the displayed width of a source pixel over its height (1 for square pixels). The crop is
    rounded to whole pixels so that it is a slice; what the rounding does to the aspect (at most one pixel)
    stands exactly in the two scales of `view_intrinsics`.
    """
    if min(source_h, source_w, h, w) < 1 or not pixel_aspect > 0:
        raise ValueError(f"view_for: sizes must be positive, found source {source_h}x{source_w} to {h}x{w}")
    scale = max(h / source_h, w / (source_w * pixel_aspect))
    crop_h = min(source_h, max(1, round(h / scale)))
    crop_w = min(source_w, max(1, round(w / (scale * pixel_aspect))))
    return View(
        source_height=source_h,
        source_width=source_w,
        crop_x=float((source_w - crop_w) // 2),
        crop_y=float((source_h - crop_h) // 2),
        crop_width=float(crop_w),
        crop_height=float(crop_h),
        height=h,
        width=w,
    )


def apply_view(image: np.ndarray, view: View, interpolation: str = "area") -> np.ndarray:
    """Crop and resize an image [h0,w0] or [h0,w0,C] to [view.height, view.width(, C)], same dtype.

    `interpolation`
        "area"     frames: every source pixel weighs by the area it covers; Lanczos (8x8) where the view enlarges.
                   The image must have the source's size.
        "nearest"  labels, and depth with holes: the value under each output pixel's centre.
        "linear"   smooth maps without holes; does not average when it shrinks.
    "nearest" and "linear" also take an image of another size that shows the same field of view (a depth map at
    half resolution): the crop is scaled to it.
    """
    x, y, crop_w, crop_h = _crop_on(image, view)
    size = (view.width, view.height)
    if interpolation == "area":
        if image.shape[:2] != (view.source_height, view.source_width):
            raise ValueError(
                f"apply_view: a frame of {view.source_height}x{view.source_width} was expected, "
                f"found {image.shape[0]}x{image.shape[1]}"
            )
        crop = image[int(y) : int(y + crop_h), int(x) : int(x + crop_w)]
        if crop.shape[:2] == (view.height, view.width):
            return np.ascontiguousarray(crop)
        shrinks = crop_w >= view.width and crop_h >= view.height
        return cv2.resize(crop, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LANCZOS4)
    u = x + (np.arange(view.width) + 0.5) * crop_w / view.width
    v = y + (np.arange(view.height) + 0.5) * crop_h / view.height
    if interpolation == "nearest":
        rows = np.clip(v.astype(int), 0, image.shape[0] - 1)
        columns = np.clip(u.astype(int), 0, image.shape[1] - 1)
        return image[rows[:, None], columns[None, :]]
    if interpolation == "linear":
        # cv2.remap puts pixel centres at whole numbers
        map_x, map_y = np.meshgrid((u - 0.5).astype(np.float32), (v - 0.5).astype(np.float32))
        return cv2.remap(image, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    raise ValueError(f"apply_view: interpolation must be area, nearest or linear, found {interpolation!r}")


def view_intrinsics(K: np.ndarray, view: View) -> np.ndarray:
    """K [...,3,3] in pixels of the source -> the same camera's K in pixels of the view, float64."""
    sx, sy = view.width / view.crop_width, view.height / view.crop_height
    to_view = np.array([[sx, 0, -sx * view.crop_x], [0, sy, -sy * view.crop_y], [0, 0, 1]], np.float64)
    return to_view @ np.asarray(K, np.float64)


def _crop_on(image: np.ndarray, view: View) -> tuple[float, float, float, float]:
    """The crop (x, y, width, height) in pixels of an image that shows the source's field of view."""
    sx, sy = image.shape[1] / view.source_width, image.shape[0] / view.source_height
    return view.crop_x * sx, view.crop_y * sy, view.crop_width * sx, view.crop_height * sy
