"""Camera: the class of the operator's motion, its poses and its metric scale, with how well they are known."""

from dataclasses import dataclass

import numpy as np

from engine.geometry.camera import first_frame_world, pose
from engine.geometry.classify import MotionOptions, classify_motion
from engine.geometry.odometry import chain_poses, robust_centre
from engine.geometry.tracks import TrackOptions, sample_depth, track_points
from engine.options import option
from engine.types import Camera, CameraKind, Clip, Scene


@dataclass
class CameraOptions:
    tracks: TrackOptions = option(TrackOptions(), "points followed over the clip")
    motion: MotionOptions = option(MotionOptions(), "classes of camera motion")
    inlier_px: float = option(2.0, "reprojection error up to which a pose explains a track, pixels")


def solve_camera(clip: Clip, scene: Scene, options: CameraOptions) -> Camera:
    """The camera of every frame, in metres, frame 0 the identity."""
    height, width = clip.size
    tracks = track_points(clip.frames, scene.static, options.tracks)
    K = np.median(scene.K.astype(np.float64), axis=0)
    motion = classify_motion(tracks, K, width, options.motion)
    depth = sample_depth(scene.depth, scene.static, tracks)
    count = len(clip.frames)
    kind: CameraKind = motion.kind
    K_t = np.repeat(K[None], count, 0)
    log_scale = np.zeros(count)
    if scene.geometry.c2w is not None and scene.geometry.c2w_exact:
        c2w = first_frame_world(scene.geometry.c2w.astype(np.float64))
    elif kind in ("static", "rotation", "zoom"):
        c2w = pose(motion.R, np.zeros((count, 3)))
        K_t[:, [0, 1], [0, 1]] *= motion.focal[:, None]
    else:
        path = chain_poses(tracks.uv, depth, K)
        log_scale = path.log_scale - robust_centre(path.log_scale)
        c2w = path.c2w.copy()
        c2w[:, :3, 3] *= np.exp(-robust_centre(path.log_scale))
    inliers, reprojection = np.ones(count), np.zeros(count)
    up = np.array([0, -1, 0]) if scene.geometry.up is None else scene.geometry.up
    return Camera(
        K=K_t.astype(np.float32),
        c2w=c2w.astype(np.float32),
        kind=kind,
        inliers=inliers.astype(np.float32),
        reprojection=reprojection.astype(np.float32),
        scale_t=np.exp(log_scale).astype(np.float32),
        log_scale_sigma=float(scene.geometry.log_scale_sigma),
        up=np.asarray(up, np.float32),
    )
