"""The reference image of each subject: its best frame, cut out. (The paper asks for one frame with a mask; the score is
this project's.)"""

from dataclasses import dataclass

import cv2
import numpy as np

from engine.options import option
from engine.types import Clip, Identity, Scene


@dataclass
class IdentityOptions:
    margin: float = option(0.06, "transparent margin around the mask as a share of the box's longer side")
    feather: float = option(0.7, "standard deviation in pixels of the soft mask edge; 0 = hard")
    border_factor: float = option(0.3, "score factor for each side of the image that the mask touches")
    back_factor: float = option(0.6, "score factor of a frame that shows the subject's back; 1 from the front")
    overlap_factor: float = option(0.5, "score factor of a frame in which another subject touches the mask")


def pick_identities(clip: Clip, scene: Scene, options: IdentityOptions) -> tuple[Identity, ...]:
    """One Identity per subject in label order. Score of a frame in [0,1]:

        detection score x sqrt(area / largest area) x sharpness / greatest sharpness x border, back and overlap factors

    Sharpness is the standard deviation of the Laplacian inside the mask relative to that of the intensity. The back
    factor fades with the cosine of the torso's direction; where that is unknown it is the one of a side view. Raises
    ValueError for a subject without any mask.
    """
    return tuple(_pick(clip, scene, track, options) for track in scene.tracks.subjects)


def _pick(clip: Clip, scene: Scene, track, options: IdentityOptions) -> Identity:
    labels = scene.tracks.labels
    masks = labels == track.label
    area = masks.sum((1, 2))
    if not area.any():
        raise ValueError(f"{clip.key}: subject {track.label} ({track.category}) has no mask in any frame")
    towards = np.zeros(len(area)) if track.facing is None else -np.nan_to_num(track.facing[:, 2].astype(np.float64))
    sharp, factor = np.zeros(len(area)), options.back_factor + (1 - options.back_factor) * (1 + towards) / 2
    for t in np.flatnonzero(area):
        x0, y0, x1, y1 = _box(masks[t])
        around = np.s_[max(0, y0 - 2) : y1 + 2, max(0, x0 - 2) : x1 + 2]
        mask = masks[t][around]
        grey = cv2.cvtColor(clip.frames[t][around], cv2.COLOR_RGB2GRAY).astype(np.float32)
        inner = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
        if inner.sum() >= 8:
            sharp[t] = cv2.Laplacian(grey, cv2.CV_32F)[inner].std() / (grey[inner].std() + 8.0)
        factor[t] *= options.border_factor ** ((x0 == 0) + (y0 == 0) + (x1 == masks.shape[2]) + (y1 == masks.shape[1]))
        rim = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool) & ~mask
        if (labels[t][around][rim] > 0).any():
            factor[t] *= options.overlap_factor
    seen = area > 0
    found = np.where(seen, np.maximum(track.score, 0.05), 0)  # a masked frame between detections still counts
    score = found * np.sqrt(area / area.max()) * (sharp / max(sharp.max(), 1e-6) if sharp.any() else 1.0) * factor
    score[~seen] = -1
    best = int(np.argmax(score))
    box = _box(masks[best])
    return Identity(
        label=track.label,
        category=track.category,
        rgba=_cut(clip.frames[best], masks[best], box, options),
        frame=best,
        box=box,
        score=float(np.clip(score[best], 0, 1)),
    )


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1), half open, of a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _cut(frame: np.ndarray, mask: np.ndarray, box: tuple[int, int, int, int], options: IdentityOptions) -> np.ndarray:
    """RGBA uint8 [h,w,4]: the masked pixels, transparent elsewhere and beyond the image."""
    x0, y0, x1, y1 = box
    pad = round(options.margin * max(x1 - x0, y1 - y0))
    alpha = mask[y0:y1, x0:x1].astype(np.float32)
    rgba = np.zeros((y1 - y0, x1 - x0, 4), np.uint8)
    if options.feather:
        soft = cv2.GaussianBlur(np.pad(alpha, 3), (0, 0), options.feather)[3:-3, 3:-3]
        alpha = np.minimum(alpha, np.clip(2 * soft - 0.5, 0, 1))  # inwards only: no background comes along
    rgba[..., 3] = np.rint(255 * alpha)
    rgba[..., :3] = np.where(rgba[..., 3:] > 0, frame[y0:y1, x0:x1], 0)
    return np.pad(rgba, ((pad, pad), (pad, pad), (0, 0)))
