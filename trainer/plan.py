"""How much memory a configuration takes, by arithmetic.

    python -m trainer.plan model=phantom_wan_14b experiment=stage2 parallel=fsdp
    python -m trainer.plan ... plan.ranks=[8,32] plan.gib=[80,96]

Per rank: float32 masters of everything; gradients, AdamW's two moments and the weight average of what is trained,
float32; all divided by the ranks that shard them. Layers in use are gathered in the compute dtype. What a layer keeps
for its backward pass is read off the autograd graph of the real block, run on tensors without memory. Left out: the
allocator's fragmentation, NCCL's buffers (1 to 2 GiB), the frozen encoders.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from trainer.config import PlanRunOptions, TrainOptions
from trainer.launch import command
from trainer.meter import flops
from trainer.model.parallelize import ParallelOptions
from trainer.model.sawg import WorldGenerator
from trainer.strategy import freeze

GIB = 2**30
FLOAT32 = 4
GATHERED_BLOCKS = 2  # FSDP2 gathers the next block while one computes


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank at the peak, in the backward pass."""

    masters: float
    gradients: float
    moments: float
    average: float
    gathered: float
    activations: float

    @property
    def total(self) -> float:
        return sum(vars(self).values())


def latent_shape(options: TrainOptions) -> tuple[int, int, int, int]:
    """(frames, rows, columns) of the latents and references appended."""
    clip, encoders = options.data.clip, options.model.encoders
    stride = 8 if encoders.video == "wan" else encoders.patch  # Wan2.1's VAE: 8 x 8 pixels, 4 frames
    return (clip.frames - 1) // 4 + 1, clip.height // stride, clip.width // stride, options.data.references


def kept_by_block(options: TrainOptions) -> dict[str, float]:
    """Bytes one block holds for its backward pass by checkpointing mode, for one micro-batch of one rank.

    none: everything; selective: its input and the attention outputs; full: its input.
    """
    frames, rows, columns, references = latent_shape(options)
    wan, data, parallel = options.model.wan, options.data, options.parallel
    branches = 1 if parallel.branch else data.branches
    batch = options.loop.batch * branches
    with FakeTensorMode(), default_dtype(parallel.dtype):
        model = WorldGenerator(type(wan)(**{**vars(wan), "num_layers": 1}), options.model.sawg, options.model.wsa)
        freeze(model, options.optimizer.trainable)
        block, dim = model.wan.blocks[0], wan.num_attention_heads * wan.attention_head_dim
        model.wan.rope.branches, model.wan.rope.references = branches, references
        rotary = model.wan.rope(torch.empty(1, wan.in_channels, frames + references, rows, columns))
        tokens = rotary[0].shape[1]
        x = torch.empty(batch, tokens, dim, requires_grad=True)
        text = torch.empty(batch, data.text_length, dim)
        saved = _saved(lambda: block(x, text, torch.empty(batch, 6, dim), rotary), model)
    attentions = 3 if block.wsa is not None and branches > 1 else 2
    full = float(x.nbytes)
    share = 1 / parallel.context
    return {"none": saved * share, "selective": full * (1 + attentions) * share, "full": full * share}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New float tensors have this dtype inside the block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _saved(forward: Callable[[], torch.Tensor], model: torch.nn.Module) -> float:
    """Bytes of distinct storages that the graph of forward() keeps, parameters aside."""
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, int] = {}
    alive = []  # storages are told apart by address, so none may be freed meanwhile

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        alive.append(forward())
    return float(sum(kept.values()))


def memory(options: TrainOptions, ranks: int) -> Memory:
    """The peak of one of `ranks` ranks."""
    with torch.device("meta"):
        model = WorldGenerator(options.model.wan, options.model.sawg, options.model.wsa)
    freeze(model, options.optimizer.trainable)
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    block = list(model.wan.blocks[0].parameters())
    shards = sharding(options.parallel, ranks)
    size = options.parallel.dtype.itemsize
    gathered = 0.0
    if shards["masters"] > 1 or size < FLOAT32:
        gathered = GATHERED_BLOCKS * size * sum(p.numel() for p in block)
        gathered += (size + FLOAT32) * sum(p.numel() for p in block if p.requires_grad)  # its gradient, then reduced
    kept = kept_by_block(options)
    mode, layers = options.parallel.checkpointing, options.model.wan.num_layers
    activations = layers * kept[mode] + (0 if mode == "none" else kept["none"])
    return Memory(
        masters=FLOAT32 * total / shards["masters"],
        gradients=FLOAT32 * trained / shards["gradients"],
        moments=2 * FLOAT32 * trained / shards["moments"],
        average=FLOAT32 * trained / shards["masters"] if options.loop.ema else 0.0,
        gathered=gathered,
        activations=activations,
    )


def sharding(parallel: ParallelOptions, ranks: int) -> dict[str, int]:
    """Over how many ranks each part is divided."""
    full = {"single": 1, "fsdp": ranks, "hsdp": min(parallel.shard, ranks), "deepspeed_zero3": ranks}
    if parallel.strategy == "deepspeed_zero2":
        return {"masters": 1, "gradients": ranks, "moments": ranks}
    return dict.fromkeys(("masters", "gradients", "moments"), full[parallel.strategy])


def page(options: PlanRunOptions) -> str:
    """The table `python -m trainer.plan` prints."""
    frames, rows, columns, references = latent_shape(options)
    wan, data = options.model.wan, options.data
    spatial = (rows // wan.patch_size[1]) * (columns // wan.patch_size[2])
    cost = flops(
        wan, options.model.sawg, options.model.wsa, options.loop.batch * data.branches, (frames, rows, columns),
        references, data.text_length, data.branches,
    )  # fmt: skip
    lines = [
        f"{options.model.name}, {data.branches} branch(es), {(frames + references) * spatial:,} tokens each "
        f"({frames}+{references} latent frames x {spatial}), {options.parallel.strategy}, "
        f"checkpointing {options.parallel.checkpointing}, trains {options.optimizer.trainable}",
        f"forward {cost.forward / 1e12:,.1f} TFLOP (attention {cost.attention / cost.forward:.0%}, "
        f"WSA {cost.wsa / cost.forward:.1%}), step {cost.step(options.optimizer.trainable) / 1e12:,.1f} TFLOP, per "
        "micro-batch",
        "",
        f"{'ranks':>5} {'device':>7}" + "".join(f"{name:>13}" for name in (*Memory.__annotations__, "total")) + "  GiB",
    ]
    for ranks, gib in zip(options.plan.ranks, options.plan.gib, strict=True):
        need = memory(options, ranks)
        cells = [*vars(need).values(), need.total]
        verdict = "fits" if need.total / GIB < gib - 2 else "DOES NOT FIT"
        lines.append(f"{ranks:>5} {gib:>7g}" + "".join(f"{c / GIB:>13.2f}" for c in cells) + f"  {verdict}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(command("plan", __doc__, lambda options: print(page(options))))
