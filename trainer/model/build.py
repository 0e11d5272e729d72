"""From options to a parallel model with its weights in place."""

import torch

from trainer.config import ModelOptions
from trainer.model.parallelize import Grid, ParallelOptions, parallelize
from trainer.model.sawg import WorldGenerator, is_new
from trainer.model.wan import CheckpointError, init_new, load_weights, locate
from trainer.strategy import freeze


def build_generator(
    options: ModelOptions,
    trainable: str,
    parallel: ParallelOptions,
    grid: Grid,
    device: torch.device,
    seed: int = 0,
) -> WorldGenerator:
    """The generator on `device` (DeepSpeed's: on the CPU), float32, parallelised, weights loaded, new modules set.

    With weights it is born on the meta device and each rank reads its own shard. Without, every rank draws the same
    random weights from `seed`, which `model.from_scratch` has to ask for.
    """
    path = locate(options.weights, options.revision) if options.weights else None
    if path is None and not options.from_scratch:
        raise CheckpointError(
            f"model.weights is not set for {options.name}: give a checkpoint, or model.from_scratch=true for "
            "random weights"
        )
    torch.manual_seed(seed)
    # DeepSpeed partitions real parameters itself. It is given a whole model in the host's memory, and moves it to the
    # device in the compute dtype: 14B in float32 would not fit there.
    whole = parallel.strategy.startswith("deepspeed")
    lazily = path is not None and not whole
    with torch.device("meta" if lazily else "cpu" if whole else device):
        model = WorldGenerator(options.wan, options.sawg, options.wsa)
    freeze(model, trainable)
    parallelize(model, parallel, grid)
    if lazily:
        model.to_empty(device=device)
    if path is None:
        init_new(model, [name for name, _ in model.named_parameters() if is_new(name)], seed)
    else:
        init_new(model, load_weights(model, path), seed)
    if lazily:
        model.restore_rope(device)
    return model
