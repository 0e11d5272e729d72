"""Every kind of parallelism, applied from outside to a single-device model by one function, in one order.

context -> branch -> activation checkpointing -> compile -> FSDP2. The ranks form a grid data x branch x context;
parameters are sharded over all of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from shards.options import option
from trainer.model.sawg import WorldGenerator


@dataclass
class ParallelOptions:
    strategy: str = option(
        "single",
        "single: one rank; fsdp: parameters, gradients and optimiser sharded over all ranks; hsdp: sharded within "
        "groups of `shard` ranks, replicated between them; deepspeed_zero2, deepspeed_zero3: DeepSpeed's ZeRO",
        choices=("single", "fsdp", "hsdp", "deepspeed_zero2", "deepspeed_zero3"),
    )
    shard: int = option(8, "hsdp: ranks that share one copy of the parameters; the GPUs of a node")
    precision: str = option(
        "auto",
        "of compute; masters, gradients' reduction and the optimiser are float32. auto: bf16 (the paper's) on a GPU, "
        "fp32 on a CPU",
        choices=("auto", "bf16", "fp32"),
    )
    context: int = option(1, "Ulysses context parallelism: ranks that split the latent frames of a sample")
    branch: bool = option(False, "one branch (agent) of a sample per rank; WSA then exchanges with the neighbour rank")
    checkpointing: str = option(
        "full",
        "activations kept for backward. none: all; selective: attention outputs, the rest recomputed; full: only the "
        "input of each layer",
        choices=("none", "selective", "full"),
    )
    compile: bool = option(False, "torch.compile each transformer block (regional)")
    compile_backend: str = option("inductor", "torch.compile backend", ("inductor", "aot_eager", "eager"))
    attention: str = option(
        "auto",
        "diffusers' attention backend; auto: cuDNN on Hopper and later, else torch's own choice; see "
        "diffusers.models.attention_dispatch.AttentionBackendName",
    )
    timeout_s: float = option(1800.0, "seconds after which a collective that a dead rank left hanging is an error")

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype on this machine."""
        half = self.precision == "bf16" or (self.precision == "auto" and torch.cuda.is_available())
        return torch.bfloat16 if half else torch.float32


@dataclass(frozen=True)
class Grid:
    """Where this rank stands: `data` ranks read different samples; branch and context peers share a sample."""

    mesh: DeviceMesh | None
    data: int = 0
    data_size: int = 1
    branch: int | None = None
    context: int = 0
    context_size: int = 1


class ParallelError(ValueError):
    """The options do not fit the ranks."""


