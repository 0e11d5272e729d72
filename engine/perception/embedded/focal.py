"""The focal length that perception starts from, and where it comes from."""

from dataclasses import dataclass

import numpy as np

from engine.geometry.camera import intrinsics
from engine.options import option
from engine.types import Clip


@dataclass
class FocalOptions:
    prior_fov: float = option(
        60.0,
        "field of view along the source's longer side, degrees, where neither user nor metadata gives a focal length: "
        "a phone's main camera in video mode; 720 pixels at 832 wide",
    )
    prior_sigma: float = option(
        0.15,
        "standard deviation of the log of the prior focal length (video cameras and phones: about 50 to 75 degrees)",
    )


def prior_intrinsics(clip: Clip, options: FocalOptions) -> tuple[np.ndarray, str]:
    """K float64 [3,3] at the clip's size and its source: the clip's own, or the prior ("prior")."""
    if clip.K is not None:
        return np.asarray(clip.K, np.float64), clip.K_source
    height, width = clip.size
    # The crop keeps the source's pixels square; the source's longer side spans the field of view.
    view = clip.view
    source_focal = 0.5 * max(view.source_height, view.source_width) / np.tan(np.radians(options.prior_fov) / 2)
    return intrinsics(
        source_focal * width / view.crop_width, source_focal * height / view.crop_height, width, height
    ), "prior"
