"""Cameras and rigid motion as pure functions on arrays. OpenCV axes, pixel centres at +0.5, c2w poses.

Formulas: Hartley & Zisserman, Multiple View Geometry, ch. 6 (pinhole); Sola et al. 2018, "A micro Lie theory"
(SO(3) exponential and logarithm).
"""

import numpy as np
from scipy.spatial.transform import Rotation, Slerp


def intrinsics(focal_x: float, focal_y: float, width: int, height: int) -> np.ndarray:
    """K float64 [3,3] in pixels with the principal point at the image centre (width/2, height/2)."""
    return np.array([[focal_x, 0, width / 2], [0, focal_y, height / 2], [0, 0, 1]], np.float64)


def pixel_grid(height: int, width: int) -> np.ndarray:
    """float32 [H,W,2] image coordinates (u, v) of the pixel centres: (x + 0.5, y + 0.5)."""
    v, u = np.mgrid[0:height, 0:width].astype(np.float32) + 0.5
    return np.stack([u, v], -1)


def rays(K: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Directions [...,3] with z = 1 in the camera frame through image points uv [...,2] (pixels)."""
    x = (uv[..., 0] - K[0, 2] - K[0, 1] * (uv[..., 1] - K[1, 2]) / K[1, 1]) / K[0, 0]
    y = (uv[..., 1] - K[1, 2]) / K[1, 1]
    return np.stack([x, y, np.ones_like(x)], -1)


def unproject(K: np.ndarray, uv: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Camera-frame points [...,3] in metres of image points uv [...,2] (pixels) at z-depth z [...] (metres)."""
    return rays(K, uv) * z[..., None]


def unproject_depth(K: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Camera-frame points [H,W,3] of a z-depth map [H,W]; pixels without depth (0) give the origin."""
    return unproject(K, pixel_grid(*depth.shape), depth)


def project(K: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Image points uv [...,2] (pixels) and z-depth [...] of camera-frame points [...,3]. z <= 0 is behind the
    camera: the caller looks at z before it uses uv."""
    z = points[..., 2]
    safe = np.where(np.abs(z) < 1e-9, 1e-9, z)
    x, y = points[..., 0] / safe, points[..., 1] / safe
    uv = np.stack([K[0, 0] * x + K[0, 1] * y + K[0, 2], K[1, 1] * y + K[1, 2]], -1)
    return uv, z


def transform(pose: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply a rigid motion [4,4] to points [...,3]."""
    return points @ pose[:3, :3].T + pose[:3, 3]


def invert(pose: np.ndarray) -> np.ndarray:
    """Inverse of rigid motions [...,4,4] (c2w to w2c and back)."""
    out = np.zeros_like(pose)
    R = np.swapaxes(pose[..., :3, :3], -1, -2)
    out[..., :3, :3] = R
    out[..., :3, 3] = -(R @ pose[..., :3, 3:])[..., 0]
    out[..., 3, 3] = 1
    return out


def pose(R: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Rigid motions [...,4,4] from rotations [...,3,3] and translations [...,3]."""
    out = np.zeros((*np.shape(t)[:-1], 4, 4), np.result_type(R, t))
    out[..., :3, :3], out[..., :3, 3], out[..., 3, 3] = R, t, 1
    return out


def first_frame_world(c2w: np.ndarray) -> np.ndarray:
    """The same path [T,4,4] expressed in its first camera's frame, so that pose 0 is exactly the identity."""
    out = invert(c2w[0]) @ c2w
    out[0] = np.eye(4)
    return out


def look_at(eye: np.ndarray, target: np.ndarray, up: np.ndarray) -> np.ndarray:
    """c2w [4,4] of a camera at `eye` looking at `target`; `up` is the world's up direction (the image's -y)."""
    z = (target - eye) / np.linalg.norm(target - eye)
    x = np.cross(z, up)
    x /= np.linalg.norm(x)
    return pose(np.stack([x, np.cross(z, x), z], -1), np.asarray(eye, float))


def rotation_angle(R: np.ndarray) -> np.ndarray:
    """Angle [...] in radians of rotations [...,3,3]."""
    return np.linalg.norm(Rotation.from_matrix(R).as_rotvec(), axis=-1)


def interpolate_poses(times: np.ndarray, key_times: np.ndarray, key_c2w: np.ndarray) -> np.ndarray:
    """c2w [T,4,4] at `times` between key poses [M,4,4] at increasing `key_times`: slerp and linear centres.

    Times outside the keys take the nearest key.
    """
    if len(key_times) == 1:
        return np.repeat(key_c2w, len(times), 0)
    t = np.clip(times, key_times[0], key_times[-1])
    R = Slerp(key_times, Rotation.from_matrix(key_c2w[:, :3, :3]))(t).as_matrix()
    c = np.stack([np.interp(t, key_times, key_c2w[:, i, 3]) for i in range(3)], -1)
    return pose(R, c)
