"""Flow matching, as Wan2.1 is trained and sampled: pure functions of tensors.

x_sigma = (1 - sigma) x0 + sigma eps, the model predicts v = eps - x0, and the timestep it is told is 1000 sigma.
"Logit-normal" is the density of sigma, not a weight: u = sigmoid(n), n ~ N(0,1), then the shift; the weight is 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from shards.options import option

TIMESTEPS = 1000.0  # Wan2.1's timestep at sigma = 1


@dataclass
class FlowOptions:
    shift: float = option(5.0, "of sigma towards noise, in training and sampling; the paper: 5")
    mean: float = option(0.0, "of the normal whose sigmoid is the unshifted sigma; the paper's logit-normal: 0")
    std: float = option(1.0, "of that normal; 1")


def shift_sigma(u: Tensor, shift: float) -> Tensor:
    """shift u / (1 + (shift - 1) u): the resolution shift of Esser et al. 2024 (Eq. 23); 5 in the paper."""
    return shift * u / (1 + (shift - 1) * u)


def sample_sigma(normal: Tensor, options: FlowOptions) -> Tensor:
    """sigma in (0,1) of standard normal draws."""
    return shift_sigma(torch.sigmoid(options.mean + options.std * normal), options.shift)


def add_noise(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x_sigma of clean [B,...] and sigma [B]."""
    sigma = sigma.view(-1, *[1] * (clean.ndim - 1)).to(clean.dtype)
    return (1 - sigma) * clean + sigma * noise


def velocity(clean: Tensor, noise: Tensor) -> Tensor:
    """The target eps - x0."""
    return noise - clean


def velocity_loss(predicted: Tensor, clean: Tensor, noise: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared error per batch row, float32 [B], of video latents [B,C,T,h,w]; references are not in it.

    weight [B,T] of each latent frame; None = all 1.
    """
    per_frame = (predicted.float() - velocity(clean, noise).float()).square().mean(dim=(1, 3, 4))
    return per_frame.mean(1) if weight is None else (per_frame * weight).sum(1) / weight.sum(1)


def sampling_sigmas(steps: int, shift: float) -> Tensor:
    """float32 [steps + 1], from 1 down to 0: Wan's grid, shift(linspace(1, 0, steps + 1)).

    diffusers' `FlowMatchEulerDiscreteScheduler(shift=5).set_timesteps(40)` shifts twice and is not this grid.
    """
    return shift_sigma(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift).float()


def euler_step(latents: Tensor, predicted: Tensor, sigma: Tensor, following: Tensor) -> Tensor:
    """One step from sigma to the following one; latents stay float32."""
    return latents + (following - sigma) * predicted.float()


def guide(negative: Tensor, with_image: Tensor, with_both: Tensor, image_scale: float, text_scale: float) -> Tensor:
    """Phantom's three-pass guidance: neg + s_img (pos_i - neg) + s_text (pos_it - pos_i)."""
    return negative + image_scale * (with_image - negative) + text_scale * (with_both - with_image)
