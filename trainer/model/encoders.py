"""The frozen encoders in front of the generator: video to latents and back, text to embeddings.

`wan` is Wan2.1's VAE and umT5-XXL. `space_to_depth` and `hashed` need no weights and are for `tiny` only.
"""

import hashlib
import html
import re
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from shards.options import option
from trainer.model.space_to_depth import SpaceToDepth


@dataclass
class EncoderOptions:
    video: str = option(
        "wan",
        "autoencoder: wan, or space_to_depth (exact rearrangement of pixels, tiny only)",
        ("wan", "space_to_depth"),
    )
    text: str = option("wan", "text encoder: wan (umT5-XXL), or hashed (word hashes, tiny only)", ("wan", "hashed"))
    vae_weights: str = option(
        "hf://Wan-AI/Wan2.1-T2V-1.3B/Wan2.1_VAE.pth",
        "Wan2.1_VAE.pth, a .safetensors of it, a diffusers vae folder, or hf://...; Phantom uses Wan2.1's VAE",
    )
    text_weights: str = option(
        "hf://Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        "folder or hf:// repository with text_encoder/ and tokenizer/ (diffusers), or with models_t5*.pth and "
        "google/umt5-xxl/ (hf://Wan-AI/Wan2.1-T2V-1.3B); Phantom uses Wan2.1's umT5",
    )
    revision: str | None = option(None, "revision of the hf:// repositories; null = the newest")
    patch: int = option(4, "space_to_depth: pixels per latent cell side; channels are 12 patch^2")
    text_length: int = option(512, "tokens the text is zero-padded to; Wan2.1: 512")
    text_dim: int = option(4096, "hashed: channels of an embedding (umT5-XXL has 4096)")


class VideoEncoder(Protocol):
    """Latents are normalised to about unit variance. T = 1 + 4k frames give 1 + k latent frames."""

    channels: int

    def encode(self, video: Tensor) -> Tensor:
        """[B,3,T,H,W] in [-1,1] -> [B,C,1+k,h,w], the mode of the posterior, not a draw."""

    def decode(self, latents: Tensor) -> Tensor:
        """[B,C,1+k,h,w] -> [B,3,T,H,W]."""


class TextEncoder(Protocol):
    dim: int

    def encode(self, text: str) -> Tensor:
        """Embedding [tokens, dim], not padded; the empty text has at least one token."""


@dataclass(frozen=True)
class Encoders:
    """The loaded encoders; `fingerprint` changes whenever latents of the same clip would."""

    video: VideoEncoder
    text: TextEncoder
    fingerprint: str


class WanVideo:
    """Wan2.1's VAE. Latents are (z - mean) / std with the statistics in its configuration."""

    def __init__(self, vae: torch.nn.Module, device: torch.device, dtype: torch.dtype):
        self.vae = vae.to(device, dtype)
        self.channels = vae.config.z_dim
        view = (1, -1, 1, 1, 1)
        self.mean = torch.tensor(vae.config.latents_mean, device=device).view(view)
        self.std = torch.tensor(vae.config.latents_std, device=device).view(view)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        mode = self.vae.encode(video.to(self.mean.device, self.vae.dtype)).latent_dist.mode()
        return (mode.float() - self.mean) / self.std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        z = latents.to(self.mean.device) * self.std + self.mean
        return self.vae.decode(z.to(self.vae.dtype)).sample.float().clamp(-1, 1)


class WanText:
    """umT5-XXL, prompt cleaned as Wan's pipeline does (ftfy, HTML entities, white space)."""

    def __init__(self, encoder: torch.nn.Module, tokenizer, length: int, device: torch.device):
        self.encoder, self.tokenizer, self.length = encoder.to(device), tokenizer, length
        self.dim = encoder.config.d_model

    @torch.no_grad()
    def encode(self, text: str) -> Tensor:
        tokens = self.tokenizer(
            [_clean(text)], max_length=self.length, truncation=True, add_special_tokens=True, return_tensors="pt"
        ).to(self.encoder.device)
        return self.encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state[0].float()


def _clean(text: str) -> str:
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()


class HashedText:
    """A stand-in for the text encoder: each word is a fixed unit-variance vector drawn from its hash. `tiny` only."""

    def __init__(self, dim: int, length: int):
        self.dim, self.length = dim, length

    def encode(self, text: str) -> Tensor:
        words = [*text.lower().split()[: self.length - 1], "</s>"]
        return torch.stack([self._word(word) for word in words])

    def _word(self, word: str) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
        return torch.from_numpy(np.random.default_rng(seed).standard_normal(self.dim, dtype=np.float32))


def load_encoders(options: EncoderOptions, device: torch.device, text: bool = True) -> Encoders:
    """The configured encoders on a device. Raises `CheckpointError` when their weights are absent.

    `text=False` leaves the 5.7 B text encoder out where only pictures are decoded.
    """
    from trainer.model.umt5 import load_text_encoder
    from trainer.model.wan import load_vae

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if options.video == "wan":
        video: VideoEncoder = WanVideo(load_vae(options.vae_weights, options.revision), device, dtype)
    else:
        video = SpaceToDepth(options.patch)
    if options.text == "hashed":
        words: TextEncoder | None = HashedText(options.text_dim, options.text_length)
    elif text:
        words = WanText(*load_text_encoder(options.text_weights, options.revision), options.text_length, device)
    else:
        words = None
    return Encoders(video, words, fingerprint(options))


def identity(options: EncoderOptions) -> dict[str, Any]:
    """Every option that changes the latents of a clip, by name."""
    unused = {"patch"} if options.video == "wan" else {"vae_weights"}
    unused |= {"text_dim"} if options.text == "wan" else {"text_weights"}
    return {name: value for name, value in vars(options).items() if name not in unused}


def fingerprint(options: EncoderOptions) -> str:
    """`identity` in 12 hex digits."""
    return hashlib.sha256(repr(sorted(identity(options).items())).encode()).hexdigest()[:12]