def make_grid(options: ParallelOptions, branches: int, device: str) -> Grid:
    """The grid of ranks. Raises ParallelError when the world size does not divide."""
    world = dist.get_world_size()
    if options.strategy == "single" and world > 1:
        raise ParallelError(f"parallel=single was launched on {world} ranks; use parallel=fsdp")
    if options.branch and branches < 2:
        raise ParallelError("parallel.branch needs data.branches >= 2")
    if options.strategy.startswith("deepspeed") and (options.branch or options.context > 1):
        raise ParallelError("branch and context parallelism run with fsdp or hsdp, not with DeepSpeed")
    size = (branches if options.branch else 1) * options.context
    if world % size:
        raise ParallelError(f"{world} ranks do not divide by branch x context = {size}")
    if world == 1:
        return Grid(None)
    shape = (world // size, branches if options.branch else 1, options.context)
    mesh = init_device_mesh(device, shape, mesh_dim_names=("data", "branch", "context"))
    data, branch, context = mesh.get_coordinate()
    return Grid(mesh, data, shape[0], branch if options.branch else None, context, options.context)


def parallelize(model: WorldGenerator, options: ParallelOptions, grid: Grid) -> None:
    """Apply everything but DeepSpeed, in place. The model may be on the meta device.

    Freeze parameters before this and build the optimiser after it.
    """
    set_attention(model, options.attention)
    if options.context > 1:
        _split_context(model, grid)
    if grid.branch is not None:
        model.wan.rope.branch_group = grid.mesh["branch"].get_group()
    for block in model.wan.blocks:
        block.recompute = _recompute(options.checkpointing)
        if options.compile:
            block.compile(backend=options.compile_backend)
    if options.strategy in ("fsdp", "hsdp") or (options.strategy == "single" and options.dtype != torch.float32):
        _shard(model, options)


def _shard(model: WorldGenerator, options: ParallelOptions) -> None:
    device = next(model.parameters()).device.type
    device = "cuda" if device == "meta" and torch.cuda.is_available() else device.replace("meta", "cpu")
    world = dist.get_world_size()
    if options.strategy == "hsdp":
        if world % options.shard:
            raise ParallelError(f"parallel.shard={options.shard} does not divide {world} ranks")
        mesh = init_device_mesh(device, (world // options.shard, options.shard), mesh_dim_names=("replicate", "shard"))
    else:
        mesh = init_device_mesh(device, (world,), mesh_dim_names=("shard",))

    def policy(dtype: torch.dtype) -> MixedPrecisionPolicy:
        # Inputs are not cast: rotary tables and the timestep must stay float32 (bf16 has a spacing of 4 near 1000).
        return MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)

    for block in model.wan.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy(options.dtype))
    fully_shard(model.wan.condition_embedder.time_embedder, mesh=mesh, mp_policy=policy(torch.float32))
    fully_shard(model, mesh=mesh, mp_policy=policy(options.dtype))


def _recompute(kind: str) -> Callable | None:
    """What runs a block's forward so that its activations are made again in the backward pass."""
    if kind == "none":
        return None
    if kind == "full":
        return partial(checkpoint, use_reentrant=False)

    def keep(ctx, op, *args, **kwargs) -> CheckpointPolicy:
        # by name: torch's own (aten::_scaled_dot_product_*_attention*), flash_attn's and flash_attn_3's
        attends = "attention" in str(op) or "flash_attn" in str(op)
        return CheckpointPolicy.MUST_SAVE if attends else CheckpointPolicy.PREFER_RECOMPUTE

    return partial(checkpoint, use_reentrant=False, context_fn=partial(create_selective_checkpoint_contexts, keep))


def _split_context(model: WorldGenerator, grid: Grid) -> None:
    """diffusers' Ulysses hooks, applied by hand: its own `enable_parallelism` divides by the number of accelerators
    and so does not run on CPU ranks."""
    from diffusers import ContextParallelConfig
    from diffusers.hooks.context_parallel import apply_context_parallel
    from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput, ParallelConfig

    heads = model.options[0].num_attention_heads
    if heads % grid.context_size:
        raise ParallelError(f"Ulysses splits heads: {heads} do not divide by parallel.context={grid.context_size}")
    world = dist.get_world_size()
    mesh = init_device_mesh(
        grid.mesh.device_type,
        (world // grid.context_size, 1, grid.context_size),
        mesh_dim_names=("rest", "ring", "ulysses"),
    )
    table = ContextParallelInput(split_dim=1, expected_dims=4)
    plan = {
        "blocks.0": {"hidden_states": ContextParallelInput(split_dim=1, expected_dims=3)},
        "blocks.*": {
            "rotary_emb": [table, table, table]
        },  # the third is the Layout, which is no tensor and stays whole
        "proj_out": ContextParallelOutput(gather_dim=1, expected_dims=3),
    }
    ulysses = ContextParallelConfig(ulysses_degree=grid.context_size)
    config = ParallelConfig(context_parallel_config=ulysses)
    config.setup(dist.get_rank(), world, torch.device(mesh.device_type), mesh=mesh["ring", "ulysses"])
    for block in model.wan.blocks:
        block.attn1.processor._parallel_config = config
    apply_context_parallel(model.wan, ulysses, plan)
    model.wan.rope.context_rank, model.wan.rope.context_size = grid.context, grid.context_size


def set_attention(model: WorldGenerator, backend: str) -> str:
    """Choose diffusers' attention backend by what the device has; returns its name. ParallelError when it cannot run.

    auto: cuDNN's fused attention on Hopper (9.0) and later, where it is the fastest that torch brings along; torch's
    own choice elsewhere.
    """
    if backend == "auto":
        hopper = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)
        backend = "_native_cudnn" if hopper else "native"
    try:
        model.wan.set_attention_backend(backend)
    except (ValueError, RuntimeError, ImportError) as error:
        raise ParallelError(f"parallel.attention={backend}: {error}") from error
    return backend
