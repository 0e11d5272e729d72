"""Camera motion without any depth: tracks in, poses up to scale, focal length and sparse points out."""

from dataclasses import dataclass, field

import numpy as np

from engine.geometry.tracks import PointTracks
from engine.types import CameraKind


@dataclass(frozen=True)
class Reconstruction:
    """A monocular reconstruction, up to scale: the median depth of the points seen in frame 0 is 1.

    c2w          float64 [T,4,4] camera-to-world, frame 0 is the identity
    K            float64 [3,3] pixels, with the refined focal length
    points       float64 [M,3] world points, one row per input track; NaN where a track was not reconstructed
    log_sigma    float64 [M] standard deviation of the log depth of each point (inf where not reconstructed)
    kind         "static", "rotation", "zoom", "general" or "failed"; the first three have zero translation and no points
    inliers      float64 [T] share of each frame's tracks within 2 px of their projection
    reprojection float64 [T] median reprojection error, pixels
    quality      numbers about the solution: focal_log_sigma, parallax_px, ...
    """

    c2w: np.ndarray
    K: np.ndarray
    points: np.ndarray
    log_sigma: np.ndarray
    kind: CameraKind
    inliers: np.ndarray
    reprojection: np.ndarray
    quality: dict[str, float] = field(default_factory=dict)


def solve_monocular(tracks: PointTracks, K: np.ndarray, focal_sigma: float = 0.15) -> Reconstruction:
    """Poses, focal length and sparse points from tracks alone.

    tracks       static points followed over the clip (`engine.geometry.tracks.track_points`)
    K            float64 [3,3] pixels: the prior of the intrinsics; only the focal length is refined
    focal_sigma  standard deviation of the log of the prior's focal length; 0 keeps it
    """
    raise NotImplementedError
