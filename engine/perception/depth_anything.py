"""Depth Anything V2 as a Depth (Yang et al. 2024, arXiv 2406.09414), through transformers.

The relative models return DISPARITY, a_t / z + b_t with unknown a_t and b_t per frame; the metric ones return z-depth
in metres. Which of the two a checkpoint gives stands in its own configuration (`depth_estimation_type`), and must
agree with the variant that was chosen: it is never guessed. Frames are treated one by one; a temporally consistent
model (Video-Depth-Anything) would fit the same protocol and is future work. What flickers is handled by the joint
alignment of all frames downstream.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.options import option
from engine.perception.checkpoint import CheckpointError
from engine.perception.compute import PRECISIONS, Batches, DeviceFrames, autocast, compiled
from engine.perception.pretrained import load_pretrained, read_config
from engine.types import Clip, DepthEstimate, GeometryEstimate, Tracks

if TYPE_CHECKING:
    import torch

PATCH = 14  # DINOv2's patch: both sides of the network's input are multiples of it
KIND = {"relative": "disparity", "metric": "metric"}


@dataclass
class DepthAnythingOptions:
    variant: str = option(
        "small",
        "small and the metric ones are Apache-2.0; base and large are CC-BY-NC-4.0",
        choices=("small", "base", "large", "metric-indoor-small", "metric-outdoor-small"),
    )
    short_side: int = option(518, "shorter side of the network's input, pixels; 518 as trained, 392 is 1.7x faster")
    batch: int = option(16, "frames per forward pass to start with; halved, and remembered, when memory runs out")
    precision: str = option("auto", "auto is bf16 on a GPU and fp32 on a CPU", choices=PRECISIONS)
    compile: bool = option(False, "torch.compile of the network: slower start, faster frames on a GPU")


class DepthAnything:
    """The loaded network. `frames` is shared with the other models of the actor."""

    def __init__(
        self, options: DepthAnythingOptions, folder: Path, frames: DeviceFrames, about: dict | None = None
    ) -> None:
        """`folder` holds the official config.json, preprocessor_config.json and model.safetensors. CheckpointError."""
        from transformers import DepthAnythingForDepthEstimation

        self.options, self.frames, self.about = options, frames, about or {}
        network = load_pretrained(DepthAnythingForDepthEstimation, folder, "Depth Anything")
        self.kind = KIND[network.config.depth_estimation_type]
        wanted = "metric" if options.variant.startswith("metric") else "disparity"
        if self.kind != wanted:
            raise CheckpointError(
                f"Depth Anything: {folder} gives {self.kind}, but depth_anything.variant={options.variant} "
                f"is a {wanted} model: one of the two is wrong"
            )
        processor = read_config(folder / "preprocessor_config.json", "Depth Anything")
        self.mean, self.std = np.array(processor["image_mean"]), np.array(processor["image_std"])
        self.network = compiled(network.to(frames.device), options.compile)
        self.batches = Batches(options.batch, "depth_anything")

    def depth(self, clip: Clip, tracks: Tracks, geometry: GeometryEstimate) -> DepthEstimate:
        """float32 [T,H,W] of `self.kind` for every frame; a relative model's disparity is >= 0 and 0 at infinity."""
        import torch

        with self.frames.turn:
            parts = [out for _, out in self.batches(len(clip.frames), lambda part: self._forward(clip, part))]
            values = torch.cat(parts).cpu().numpy()
        return DepthEstimate(
            kind=self.kind, values=values, models={"depth_anything": {**self.about, "variant": self.options.variant}}
        )

    def _forward(self, clip: Clip, part: slice) -> "torch.Tensor":
        """float32 [B,H,W] on the device."""
        import torch

        images = prepare(self.frames(clip)[part], self.options.short_side, self.mean, self.std)
        with torch.inference_mode(), autocast(self.frames.device, self.options.precision, "bf16"):
            out = self.network(pixel_values=images).predicted_depth
        out = torch.nn.functional.interpolate(out.float()[:, None], clip.size, mode="bilinear", align_corners=False)
        return out[:, 0]


def input_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) of the network's input: the shorter side at `short_side`, both multiples of 14."""
    scale = short_side / min(height, width)
    return tuple(max(PATCH, round(side * scale / PATCH) * PATCH) for side in (height, width))  # type: ignore[return-value]


def prepare(frames: "torch.Tensor", short_side: int, mean: np.ndarray, std: np.ndarray) -> Any:
    """uint8 [B,H,W,3] -> float32 [B,3,h,w]: bicubic resize (the published preprocessing), then normalised."""
    import torch

    images = frames.permute(0, 3, 1, 2).float() / 255
    size = input_size(images.shape[2], images.shape[3], short_side)
    images = torch.nn.functional.interpolate(images, size, mode="bicubic", align_corners=False, antialias=True)
    shift, scale = (torch.tensor(v, dtype=torch.float32, device=images.device)[:, None, None] for v in (mean, std))
    return (images.clamp(0, 1) - shift) / scale
