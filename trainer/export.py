"""Trained weights as safetensors: what diffusers loads, and what only this model has."""

import json
from pathlib import Path

import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from trainer.model.sawg import is_new
from trainer.state import Ema, averaged
from trainer.strategy import DeepSpeed, Torch

SHARD_BYTES = 5 * 1024**3  # diffusers splits its files at 5 GB
STEM = "diffusion_pytorch_model"


def export(strategy: Torch | DeepSpeed, ema: Ema | None, folder: Path) -> None:
    """Full weights, averaged where there is an average. `model.weights=<folder>` reads them back.

    <folder>/transformer/   the base, float32, in diffusers' layout (`WanTransformer3DModel.from_pretrained`)
    <folder>/world.safetensors   compression network and WSA

    Collective: every rank calls it, rank 0 writes.
    """
    with averaged(ema):  # until they are written: what is gathered may be the parameters themselves
        full = _gather(strategy)
        if dist.get_rank() == 0:
            transformer = folder / "transformer"
            transformer.mkdir(parents=True, exist_ok=True)
            _save_sharded({n.removeprefix("wan."): t for n, t in full.items() if not is_new(n)}, transformer)
            config = dict(strategy.generator.wan.config)
            config["_class_name"] = "WanTransformer3DModel"
            (transformer / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
            save_file({n: t for n, t in full.items() if is_new(n)}, folder / "world.safetensors")
    dist.barrier()


def _gather(strategy: Torch | DeepSpeed) -> dict[str, Tensor]:
    """Name -> full float32 tensor on the CPU, on rank 0 (DeepSpeed's compute copy, not its masters)."""
    if isinstance(strategy, Torch):
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return {n: t.contiguous() for n, t in get_model_state_dict(strategy.module, options=options).items()}
    import deepspeed

    full = {}
    for name, parameter in strategy.generator.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            if dist.get_rank() == 0:
                full[name] = parameter.detach().float().cpu().clone()
    return full


def _save_sharded(state: dict[str, Tensor], folder: Path) -> None:
    """One file, or files of at most SHARD_BYTES with an index."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in sorted(state.items()):
        if shards[-1] and size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / f"{STEM}.safetensors")
        return
    names = [f"{STEM}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / name)
    index = {
        "metadata": {"total_size": sum(t.nbytes for t in state.values())},
        "weight_map": {key: name for name, shard in zip(names, shards, strict=True) for key in shard},
    }
    (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
