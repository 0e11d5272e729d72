"""Sample videos: N agents at once on a directed ring, one mp4 per agent.

    python -m trainer.sample shards=requests/ model=phantom_wan_14b model.weights=runs/stage2/export data.branches=3

Wan's 40-step Euler grid; Phantom's three-pass guidance. The geometry stays in every pass, as in training.
"""

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shards import codec
from trainer.config import SampleOptions, SampleRunOptions, TrainOptions
from trainer.data import (
    Unit,
    chosen_pairs,
    geometry_latents,
    reference_latents,
    seeded_noise,
    split_units,
    text_embedding,
)
from trainer.encode import open_clips
from trainer.flow import TIMESTEPS, FlowOptions, euler_step, guide, sampling_sigmas
from trainer.latents import LatentClip
from trainer.launch import command, device_of_this_rank, distributed
from trainer.model.build import build_generator
from trainer.model.encoders import VideoEncoder, load_encoders
from trainer.model.parallelize import Grid, make_grid


@torch.no_grad()
def sample_latents(
    model: torch.nn.Module,
    noise: Tensor,
    text: Tensor,
    empty: Tensor,
    geometry: Tensor,
    references: Tensor,
    branches: int,
    flow: FlowOptions,
    options: SampleOptions,
    dtype: torch.dtype,
) -> Tensor:
    """Latents [N,C,T,h,w] float32 of N agents from noise of that shape; other arguments as `WorldGenerator`'s.

    Negative pass: empty text and zero latents as references. Equal scales need two passes, scales of 1 need one.
    """
    model.eval()
    nothing = torch.zeros_like(references)

    def velocity(latents: Tensor, sigma: Tensor, words: Tensor, identity: Tensor) -> Tensor:
        timestep = (sigma * TIMESTEPS).expand(len(latents)).contiguous()
        arguments = (latents.to(dtype), timestep, words.to(dtype), geometry.to(dtype), identity.to(dtype), branches)
        return model(*arguments).float()

    latents = noise.float()
    sigmas = sampling_sigmas(options.steps, flow.shift).to(noise.device)
    for sigma, following in pairwise(sigmas):
        guided = velocity(latents, sigma, text, references)
        if (options.image_scale, options.text_scale) != (1, 1):
            negative = velocity(latents, sigma, empty, nothing)
            same = options.image_scale == options.text_scale  # the image pass then cancels
            image = negative if same else velocity(latents, sigma, empty, references)
            guided = guide(negative, image, guided, options.image_scale, options.text_scale)
        latents = euler_step(latents, guided, sigma, following)
    return latents


def sample_units(
    model: torch.nn.Module,
    units: list[Unit],
    read: Callable[[str], LatentClip],
    options: TrainOptions | SampleRunOptions,
    folder: Path,
    device: torch.device,
    grid: Grid,
    seed: int = 0,
) -> list[Path]:
    """One mp4 per agent of each unit: [target | condition | sample] side by side, or the sample alone for a request.

    Every rank runs the same units (the model may be sharded); rank 0 writes.
    """
    video = load_encoders(options.model.encoders, device, text=False).video
    dtype = options.parallel.dtype
    kind, data = options.sample.condition, options.data
    written = []
    for number, unit in enumerate(units):
        agents = unit if grid.branch is None else (unit[grid.branch],)
        clips = [read(key) for key in agents]
        first = clips[0].conditions[f"{kind}_rgb"]
        offset = grid.branch or 0
        noise = torch.stack([seeded_noise(first.shape, (seed, 5, number, offset + n)) for n in range(len(clips))])
        latents = sample_latents(
            model,
            noise.to(device),
            torch.stack([text_embedding(c, data.text_length) for c in clips]).to(device),
            torch.stack([text_embedding(c, data.text_length, dropped=True) for c in clips]).to(device),
            torch.stack([geometry_latents(c, kind, data) for c in clips]).to(device),
            torch.stack([reference_latents(c, data.references) for c in clips]).to(device),
            len(clips),
            options.flow,
            options.sample,
            dtype,
        )
        if grid.data == 0 and grid.context == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for clip, latent in zip(clips, latents, strict=True):
                panels = [clip.target, clip.conditions[f"{kind}_rgb"], latent]
                frames = np.concatenate([_frames(video, p, device) for p in panels if p is not None], axis=2)
                path = folder / f"{clip.key}.mp4"
                path.write_bytes(codec.encode("target.mp4", frames, fps=clip.meta["latents"]["fps"]))
                written.append(path)
    return written


def _frames(video: VideoEncoder, latents: Tensor, device: torch.device) -> np.ndarray:
    """Latents [C,T,h,w] -> uint8 RGB [T,H,W,3]."""
    pictures = video.decode(latents[None].float().to(device))[0].clamp(-1, 1)
    return ((pictures + 1) * 127.5).round().byte().permute(1, 2, 3, 0).cpu().numpy()


def sample(options: SampleRunOptions) -> None:
    """The verb: every unit of the shards, or the first `limit`."""
    device = device_of_this_rank()
    with distributed(options.parallel.timeout_s):
        grid = make_grid(options.parallel, options.data.branches, device.type)
        read, dataset = open_clips(options.shards, options.latents, options.model, options.data, device)
        units, _ = split_units(chosen_pairs(dataset, options.data), options.data.branches, held_out=0)
        model = build_generator(options.model, "all", options.parallel, grid, device)
        units = units[: options.limit or None]
        for path in sample_units(model, units, read, options, Path(options.output), device, grid, options.seed):
            print(path)


if __name__ == "__main__":
    sys.exit(command("sample", __doc__, sample))
