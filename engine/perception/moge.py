"""MoGe-2 as a Geometry: field of view and metric depth of every frame (Wang et al. 2025, arXiv 2507.02546).

The network sees one frame at a time and gives an affine point map (x, y, z up to a shift in z and one metric scale),
a validity mask and a metric scale. The field of view is taken from frames spread over the clip by a robust median and
then held fixed for all frames: a field of view that jitters from frame to frame couples with scale. With the focal
fixed each frame keeps one unknown, the shift. The network's output does not depend on the field of view, so every
frame passes through it once, and only the shift is solved after the median is known.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.geometry.camera import intrinsics
from engine.options import option
from engine.perception.checkpoint import CheckpointError, fill, read_torch
from engine.perception.compute import PRECISIONS, Batches, DeviceFrames, autocast, compiled, spread
from engine.types import Clip, GeometryEstimate, Tracks

if TYPE_CHECKING:
    import torch

SOLVE = 64  # the focal and shift are solved on a 64 x 64 sub-sample of the point map, as the published code does


@dataclass
class MoGeOptions:
    variant: str = option("vitl", "backbone; all three are MIT", choices=("vitl", "vitb", "vits"))
    tokens: int = option(
        2000, "image tokens; 480x832 at patch 14 has 2006, the published range is 1200 to 3600 (more is finer, slower)"
    )
    fov_frames: int = option(8, "frames spread over the clip whose median sets the field of view; 0 takes all")
    batch: int = option(8, "frames per forward pass to start with; halved, and remembered, when memory runs out")
    precision: str = option("auto", "auto is fp16 on a GPU (as published) and fp32 on a CPU", choices=PRECISIONS)
    compile: bool = option(False, "torch.compile of the network: slower start, faster frames on a GPU")
    normals: bool = option(False, "keep the surface normals (float16 [T,H,W,3], camera axes)")
    scale_sigma: float = option(
        0.10,
        "log standard deviation of one clip's metric scale, before flicker: MoGe-2's metric AbsRel over its test sets",
    )


class MoGe:
    """The loaded network. `frames` is shared with the other models of the actor."""

    def __init__(self, options: MoGeOptions, checkpoint: Path, frames: DeviceFrames, about: dict | None = None) -> None:
        """Raises CheckpointError when the file is absent, truncated, not MoGe-2's, or of another architecture."""
        self.options, self.frames, self.about = options, frames, about or {}
        self.network = compiled(load_moge(checkpoint).to(frames.device), options.compile)
        self.batches = Batches(options.batch, "moge")

    def geometry(self, clip: Clip, tracks: Tracks) -> GeometryEstimate:
        """Intrinsics (principal point at the centre unless the clip has its own K), metric depth, sky, confidence."""
        import torch

        T, (H, W) = len(clip.frames), clip.size
        with self.frames.turn:
            parts = [out for _, out in self.batches(T, lambda part: self._forward(clip, part))]
            z, valid, points, scales, *normals = (torch.cat(column) for column in zip(*parts, strict=True))
            samples = points.cpu().numpy().astype(float)
            inside = nearest(valid, SOLVE, SOLVE).cpu().numpy() > 0.5
        focal, shift = self._solve(clip, samples, inside)
        with self.frames.turn:
            # in float32 as the published code does; one pass on the device and one copy each
            z += torch.as_tensor(shift, dtype=z.dtype, device=z.device)[:, None, None]
            seen = (valid > 0.5) & (z > 0)
            depth = torch.where(seen, z * scales[:, None, None], 0).cpu().numpy()
            confidence = torch.where(seen, valid, 0).cpu().numpy()
            sky = (valid <= 0.5).cpu().numpy()
            normal = normals[0].cpu().numpy() if normals else None
        fx = focal * np.hypot(H, W) / 2
        K = clip.K if clip.K is not None else intrinsics(fx, fx, W, H)
        return GeometryEstimate(
            K=np.repeat(np.asarray(K, np.float32)[None], T, 0),
            depth=depth,
            sky=sky,
            confidence=confidence,
            log_scale_sigma=self._scale_sigma(depth, depth > 0),
            K_source=clip.K_source if clip.K is not None else "estimated",
            normals=normal,
            models={"moge": {**self.about, "variant": self.options.variant}},
        )

    def _solve(self, clip: Clip, samples: np.ndarray, inside: np.ndarray) -> tuple[float, np.ndarray]:
        """The clip's focal (half-diagonal units; its own when it has one) and every frame's shift in z [T]."""
        (H, W), T = clip.size, len(samples)
        uv = view_plane(H, W, SOLVE)
        if clip.K is not None:
            focal = float(clip.K[0, 0] / np.hypot(H, W) * 2)
        else:
            picked = spread(T, self.options.fov_frames or T)
            focal = robust_focal([solve_focal_shift(samples[t], inside[t], uv)[0] for t in picked], clip.key)
        return focal, np.array([solve_shift(samples[t], inside[t], uv, focal) for t in range(T)])

    def _forward(self, clip: Clip, part: slice) -> "tuple[torch.Tensor, ...]":
        """On the device: affine z [B,H,W], validity [B,H,W], point samples [B,64,64,3], metric scale [B] (all float32),
        and the normals float16 [B,H,W,3] when they are wanted."""
        import torch

        device = self.frames.device
        images = self.frames(clip)[part].permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode(), autocast(device, self.options.precision, "fp16"):
            out = self.network(images, num_tokens=self.options.tokens)
        points = out["points"].float()
        samples = nearest(points.permute(0, 3, 1, 2), SOLVE, SOLVE).permute(0, 2, 3, 1)
        found = [points[..., 2].clone(), out["mask"].float(), samples, out["metric_scale"].float()]
        if self.options.normals:
            if "normal" not in out:
                raise CheckpointError("moge: normals=true, but this checkpoint has no normal head")
            found.append(out["normal"].half())
        return tuple(found)

    def _scale_sigma(self, metric: np.ndarray, seen: np.ndarray) -> float:
        """Log standard deviation of the clip's scale: the model's own, and the frames' disagreement over sqrt(T)."""
        medians = [
            np.log(np.median(m[::4, ::4][s[::4, ::4]])) for m, s in zip(metric, seen, strict=True) if s[::4, ::4].any()
        ]
        if len(medians) < 2:
            return self.options.scale_sigma
        steps = np.diff(medians)  # between neighbours: the camera's own motion is left out
        flicker = 1.4826 * np.median(np.abs(steps - np.median(steps))) / np.sqrt(2)
        return float(np.hypot(self.options.scale_sigma, flicker / np.sqrt(len(medians))))


