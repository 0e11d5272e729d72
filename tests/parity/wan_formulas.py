"""Wan2.1's text-to-video transformer as formulas over an original-format state dict, in plain torch functions.

An independent restatement of the published architecture (Wan technical report, arXiv 2503.20314, Sec. 4.2; module
names of github.com/Wan-Video/Wan2.1 wan/modules/model.py), to compare diffusers' port and our loader with.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6


def keys(layers: int) -> list[str]:
    """Every key of an official text-to-video checkpoint (Wan2.1-T2V and Phantom-Wan, 1.3B and 14B alike)."""
    linear = lambda name: [f"{name}.weight", f"{name}.bias"]  # noqa: E731
    names = [*linear("patch_embedding")]
    for part in ("text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2", "time_projection.1"):
        names += linear(part)
    for i in range(layers):
        block = f"blocks.{i}"
        for attention in ("self_attn", "cross_attn"):
            for projection in "qkvo":
                names += linear(f"{block}.{attention}.{projection}")
            names += [f"{block}.{attention}.norm_q.weight", f"{block}.{attention}.norm_k.weight"]
        names += [
            *linear(f"{block}.norm3"),
            *linear(f"{block}.ffn.0"),
            *linear(f"{block}.ffn.2"),
            f"{block}.modulation",
        ]
    return [*names, *linear("head.head"), "head.modulation"]


def random_checkpoint(layers: int, heads: int, head_dim: int, ffn: int, channels: int, text: int, freq: int) -> dict:
    """Random weights under the official names, of a scale that keeps activations near one."""
    dim = heads * head_dim
    shapes = {
        "patch_embedding.weight": (dim, channels, 1, 2, 2), "text_embedding.0.weight": (dim, text),
        "time_embedding.0.weight": (dim, freq), "time_projection.1.weight": (6 * dim, dim),
        "time_projection.1.bias": (6 * dim,), "head.head.weight": (4 * channels, dim),
        "head.head.bias": (4 * channels,), "head.modulation": (1, 2, dim),
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name in keys(layers):
        if name in shapes:
            shape = shapes[name]
        elif name.endswith("modulation"):
            shape = (1, 6, dim)
        elif ".ffn.0." in name:
            shape = (ffn, dim) if name.endswith("weight") else (ffn,)
        elif ".ffn.2.weight" in name:
            shape = (dim, ffn)
        elif "norm" in name or name.endswith("bias"):
            shape = (dim,)
        else:
            shape = (dim, dim)
        fan_in = max(int(torch.tensor(shape[1:]).prod()), 1)
        state[name] = torch.randn(shape, generator=generator) / fan_in**0.5
        if "norm" in name and name.endswith("weight"):
            state[name] = 1 + 0.1 * state[name]
    return state


def forward(w: dict[str, Tensor], x: Tensor, t: Tensor, text: Tensor, heads: int, layers: int, freq: int) -> Tensor:
    """x [B,C,T,H,W], t [B] in 0..1000, text [B,L,D] zero-padded -> the velocity [B,C,T,H,W]."""

    def linear(name: str, value: Tensor) -> Tensor:
        return F.linear(value, w[f"{name}.weight"], w[f"{name}.bias"])

    def rms(name: str, value: Tensor) -> Tensor:
        return value * torch.rsqrt(value.square().mean(-1, keepdim=True) + EPS) * w[f"{name}.weight"]

    def attention(name: str, value: Tensor, context: Tensor, rope: Tensor | None) -> Tensor:
        q, k = (rms(f"{name}.norm_{n}", linear(f"{name}.{n}", s)) for n, s in (("q", value), ("k", context)))
        q, k, v = (s.unflatten(-1, (heads, -1)) for s in (q, k, linear(f"{name}.v", context)))
        if rope is not None:
            q, k = (torch.view_as_real(torch.view_as_complex(s.double().unflatten(-1, (-1, 2)).contiguous()) * rope)
                    .flatten(-2).float() for s in (q, k))  # fmt: skip
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
        return linear(f"{name}.o", torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).flatten(2))

    batch, channels, frames, height, width = x.shape
    grid = (frames, height // 2, width // 2)
    h = F.conv3d(x, w["patch_embedding.weight"], w["patch_embedding.bias"], stride=(1, 2, 2)).flatten(2).transpose(1, 2)
    angle = t[:, None].double() * 10000 ** (-torch.arange(freq // 2, dtype=torch.float64) / (freq // 2))
    e = linear("time_embedding.2", F.silu(linear("time_embedding.0", torch.cat([angle.cos(), angle.sin()], 1).float())))
    e6 = linear("time_projection.1", F.silu(e)).unflatten(1, (6, -1))
    context = linear("text_embedding.2", F.gelu(linear("text_embedding.0", text), approximate="tanh"))
    rope = rotary(h.shape[-1] // heads, grid)
    norm = lambda value: F.layer_norm(value, value.shape[-1:], eps=EPS)  # noqa: E731
    for i in range(layers):
        b = f"blocks.{i}"
        shift1, scale1, gate1, shift2, scale2, gate2 = (w[f"{b}.modulation"] + e6).split(1, dim=1)
        y = norm(h) * (1 + scale1) + shift1
        h = h + gate1 * attention(f"{b}.self_attn", y, y, rope)
        y = F.layer_norm(h, h.shape[-1:], w[f"{b}.norm3.weight"], w[f"{b}.norm3.bias"], EPS)
        h = h + attention(f"{b}.cross_attn", y, context, None)
        y = norm(h) * (1 + scale2) + shift2
        h = h + gate2 * linear(f"{b}.ffn.2", F.gelu(linear(f"{b}.ffn.0", y), approximate="tanh"))
    shift, scale = (w["head.modulation"] + e[:, None]).split(1, dim=1)
    out = linear("head.head", norm(h) * (1 + scale) + shift)
    return torch.einsum("bfhwpqrc->bcfphqwr", out.view(batch, *grid, 1, 2, 2, channels)).reshape(x.shape)


def rotary(head_dim: int, grid: tuple[int, int, int]) -> Tensor:
    """complex [tokens, 1, head_dim / 2]: time, row and column frequencies on separate channels."""
    split = (head_dim - 4 * (head_dim // 6), 2 * (head_dim // 6), 2 * (head_dim // 6))
    axes = []
    for axis, dim in enumerate(split):
        angle = torch.outer(torch.arange(grid[axis]).double(), 10000 ** (-torch.arange(0, dim, 2).double() / dim))
        shape = [1, 1, 1, dim // 2]
        shape[axis] = grid[axis]
        axes.append(torch.polar(torch.ones_like(angle), angle).view(shape).expand(*grid, -1))
    return torch.cat(axes, -1).flatten(0, 2)[:, None]
