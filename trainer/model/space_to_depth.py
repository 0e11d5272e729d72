"""A stand-in for the VAE: exact, invertible, without weights. For the `tiny` model only.

It has the VAE's interface and its time axis (1 + 4k frames -> 1 + k latent frames), so that a tiny model can be
trained and its pictures looked at on a machine without weights. It compresses nothing: pixels are only rearranged.
"""

import torch
from torch import Tensor

TEMPORAL = 4  # frames per latent frame, as Wan2.1's VAE


class SpaceToDepth:
    """[B,3,1+4k,H,W] in [-1,1] <-> [B, 3*4*p*p, 1+k, H/p, W/p]; latent frame 0 is frame 0 four times."""

    def __init__(self, patch: int = 4):
        self.patch = patch
        self.channels = 3 * TEMPORAL * patch * patch

    def encode(self, video: Tensor) -> Tensor:
        batch, colours, frames, height, width = video.shape
        p = self.patch
        if frames % TEMPORAL != 1 or height % p or width % p:
            raise ValueError(f"expected 1+4k frames and sides divisible by {p}; found {frames} x {height} x {width}")
        video = torch.cat([video[:, :, :1].expand(-1, -1, TEMPORAL - 1, -1, -1), video], dim=2)
        cells = video.reshape(batch, colours, -1, TEMPORAL, height // p, p, width // p, p)
        return cells.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(batch, self.channels, -1, height // p, width // p)

    def decode(self, latents: Tensor) -> Tensor:
        batch, _, frames, height, width = latents.shape
        p = self.patch
        cells = latents.reshape(batch, 3, TEMPORAL, p, p, frames, height, width)
        video = cells.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(batch, 3, frames * TEMPORAL, height * p, width * p)
        return video[:, :, TEMPORAL - 1 :]