def load_moge(path: Path) -> Any:
    """The network of an official MoGe-2 checkpoint {"model_config": ..., "model": ...}, every name checked."""
    checkpoint = read_torch(path, ("model_config", "model"), "MoGe-2")
    config = checkpoint["model_config"]
    if not isinstance(config.get("encoder"), dict):
        raise CheckpointError(
            f"MoGe-2: {path} is a MoGe-1 checkpoint (encoder {config.get('encoder')!r}): it has no metric scale. "
            "Take a moge-2-*-normal one: make weights"
        )
    from moge.model.v2 import MoGeModel

    network = MoGeModel(**config)
    if not hasattr(network, "scale_head") or not hasattr(network, "mask_head"):
        raise CheckpointError(f"MoGe-2: {path} has no {'scale' if hasattr(network, 'mask_head') else 'mask'} head")
    fill(network, checkpoint["model"], path, "MoGe-2")
    network.enable_pytorch_native_sdpa()
    return network.eval().requires_grad_(False)


def view_plane(height: int, width: int, size: int) -> np.ndarray:
    """float64 [size,size,2] image coordinates of the sub-sample, centre (0, 0), in units of half the diagonal."""
    diagonal = np.hypot(height, width)
    y, x = _nearest_index(height, size), _nearest_index(width, size)
    u, v = np.meshgrid((2 * x + 1 - width) / diagonal, (2 * y + 1 - height) / diagonal)
    return np.stack([u, v], -1)


def solve_focal_shift(points: np.ndarray, mask: np.ndarray, uv: np.ndarray) -> tuple[float, float]:
    """(focal, shift) that minimise sum |focal * xy / (z + shift) - uv|^2 over masked points [h,w,3].

    `focal` is in units of half the image diagonal. The focal is linear given the shift (variable projection, Golub
    and Pereyra 1973). (nan, 0) with fewer than 16 points.
    """
    from scipy.optimize import least_squares

    xy, z, target = _masked(points, mask, uv)
    if len(z) < 16:
        return float("nan"), 0.0

    def focal_of(shift: float) -> tuple[float, np.ndarray]:
        plane = xy / (z + shift)[:, None]
        return float((plane * target).sum() / np.square(plane).sum()), plane

    def residual(shift: np.ndarray) -> np.ndarray:
        focal, plane = focal_of(shift[0])
        return (focal * plane - target).ravel()

    shift = float(least_squares(residual, [0.0], ftol=1e-3, method="lm").x[0])
    return focal_of(shift)[0], shift


def solve_shift(points: np.ndarray, mask: np.ndarray, uv: np.ndarray, focal: float) -> float:
    """The shift in z that minimises sum |focal * xy / (z + shift) - uv|^2 with the focal known; 0 without points."""
    from scipy.optimize import least_squares

    xy, z, target = _masked(points, mask, uv)
    if len(z) < 16:
        return 0.0
    slope = focal * xy

    def residual(shift: np.ndarray) -> np.ndarray:
        return (slope / (z + shift[0])[:, None] - target).ravel()

    def jacobian(shift: np.ndarray) -> np.ndarray:
        return (-slope / np.square(z + shift[0])[:, None]).reshape(-1, 1)

    return float(least_squares(residual, [0.0], jac=jacobian, ftol=1e-3, method="lm").x[0])


def robust_focal(focals: list[float], unit: str) -> float:
    """Median of the usable focals (half-diagonal units), in log. Raises ValueError when no frame gave one."""
    usable = [f for f in focals if np.isfinite(f) and f > 0]
    if not usable:
        raise ValueError(f"{unit}: MoGe-2 found no valid geometry in {len(focals)} frames to take a field of view from")
    return float(np.exp(np.median(np.log(usable))))


def _masked(points: np.ndarray, mask: np.ndarray, uv: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return points[mask][:, :2].astype(float), points[mask][:, 2].astype(float), uv[mask]


def _nearest_index(size: int, count: int) -> np.ndarray:
    """Indices that torch's nearest interpolation reads: floor(i * size / count)."""
    return np.floor(np.arange(count) * size / count).astype(int)


def nearest(maps: "torch.Tensor", height: int, width: int) -> "torch.Tensor":
    """Maps [...,H,W] sampled as torch's nearest interpolation does, on whatever device they are."""
    import torch

    rows, columns = (
        torch.as_tensor(_nearest_index(size, count), device=maps.device)
        for size, count in ((maps.shape[-2], height), (maps.shape[-1], width))
    )
    return maps[..., rows[:, None], columns]
