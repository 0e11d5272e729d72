"""World-State Alignment: frame f of a branch attends to frame f of the branch before it, and to nothing else.

The paper's Eq. 5 and 6. N branches (agents) lie on the batch axis, (B N) first; "the branch before" is a roll by one:
for N = 2 that is the bidirectional swap of training, for N > 2 the directed ring of inference (agent n reads agent
n-1, agent 1 reads agent N). References take no part. N = 1 runs plain Wan.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from diffusers.models.transformers.transformer_wan import (
    WanAttention,
    WanAttnProcessor,
    WanRotaryPosEmbed,
    WanTransformerBlock,
)
from torch import Tensor, nn

from shards.options import option


@dataclass
class WsaOptions:
    enabled: bool = option(False, "add World-State Alignment to the layers (stage 2)")
    every: int = option(1, "add it to every n-th layer; the paper adds it to every transformer layer, 1")
    norm: str = option(
        "modulated",
        "what normalises its input; the paper does not say. modulated: the block's own adaptive LayerNorm, the "
        "distribution that the copied q, k, v were trained on; affine: a LayerNorm of its own",
        choices=("modulated", "affine"),
    )
    init: str = option(
        "zero", "output projection at the start: zero (paper, Sec. 3.3) or random (its ablation)", ("zero", "random")
    )


class Layout(NamedTuple):
    """How the tokens of a batch are laid out, and the positions WSA uses.

    branches  N, branches folded into the batch axis as (B N); 1 with branch parallelism
    group     process group of the N branches of a sample when each has a rank of its own, else None
    frames    latent frames of video; reference frames follow them on the token axis
    first     index of this rank's first latent frame (0 unless the token axis is split over ranks)
    tokens    tokens per latent frame
    cos, sin  [1, tokens, 1, head] rotary table of frame 0, whose temporal part is the identity: pure 2-D RoPE
    """

    branches: int
    group: dist.ProcessGroup | None
    frames: int
    first: int
    tokens: int
    cos: Tensor
    sin: Tensor

    @property
    def aligned(self) -> bool:
        """True when there is another branch to read."""
        return self.branches > 1 or self.group is not None


class Rope(WanRotaryPosEmbed):
    """Wan's rotary table, handed to the blocks together with the layout of the tokens it is for.

    `WorldGenerator.forward` sets `branches` and `references` for each call; the blocks then receive everything as
    arguments and hold no state, so recomputation under activation checkpointing sees the same layout.
    """

    branches: int = 1
    references: int = 0
    branch_group: dist.ProcessGroup | None = None
    context_rank: int = 0
    context_size: int = 1

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Layout]:
        """(cos, sin, layout) of latents [B,C,frames + references,h,w]."""
        cos, sin = super().forward(hidden_states)
        total = hidden_states.shape[2]
        tokens = cos.shape[1] // total
        if total % self.context_size:
            raise ValueError(
                f"context parallelism splits whole latent frames: {total} frames (video and references) do not divide "
                f"by {self.context_size} ranks; change data.references or parallel.context"
            )
        layout = Layout(
            self.branches,
            self.branch_group,
            total - self.references,
            total // self.context_size * self.context_rank,
            tokens,
            cos[:, :tokens],
            sin[:, :tokens],
        )
        return cos, sin, layout


class WorldStateAlignment(nn.Module):
    """The attention of one layer: queries from each branch, keys and values from the branch before it."""

    def __init__(self, dim: int, heads: int, eps: float, norm: str):
        super().__init__()
        self.attn = WanAttention(
            dim=dim, heads=heads, dim_head=dim // heads, eps=eps, is_cross_attention=True, processor=WanAttnProcessor()
        )
        self.norm = nn.LayerNorm(dim, eps) if norm == "affine" else None

    def forward(self, hidden_states: Tensor, modulated: Tensor, layout: Layout) -> Tensor:
        """hidden_states plus what the branch before shows, on the video frames. All [BN, L, dim]."""
        here = hidden_states.shape[1] // layout.tokens
        video = min(max(layout.frames - layout.first, 0), here)
        # A context-parallel rank that holds only references still runs one frame, times zero, so that every rank
        # reduces a gradient for every parameter.
        frames = max(video, 1)
        length = frames * layout.tokens
        query = modulated[:, :length]
        source = previous_branch(query, layout)
        out = self.attn(
            query.reshape(-1, layout.tokens, query.shape[-1]),
            source.reshape(-1, layout.tokens, query.shape[-1]),
            None,
            (layout.cos, layout.sin),
        ).reshape(query.shape)
        if video == 0:
            out = out * 0
        return torch.cat([hidden_states[:, :length] + out, hidden_states[:, length:]], dim=1)


class WorldBlock(WanTransformerBlock):
    """Wan's block, then WSA where it has one. The keys of the base block are unchanged.

    `recompute`, set by `parallelize`, runs the forward under activation checkpointing.
    """

    recompute: Callable[..., Tensor] | None = None

    def __init__(self, dim: int, ffn_dim: int, heads: int, eps: float, wsa: WsaOptions | None):
        super().__init__(dim, ffn_dim, heads, cross_attn_norm=True, eps=eps)
        self.register_module("wsa", WorldStateAlignment(dim, heads, eps, wsa.norm) if wsa else None)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        rotary_emb: tuple[Tensor, Tensor, Layout],
    ) -> Tensor:
        arguments = (hidden_states, encoder_hidden_states, temb, rotary_emb)
        if self.recompute is not None and torch.is_grad_enabled():
            return self.recompute(self._forward, *arguments)
        return self._forward(*arguments)

    def _forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        rotary_emb: tuple[Tensor, Tensor, Layout],
    ) -> Tensor:
        cos, sin, layout = rotary_emb
        hidden_states = super().forward(hidden_states, encoder_hidden_states, temb, (cos, sin))
        if self.wsa is None or not layout.aligned:
            return hidden_states
        return self.wsa(hidden_states, self._wsa_input(hidden_states, temb), layout)

    def _wsa_input(self, hidden_states: Tensor, temb: Tensor) -> Tensor:
        if self.wsa.norm is not None:
            return self.wsa.norm(hidden_states)
        shift, scale = (self.scale_shift_table + temb.float())[:, :2].unbind(1)  # the self-attention's own modulation
        normed = self.norm1(hidden_states.float())
        return (normed * (1 + scale[:, None]) + shift[:, None]).type_as(hidden_states)


def previous_branch(x: Tensor, layout: Layout) -> Tensor:
    """x [BN, ...] of the branch before each branch: a roll by one on the branch axis, or over the branch group."""
    if layout.group is not None:
        return _Exchange.apply(x, layout.group)
    return x.unflatten(0, (-1, layout.branches)).roll(1, dims=1).flatten(0, 1)


class _Exchange(torch.autograd.Function):
    """Send to the next rank of a group, receive from the one before; the gradient travels the other way."""

    @staticmethod
    def forward(ctx, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _shift(x, group, 1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _shift(grad, ctx.group, -1), None


def _shift(x: Tensor, group: dist.ProcessGroup, step: int) -> Tensor:
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    received = torch.empty_like(x, memory_format=torch.contiguous_format)
    operations = [
        dist.P2POp(dist.isend, x.contiguous(), group=group, group_peer=(rank + step) % size),
        dist.P2POp(dist.irecv, received, group=group, group_peer=(rank - step) % size),
    ]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    return received
