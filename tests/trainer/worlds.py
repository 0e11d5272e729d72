"""Sample shards of small textured worlds, for training: what moves in the target moves in the condition."""

from pathlib import Path

import cv2
import numpy as np

from shards import codec
from shards.run import Run, ShardLimits, Unit
from tests.shards import samples


def values(key: str, seed: int, T: int, H: int, W: int, N: int = 1, pair: dict | None = None) -> dict:
    """A sample whose target pans over a smooth texture with a coloured disc; the condition is the target, blurred and
    with holes, its depth a slope with the disc in front."""
    rng = np.random.default_rng(seed)
    out = samples.values(key, seed, T, H, W, N, pair)
    texture = cv2.GaussianBlur(rng.uniform(0, 255, (H, W + 2 * T, 3)).astype(np.float32), (0, 0), 3)
    texture = (texture - texture.mean()) * 4 + rng.uniform(60, 200, 3)
    colour, speed = rng.uniform(0, 255, 3), rng.uniform(0.5, 2)
    target = np.stack([texture[:, 2 * t : 2 * t + W] for t in range(T)]).clip(0, 255)
    depth = np.tile(np.linspace(9, 2, H, dtype=np.float32)[None, :, None], (T, 1, W))
    for t in range(T):
        centre = (int(W / 4 + speed * t), int(H / 2))
        cv2.circle(target[t], centre, H // 6, colour.tolist(), -1)
        cv2.circle(depth[t], centre, H // 6, 1.5, -1)
    condition = np.stack([cv2.GaussianBlur(frame, (0, 0), 2) for frame in target])
    condition[:, : H // 8] = 0
    near, far = 1.0, 10.0
    from shards import depth16

    code = depth16.encode(depth, near, far)
    out["target.mp4"] = target.astype(np.uint8)
    for which in ("anchor", "holistic"):
        out[f"condition_{which}_rgb.mp4"] = condition.astype(np.uint8)
        out[f"condition_{which}_depth.mkv"] = code
        out["meta.json"]["depth_range"][f"condition_{which}_depth.mkv"] = [near, far]
    for n in range(N):
        picture = np.zeros((20, 16, 4), np.uint8)
        cv2.circle(picture, (8, 10), 7, (*colour.tolist(), 255), -1)
        out[f"identity_{n:02d}.png"] = picture
    return out


def write_shards(
    folder: Path, count: int, pairs: bool = False, T: int = 5, H: int = 16, W: int = 32, N: int = 1
) -> Path:
    """`count` samples; with `pairs` two views of each of `count` worlds."""
    units, members = [], []
    for i in range(count):
        for view in ("a", "b") if pairs else ("",):
            unit = samples.unit(i, view)
            pair = {"id": f"world{i}", "view": view} if pairs else None
            units.append(unit)
            value = values(unit.key, 2 * i + (view == "b"), T, H, W, N, pair)
            members.append({name: codec.encode(name, v, fps=16) for name, v in value.items()})
    with Run.open(str(folder), name="test", config={}, limits=ShardLimits(samples=3)) as run:
        run.extend(units)
        for unit, member in zip(units, members, strict=True):
            run.spool.put(unit, member)
        run.finish()
    return folder
