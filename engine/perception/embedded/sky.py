"""Sky: bright or blue, without texture, joined to the top of the picture, and far."""

from dataclasses import dataclass

import cv2
import numpy as np

from engine.options import option


@dataclass
class SkyOptions:
    brightness: float = option(150.0, "least lightness of grey sky, 0..255")
    blue_brightness: float = option(120.0, "least lightness of blue sky, 0..255; banners and walls are darker")
    texture: float = option(6.0, "largest local contrast of sky, grey levels (standard deviation in 5 x 5 pixels)")
    open_top: float = option(
        0.6,
        "least share of the image's top row under which grey sky is believed: a window or a gap between trees is less",
    )
    blue_part: float = option(0.25, "least share of blue pixels that makes a smaller region sky without an open top")
    min_share: float = option(0.01, "least share of the image that a sky region must cover")


def find_sky(
    frames: np.ndarray, blocked: np.ndarray, inverse: np.ndarray, confidence: np.ndarray, far: float, o: SkyOptions
) -> np.ndarray:
    """bool [T,h,w] sky of a clip, frames uint8 [T,h,w,3] RGB.

    blocked bool [T,h,w]: never sky (people, pixels under the horizon); inverse, confidence float32 [T,h,w]: what stereo
    says; places that it sees clearly nearer than `far` (inverse depth) are no sky.

    What looks like sky is believed, or not, for the whole clip: by most of the frames that have it. A window or a pale
    wall must not be sky in some frames and a wall in others.
    """
    regions = [_region(*frame, far, o) for frame in zip(frames, blocked, inverse, confidence, strict=True)]
    votes = [believed for sky, believed in regions if sky.any()]
    if not votes or np.mean(votes) < 0.5:
        return np.zeros(blocked.shape, bool)
    return np.stack([sky for sky, _ in regions])


def _region(
    frame: np.ndarray, blocked: np.ndarray, inverse: np.ndarray, confidence: np.ndarray, far: float, o: SkyOptions
) -> tuple[np.ndarray, bool]:
    """bool [h,w] what looks like sky in one frame, and whether this frame believes it."""
    lab = cv2.cvtColor(frame, cv2.COLOR_RGB2LAB).astype(np.float32)
    L, a, b = lab[..., 0], lab[..., 1] - 128, lab[..., 2] - 128
    contrast = np.sqrt(np.maximum(cv2.blur(L * L, (5, 5)) - cv2.blur(L, (5, 5)) ** 2, 0))
    blue = (b < -6) & (a < 12) & (o.blue_brightness < L)
    pale = (o.brightness < L) & (np.hypot(a, b) < 14)
    calm = contrast < o.texture + 0.1 * np.maximum(L - o.brightness, 0)  # clouds are bright and have some contrast
    near = (confidence > 0.3) & (inverse > far)
    candidate = (blue | pale) & calm & ~blocked & ~near
    candidate = cv2.morphologyEx(candidate.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    count, region, stats, _ = cv2.connectedComponentsWithStats(candidate, connectivity=4)
    sky = np.zeros(candidate.shape, bool)
    for k in range(1, count):
        part = region == k
        touches = part[0].sum() >= 0.03 * part.shape[1]
        if touches and stats[k, cv2.CC_STAT_AREA] >= o.min_share * part.size:
            sky |= part
    # Pale and even is also a window or a white wall: a small region must be blue, a grey one must span the view.
    view = max(int((~blocked[0]).sum()), 1)
    if not sky.any():
        return sky, False
    believed = bool(sky[0].sum() >= o.open_top * view or blue[sky].mean() >= o.blue_part)
    # What lies over sky in the picture and is even is sky too: bands of another brightness, clouds.
    over = np.flip(np.logical_or.accumulate(np.flip(sky, 0), 0), 0)
    sky |= over & (contrast < 2 * o.texture) & (0.7 * o.brightness < L) & ~blocked & ~near
    # The region's rim takes the half-transparent border of trees and roofs.
    grown = cv2.dilate(sky.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    return sky | (grown & (o.brightness - 20 < L) & ~blocked & ~near), believed
