"""How a step is taken: by torch (one rank, FSDP2) or by DeepSpeed, behind the same four verbs."""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from shards.options import option
from trainer.model.parallelize import ParallelOptions
from trainer.model.sawg import WorldGenerator, is_new, is_wsa


@dataclass
class OptimizerOptions:
    trainable: str = option(
        "all",
        "what learns. all: everything; new: the compression network and WSA; wsa: WSA alone. The paper leaves it open",
        choices=("all", "new", "wsa"),
    )
    lr: float = option(
        1e-5,
        "AdamW's constant rate for the pretrained weights; 1e-5 as DiffSynth-Studio's full training of "
        "Wan2.1-T2V-14B (VideoX-Fun: 2e-5); the paper's number is not in its text",
    )
    lr_new: float = option(
        1e-4, "rate of the new modules; AdamW moves a weight by at most the rate per step, and these start at zero"
    )
    warmup: int = option(100, "steps of linear warm-up before the constant rate; 100 as VideoX-Fun trains Wan2.1")
    beta1: float = option(0.9, "AdamW")
    beta2: float = option(0.95, "AdamW; 0.95 as finetrainers, the custom of large transformers; torch's is 0.999")
    eps: float = option(1e-8, "AdamW; torch's and finetrainers' default")
    weight_decay: float = option(
        0.01, "AdamW, on matrices and kernels only; 0.01 is torch's default (finetrainers: 1e-4, VideoX-Fun: 0.03)"
    )
    clip: float = option(
        1.0, "largest norm of the whole gradient; 1 as finetrainers and Open-Sora 2.0 (VideoX-Fun: 0.05)"
    )


def freeze(model: WorldGenerator, trainable: str) -> None:
    """Leave gradients on the chosen parameters only. Raises ValueError when nothing would learn."""
    learns = {"all": lambda name: True, "new": is_new, "wsa": is_wsa}[trainable]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(learns(name))
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"optimizer.trainable={trainable} leaves nothing to train; is model.wsa.enabled set?")


def parameter_groups(model: nn.Module, options: OptimizerOptions) -> list[dict]:
    """AdamW groups: pretrained or new, with or without decay. `base_lr` is the rate after warm-up."""
    groups: dict[tuple[bool, bool], list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((is_new(name), parameter.ndim >= 2 and "scale_shift" not in name), []).append(parameter)
    return [
        {
            "params": parameters,
            "base_lr": options.lr_new if new else options.lr,
            "lr": options.lr_new if new else options.lr,
            "weight_decay": options.weight_decay if decay else 0.0,
        }
        for (new, decay), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def adamw(groups: list[dict], options: OptimizerOptions, fused: bool) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, betas=(options.beta1, options.beta2), eps=options.eps, fused=fused)


def warm(groups: list[dict], step: int, warmup: int) -> None:
    """Set the rates of step 0, 1, ...: linear warm-up, then constant."""
    for group in groups:
        group["lr"] = group["base_lr"] * min(1.0, (step + 1) / max(warmup, 1))


class Strategy(Protocol):
    """`module` is called forward, `generator` is the model inside it."""

    module: nn.Module
    generator: WorldGenerator
    optimizer: torch.optim.Optimizer

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradient of one micro-batch; `last` marks the one after which `step` is called."""

    def step(self, number: int) -> float:
        """Clip, update, clear the gradient; returns the gradient norm before clipping."""


class Torch:
    """One rank or FSDP2: gradients are averaged over all ranks by reduce-scatter."""

    def __init__(self, model: WorldGenerator, options: OptimizerOptions, gradient_scale: float = 1.0):
        self.generator = self.module = model
        self.options, self.scale = options, gradient_scale
        fused = next(model.parameters()).device.type == "cuda"
        self.optimizer = adamw(parameter_groups(model, options), options, fused)

    def backward(self, loss: Tensor, last: bool) -> None:
        if isinstance(self.module, FSDPModule):
            self.module.set_requires_gradient_sync(last)
        (loss * self.scale).backward()

    def step(self, number: int) -> float:
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.options.clip)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        warm(self.optimizer.param_groups, number, self.options.warmup)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)


class DeepSpeed:
    """ZeRO-2 or ZeRO-3. DeepSpeed owns the step, the clipping and its own checkpoints."""

    def __init__(
        self, model: WorldGenerator, options: OptimizerOptions, parallel: ParallelOptions, micro: int, accumulate: int
    ):
        import deepspeed

        groups = parameter_groups(model, options)
        self.options = options
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=model,
            optimizer=adamw(groups, options, fused=False),
            config=deepspeed_config(options, parallel, micro, accumulate),
            dist_init_required=False,
        )
        self.generator, self.module = model, self.engine

    def backward(self, loss: Tensor, last: bool) -> None:
        # The trainer has divided by the number of micro-batches; DeepSpeed divides once more on its own.
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss * self.engine.gradient_accumulation_steps())

    def step(self, number: int) -> float:
        warm(self.optimizer.param_groups, number, self.options.warmup)
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return float(norm) if norm is not None else float("nan")


def deepspeed_config(options: OptimizerOptions, parallel: ParallelOptions, micro: int, accumulate: int) -> dict:
    """DeepSpeed's configuration: float32 masters, accumulation and communication, as FSDP2's policy has."""
    stage = int(parallel.strategy[-1])
    return {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulate,
        "gradient_clipping": options.clip,
        "bf16": {"enabled": parallel.dtype == torch.bfloat16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": {"stage": stage, "contiguous_gradients": True, "overlap_comm": torch.cuda.is_available()},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "wall_clock_breakdown": False,
    }


def make_strategy(
    model: WorldGenerator, options: OptimizerOptions, parallel: ParallelOptions, micro: int, accumulate: int
) -> "Torch | DeepSpeed":
    if parallel.strategy.startswith("deepspeed"):
        return DeepSpeed(model, options, parallel, micro, accumulate)
    return Torch(model, options, gradient_scale=float(parallel.context))


def world_mean(values: Tensor) -> Tensor:
    """Mean over all ranks, for logging and shared decisions."""
    if dist.get_world_size() > 1:
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values
