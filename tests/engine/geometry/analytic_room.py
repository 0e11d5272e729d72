"""A textured room with boxes in it, ray-cast in closed form: images and exact depth for any pose."""

import cv2
import numpy as np

from engine.geometry.camera import look_at, pixel_grid, rays
from engine.types import Clip, GeometryEstimate, Tracks, View


def make_room(seed: int = 0) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Axis-aligned boxes (low [3], high [3], texture uint8 [512,512,3]); the first is the room seen from inside."""
    rng = np.random.default_rng(seed)
    boxes = [(np.array([-4.0, -2.5, -2.0]), np.array([4.0, 1.0, 12.0]), _texture(rng))]
    for _ in range(8):
        centre = np.array([rng.uniform(-3, 3), 0, rng.uniform(4, 11)])
        half = rng.uniform(0.2, 0.6, 3)
        height = rng.uniform(0.5, 2.0)
        low, high = centre - half, centre + half
        low[1], high[1] = 1.0 - height, 1.0
        boxes.append((low, high, _texture(rng)))
    return boxes


def _texture(rng: np.random.Generator) -> np.ndarray:
    """Noise of several octaves: corners to track at every distance."""
    out = np.zeros((512, 512, 3), np.float32)
    for size, gain in ((8, 60), (32, 50), (128, 40), (512, 15)):
        out += gain * cv2.resize(
            rng.normal(size=(size, size, 3)).astype(np.float32), (512, 512), interpolation=cv2.INTER_CUBIC
        )
    return np.clip(128 + out, 0, 255).astype(np.uint8)


def render(boxes: list, c2w: np.ndarray, K: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(rgb uint8 [H,W,3], exact z-depth float32 [H,W]) seen from c2w [4,4]."""
    ray = (rays(K, pixel_grid(height, width).astype(np.float64)) @ c2w[:3, :3].T).astype(
        np.float32
    )  # camera z of a ray step is 1: t = z
    origin = c2w[:3, 3].astype(np.float32)
    depth = np.full((height, width), np.inf, np.float32)
    rgb = np.zeros((height, width, 3), np.uint8)
    inverse = 1 / np.where(np.abs(ray) < 1e-9, 1e-9, ray)
    for i, (low, high, texture) in enumerate(boxes):
        first, second = (low - origin) * inverse, (high - origin) * inverse
        enter, leave = np.minimum(first, second).max(-1), np.maximum(first, second).min(-1)
        t = leave if i == 0 else enter
        hit = (t > 1e-3) & (t < depth) & (enter < leave)
        depth[hit] = t[hit]
        point = origin + ray[hit] * t[hit, None]
        axis = np.argmin(np.minimum(np.abs(point - low), np.abs(point - high)), -1)
        plane = np.array([[1, 2], [0, 2], [0, 1]])[axis]
        uv = (np.take_along_axis(point, plane, 1) * 160 + 37 * axis[:, None]) % 511  # 160 texels a metre
        maps = np.zeros((2, height, width), np.float32)
        maps[:, hit] = uv.T
        rgb[hit] = cv2.remap(texture, maps[0], maps[1], cv2.INTER_LINEAR)[hit]
    return rgb, np.where(np.isfinite(depth), depth, 0)


def walk(count: int, seed: int = 0, speed: float = 0.06) -> np.ndarray:
    """c2w [T,4,4] of someone walking forward with a bobbing, swaying camera; frame 0 is NOT the identity."""
    rng = np.random.default_rng(seed)
    t = np.arange(count)
    phase = rng.uniform(0, 6, 6)
    x = 0.3 * np.sin(t / 25 + phase[0]) + 0.02 * np.sin(0.8 * t + phase[1])
    y = 0.02 * np.sin(0.8 * t + phase[2])
    eye = np.stack([x, y, speed * t - 1.5], -1)
    aim = eye + np.stack([0.35 * np.sin(t / 18 + phase[3]), 0.05 * np.sin(t / 7 + phase[4]), np.ones(count)], -1)
    up = np.array([0, -1, 0])
    return np.stack([look_at(e, a, up) for e, a in zip(eye, aim, strict=True)])


def turn(count: int, seed: int = 0) -> np.ndarray:
    """c2w [T,4,4] of a camera that turns on the spot."""
    path = walk(count, seed)
    path[:, :3, 3] = [0.1, -0.2, 0.0]
    return path


def clip_of(frames: np.ndarray) -> Clip:
    """A Clip around uint8 frames [T,H,W,3]."""
    count, height, width = frames.shape[:3]
    return Clip(
        key="0123456789ab-0000",
        video_id="0123456789ab",
        uri="memory://room",
        frames=frames,
        fps=16.0,
        times=np.arange(count) / 16.0,
        source_frames=np.arange(count),
        view=View(height, width, 0, 0, width, height, height, width),
    )


def film(
    boxes: list, path: np.ndarray, K: np.ndarray, height: int, width: int
) -> tuple[Clip, Tracks, GeometryEstimate]:
    """The clip seen along a path, with exact geometry and nobody in it."""
    frames, depth = zip(*(render(boxes, c2w, K, height, width) for c2w in path), strict=True)
    frames, depth = np.stack(frames), np.stack(depth)
    nothing = np.zeros(depth.shape, bool)
    geometry = GeometryEstimate(
        K=np.repeat(K[None], len(path), 0).astype(np.float32), depth=depth, sky=nothing, confidence=np.ones_like(depth)
    )
    return clip_of(frames), Tracks(nothing.astype(np.uint8), nothing, ()), geometry


def smooth_noise(rng: np.random.Generator, height: int, width: int, pixels: float) -> np.ndarray:
    """Unit-variance noise [H,W] that is smooth over about `pixels`."""
    small = rng.normal(size=(int(np.ceil(height / pixels)) + 3, int(np.ceil(width / pixels)) + 3)).astype(np.float32)
    big = cv2.resize(small, None, fx=pixels, fy=pixels, interpolation=cv2.INTER_CUBIC)[:height, :width]
    return big / big.std()


def disturb(
    depth: np.ndarray, seed: int, jitter: float = 0.05, pixel: float = 0.02, smooth: float = 0.03
) -> np.ndarray:
    """Depth with the errors of a per-frame metric head: log-scale jitter, noise by pixel and over 100 px of 832."""
    rng = np.random.default_rng(seed)
    count, height, width = depth.shape
    out = np.empty_like(depth)
    for t in range(count):
        log = rng.normal() * jitter + smooth * smooth_noise(rng, height, width, 100 * width / 832)
        out[t] = depth[t] * np.exp(log + pixel * rng.normal(size=(height, width)))
    return out
