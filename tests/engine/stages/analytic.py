"""A small world with an exact answer at every pixel: a textured room with two balls, walked by a camera past a subject.

Everything is ray-cast analytically in float64, so depth, masks and colours have no rasterisation error.
"""

import numpy as np

from engine.geometry.camera import first_frame_world, intrinsics, look_at, pixel_grid, rays
from engine.types import Camera, Clip, GeometryEstimate, Scene, SubjectTrack, Tracks, View

UP = np.array([0.0, -1.0, 0.0])
BALLS = ((np.array([-0.9, 0.9, 4.0]), 0.6), (np.array([1.6, 0.7, 5.0]), 0.8))  # centre, radius; metres
ROOM = np.array([[-3.0, -1.5, -4.0], [3.0, 1.5, 7.0]])  # low and high corner; y points down
BODY = np.array([0.25, 0.85, 0.25])  # the subject's half axes


def _texture(p: np.ndarray) -> np.ndarray:
    """Smooth colour [...,3] in 0..255 of world points: a sum of waves with periods of 0.3 to 1.5 m."""
    waves = [np.sin(p @ np.array(k) + i) for i, k in enumerate([(9, 4, 7), (-5, 12, 3), (4, -6, 14), (18, 9, -11)])]
    mix = np.array([[50, 20, 25, 15], [20, 45, 30, 15], [25, 30, 45, 15]], float)
    return np.clip(128 + np.stack(waves, -1) @ mix.T, 0, 255)


def _ball(origin, direction, centre, radii):
    """Distance along the ray (in units of its z) to an axis-aligned ellipsoid; inf where it misses."""
    o, d = (origin - centre) / radii, direction / radii
    a, b, c = (d * d).sum(-1), (d * o).sum(-1), (o * o).sum(-1) - 1
    inside = b * b - a * c
    t = (-b - np.sqrt(np.maximum(inside, 0))) / a
    return np.where((inside > 0) & (t > 0), t, np.inf)


def body_centre(t: float) -> np.ndarray:
    """World position of the subject at clip time t in 0..1: it walks from left to right."""
    return np.array([-1.2 + 2.4 * t, 0.6, 3.2])


def cast(K: np.ndarray, c2w: np.ndarray, height: int, width: int, time: float | None):
    """(rgb uint8, depth float64, subject bool) of one frame; time None = without the subject."""
    direction = rays(K, pixel_grid(height, width).astype(float)) @ c2w[:3, :3].T
    origin = c2w[:3, 3]
    with np.errstate(divide="ignore"):
        walls = np.where(direction > 0, ROOM[1] - origin, ROOM[0] - origin) / direction
    depth = np.nanmin(np.where(walls > 0, walls, np.inf), -1)
    for centre, radius in BALLS:
        depth = np.minimum(depth, _ball(origin, direction, centre, np.full(3, radius)))
    subject = np.zeros(depth.shape, bool)
    if time is not None:
        near = _ball(origin, direction, body_centre(time), BODY)
        subject = near < depth
        depth = np.minimum(depth, near)
    rgb = _texture(origin + direction * depth[..., None])
    rgb[subject] = rgb[subject] * 0.3 + np.array([150, 20, 20])
    return rgb.astype(np.uint8), depth, subject


def world(frames: int = 17, height: int = 120, width: int = 208, fps: float = 16.0, subject: bool = True):
    """(clip, scene, camera) with exact truth; the world is the first camera's frame."""
    K = intrinsics(0.85 * width, 0.85 * width, width, height)
    s = np.linspace(0, 1, frames)
    paths = [look_at(np.array([-0.5 + a, -0.1 * np.sin(3 * a), 0.5 * a]), np.array([0.2 * a, 0.1, 4]), UP) for a in s]
    c2w = np.stack(paths)
    pictures = [cast(K, pose, height, width, a if subject else None) for pose, a in zip(c2w, s, strict=True)]
    rgb, depth, labels = (np.stack(x) for x in zip(*pictures, strict=True))
    labels = labels.astype(np.uint8)
    track = SubjectTrack(1, "person", np.full(frames, 0.9, np.float32))
    tracks = Tracks(labels, labels > 0, (track,) if subject else ())
    Ks = np.tile(K, (frames, 1, 1)).astype(np.float32)
    depth = depth.astype(np.float32)
    sky, sure = np.zeros(depth.shape, bool), np.ones(depth.shape, np.float32)
    scene = Scene(
        K=Ks,
        depth=depth,
        confidence=sure,
        sky=sky,
        static=_static(depth, labels > 0),
        tracks=tracks,
        geometry=GeometryEstimate(Ks, depth, sky, sure),
        quality={"depth_flicker": 0.0},
    )
    one = np.ones(frames, np.float32)
    camera = Camera(
        K=Ks,
        c2w=first_frame_world(c2w).astype(np.float32),
        kind="general",
        inliers=one,
        reprojection=0 * one,
        scale_t=one,
        log_scale_sigma=0.05,
        up=np.array([0, -1, 0], np.float32),
    )
    clip = Clip(
        key="0123456789ab-0000",
        video_id="0123456789ab",
        uri="analytic",
        frames=rgb,
        fps=fps,
        times=np.arange(frames) / fps,
        source_frames=np.arange(frames),
        view=View(height, width, 0, 0, width, height, height, width),
    )
    return clip, scene, camera, c2w[0]


def _static(depth: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """Pixels whose 3 x 3 neighbourhood holds neither the subject nor a depth step of 5 %."""
    import cv2

    kernel = np.ones((3, 3), np.uint8)
    out = np.empty(depth.shape, bool)
    for t, d in enumerate(depth):
        step = cv2.dilate(d, kernel) - cv2.erode(d, kernel)
        out[t] = (step < 0.05 * d) & ~cv2.dilate(moving[t].astype(np.uint8), kernel).astype(bool)
    return out
