"""The Subject-Aware World Generator: Wan conditioned on rendered geometry and on reference images.

Geometry: RGB and depth latents of the condition video, concatenated to 2C channels, are compressed to C by a
zero-initialised network and added to the noisy latent (paper Eq. 2 and 3). Identity: reference latents follow the
video on the time axis (Eq. 4, as Phantom does) and are cut from the output, so the loss sees the video only.
"""

from dataclasses import dataclass

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from shards.options import option
from trainer.model.wsa import Rope, WorldBlock, WsaOptions


@dataclass
class SawgOptions:
    kernel: int = option(
        3,
        "spatial kernel of the compression convolutions, latent pixels (odd); 3 lets a location be bound to an area. "
        'The paper says "zero-init conv" and no size',
    )
    hidden: int = option(
        0, "channels of a hidden layer before the zero-initialised one; 0 = a single convolution, as the paper's table"
    )
    init: str = option(
        "zero", "last convolution at the start: zero (paper, Eq. 3) or random (its ablation)", ("zero", "random")
    )


@dataclass
class WanOptions:
    """The architecture; names and defaults are diffusers' `WanTransformer3DModel`, values are Wan2.1's."""

    num_layers: int = option(40, "transformer blocks; Wan2.1: 30 (1.3B), 40 (14B)")
    num_attention_heads: int = option(40, "heads; Wan2.1: 12 (1.3B), 40 (14B)")
    attention_head_dim: int = option(128, "channels per head; Wan2.1: 128")
    ffn_dim: int = option(13824, "hidden channels of the feed-forward; Wan2.1: 8960 (1.3B), 13824 (14B)")
    in_channels: int = option(16, "latent channels C; Wan2.1's VAE: 16")
    patch_size: list[int] = option([1, 2, 2], "latent frames, rows and columns per token; Wan2.1: 1, 2, 2")
    text_dim: int = option(4096, "channels of the text embedding; umT5-XXL: 4096")
    freq_dim: int = option(256, "channels of the timestep's sinusoids; Wan2.1: 256")


class GeometryCompression(nn.Module):
    """2C -> C. `init="zero"` zeroes the last convolution only, so that its gradient is alive from the first step."""

    def __init__(self, channels: int, options: SawgOptions):
        super().__init__()
        kernel, padding = (1, options.kernel, options.kernel), (0, options.kernel // 2, options.kernel // 2)
        width = options.hidden or 2 * channels
        self.lift = nn.Conv3d(2 * channels, width, kernel, padding=padding) if options.hidden else None
        self.out = nn.Conv3d(width, channels, kernel, padding=padding)

    def forward(self, geometry: Tensor) -> Tensor:
        """[B,2C,T,h,w] -> [B,C,T,h,w]."""
        return self.out(geometry if self.lift is None else nn.functional.silu(self.lift(geometry)))


class WorldGenerator(nn.Module):
    """Wan + SAWG + (optionally) WSA, written for one device; `parallelize` applies every kind of parallelism.

    `wan` keeps diffusers' keys: the missing keys of a Wan checkpoint are exactly `new_parameters`.
    """

    def __init__(self, wan: WanOptions, sawg: SawgOptions, wsa: WsaOptions):
        super().__init__()
        config = {**vars(wan), "patch_size": tuple(wan.patch_size), "out_channels": wan.in_channels}
        self.options = (wan, sawg, wsa)
        # Built without its blocks, then given ours: same keys, same forward, one subclass per block.
        self.wan = WanTransformer3DModel(**{**config, "num_layers": 0})
        self.wan.register_to_config(num_layers=wan.num_layers)
        dim, eps = wan.num_attention_heads * wan.attention_head_dim, self.wan.config.eps
        for layer in range(wan.num_layers):
            aligned = wsa if wsa.enabled and layer % wsa.every == 0 else None
            self.wan.blocks.append(WorldBlock(dim, wan.ffn_dim, wan.num_attention_heads, eps, aligned))
        self.wan.rope = Rope(wan.attention_head_dim, tuple(wan.patch_size), self.wan.config.rope_max_seq_len)
        self.geometry = GeometryCompression(wan.in_channels, sawg)

    def restore_rope(self, device: torch.device) -> None:
        """Refill the rotary tables, which no checkpoint holds, after `to_empty`."""
        old, wan = self.wan.rope, self.options[0]
        new = Rope(wan.attention_head_dim, tuple(wan.patch_size), self.wan.config.rope_max_seq_len).to(device)
        old.freqs_cos, old.freqs_sin = new.freqs_cos, new.freqs_sin

    def forward(
        self, noisy: Tensor, timestep: Tensor, text: Tensor, geometry: Tensor, references: Tensor, branches: int = 1
    ) -> Tensor:
        """The velocity of the video latents.

        noisy       [BN,C,T,h,w]; the N branches of a sample are neighbours on the batch axis
        timestep    float32 [BN] in 0..1000, equal within a sample
        text        [BN,L,text_dim], zero-padded
        geometry    [BN,2C,T,h,w], RGB then depth latents; zeros where dropped
        references  [BN,C,R,h,w], clean at every step; zero latents where dropped or absent; R may be 0
        Returns [BN,C,T,h,w].
        """
        frames = noisy.shape[2]
        rope = self.wan.rope
        rope.branches = 1 if rope.branch_group is not None else branches
        rope.references = references.shape[2]
        latents = torch.cat([noisy + self.geometry(geometry), references], dim=2)
        # A copy: FSDP2 hangs its backward hook on the output, and would lose it on a view that is changed in place.
        return self.wan(latents, timestep, text, return_dict=False)[0][:, :, :frames].clone()


def is_new(name: str) -> bool:
    """True for a parameter that no Wan checkpoint has: the compression network and WSA."""
    return name.startswith("geometry.") or ".wsa." in name


def is_wsa(name: str) -> bool:
    """True for a parameter of World-State Alignment."""
    return ".wsa." in name
