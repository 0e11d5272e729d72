"""The configuration of the trainer, typed and described; conf/*.yaml fill it in, unknown keys are refused.

`python -m trainer.config > docs/training_options.md` writes the page of options (`--check FILE` compares instead).
"""

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from shards.config import compose, must
from shards.options import option, options_tables, page_command
from trainer.data import DataOptions
from trainer.flow import FlowOptions
from trainer.model.encoders import EncoderOptions
from trainer.model.parallelize import ParallelOptions
from trainer.model.sawg import SawgOptions, WanOptions
from trainer.model.wsa import WsaOptions
from trainer.strategy import OptimizerOptions

CONF = Path(__file__).resolve().parent.parent / "conf"


@dataclass
class ModelOptions:
    name: str = option("phantom_wan_14b", "what the run calls it")
    weights: str | None = option(
        None,
        "checkpoint: .pth, .safetensors, folder with an index, an export of this trainer, or hf://owner/repo/path; "
        "null = random weights, allowed with from_scratch only",
    )
    revision: str | None = option(None, "revision of an hf:// checkpoint; null = the newest")
    from_scratch: bool = option(False, "random base weights are meant (tiny, benchmarks)")
    wan: WanOptions = option(WanOptions(), "the Wan2.1 architecture")
    sawg: SawgOptions = option(SawgOptions(), "geometry compression")
    wsa: WsaOptions = option(WsaOptions(), "World-State Alignment")
    encoders: EncoderOptions = option(EncoderOptions(), "VAE and text encoder")


@dataclass
class SampleOptions:
    steps: int = option(40, "Euler steps; the paper: 40")
    image_scale: float = option(5.0, "guidance on the references (Phantom's s_img); the paper: one scale of 5")
    text_scale: float = option(
        5.0, "guidance on the text (Phantom's s_text; its release uses 7.5). Equal scales need two passes"
    )
    condition: str = option("holistic", "background of the condition: anchor or holistic", ("anchor", "holistic"))
    count: int = option(1, "units sampled at each interval of training")


@dataclass
class LoopOptions:
    steps: int = option(10_000, "optimiser steps; the paper gives none")
    batch: int = option(1, "samples per rank and micro-batch")
    accumulate: int = option(1, "micro-batches per step")
    ema: float = option(
        0.999,
        "decay of the weight average that is evaluated, sampled and exported; 0.999 as FastVideo's fine-tuning; 0 = "
        "none (DeepSpeed owns the weights and has none)",
    )
    log_every: int = option(10, "steps between log lines")
    evaluate_every: int = option(500, "steps between held-out losses; 0 = never")
    sigmas: list[float] = option([0.1, 0.3, 0.5, 0.7, 0.9], "noise levels of the held-out loss")
    held_out_batches: int = option(64, "most held-out batches per rank; a unit at one sigma is one sample")
    sample_every: int = option(1000, "steps between sample videos; 0 = never")
    checkpoint_every: int = option(500, "steps between checkpoints")
    keep: int = option(3, "complete checkpoints kept")
    wandb: str | None = option(None, "wandb project to log to as well; needs the wandb package")


@dataclass
class TrainOptions:
    shards: str = option(MISSING, "folder or URL of sample shards (or of latent shards made by trainer.encode)")
    output: str = option("runs/${model.name}", "folder of checkpoints, logs, samples and the export")
    latents: str = option("${output}/latents", "where data.encode=ahead keeps the latent shards; share it between runs")
    resume: bool = option(True, "go on from the newest complete checkpoint of the output folder")
    model: ModelOptions = option(ModelOptions(), "architecture and weights")
    data: DataOptions = option(DataOptions(), "clips, conditions and dropout")
    flow: FlowOptions = option(FlowOptions(), "noise schedule")
    optimizer: OptimizerOptions = option(OptimizerOptions(), "AdamW")
    parallel: ParallelOptions = option(ParallelOptions(), "ranks, precision and memory")
    loop: LoopOptions = option(LoopOptions(), "length and intervals")
    sample: SampleOptions = option(SampleOptions(), "sampling")


@dataclass
class EncodeOptions:
    shards: str = option(MISSING, "folder or URL of sample shards")
    latents: str = option(MISSING, "folder or URL of the latent shards to write")
    model: ModelOptions = option(ModelOptions(), "whose encoders")
    data: DataOptions = option(DataOptions(), "clip window and size")


@dataclass
class SampleRunOptions:
    shards: str = option(
        MISSING, "folder or URL of samples or inference requests; the N views of a world are its agents"
    )
    output: str = option("runs/samples", "folder of the videos, one mp4 per agent")
    latents: str = option("${output}/latents", "where data.encode=ahead keeps the latent shards")
    model: ModelOptions = option(ModelOptions(), "model.weights is the export of a run")
    data: DataOptions = option(DataOptions(), "data.branches is the number of agents N")
    flow: FlowOptions = option(FlowOptions(), "noise schedule")
    parallel: ParallelOptions = option(ParallelOptions(), "ranks and precision")
    sample: SampleOptions = option(SampleOptions(), "sampling")
    seed: int = option(0, "of the initial noise")
    limit: int = option(0, "units sampled; 0 = all")


@dataclass
class PlanOptions:
    ranks: list[int] = option([8, 32], "numbers of ranks")
    gib: list[float] = option([80.0, 96.0], "memory of a device, GiB, for each number of ranks")


@dataclass
class PlanRunOptions(TrainOptions):
    shards: str = option("none", "not read")
    plan: PlanOptions = option(PlanOptions(), "what to print")


VERBS = {"train": TrainOptions, "encode": EncodeOptions, "sample": SampleRunOptions, "plan": PlanRunOptions}
GROUPS = dict.fromkeys(("train", "plan"), ("model", "experiment", "parallel"))
GROUPS |= {"encode": ("model",), "sample": ("model", "parallel")}


def load(verb: str, words: Sequence[str]) -> Any:
    """The options of a verb from `key=value` words. ConfigError names the key and what was expected."""
    paths = [name for name in ("shards", "output", "latents") if hasattr(VERBS[verb], name)]
    page = "docs/training_options.md"
    options = compose(verb, VERBS[verb], words, CONF, groups=GROUPS[verb], paths=paths, page=page)
    _check(options)
    return options


def _check(options: Any) -> None:
    """ConfigError for options that cannot be or contradict each other."""
    clip, cell = options.data.clip, token_side(options.model)
    must(clip.frames % 4 == 1, f"data.clip.frames={clip.frames}: 1 + 4k was expected, like 49 or 81")
    for name, side in (("height", clip.height), ("width", clip.width)):
        must(side > 0 and side % cell == 0, f"data.clip.{name}={side}: a multiple of {cell} pixels was expected")
    if isinstance(options, TrainOptions):
        loop, strategy = options.loop, options.parallel.strategy
        must(loop.batch > 0 and loop.accumulate > 0, "loop.batch and loop.accumulate start at 1")
        must(all(0 < s <= 1 for s in loop.sigmas), f"loop.sigmas={loop.sigmas}: noise levels in (0, 1] were expected")
        must(
            not (strategy.startswith("deepspeed") and loop.ema),
            f"loop.ema={loop.ema}: DeepSpeed owns the weights, so there is no average; set loop.ema=0",
        )
        must(
            not loop.wandb or importlib.util.find_spec("wandb") is not None,
            f"loop.wandb={loop.wandb}: the wandb package is not installed; pip install wandb",
        )
    if isinstance(options, PlanRunOptions):
        must(len(options.plan.ranks) == len(options.plan.gib), "plan.gib: one for each of plan.ranks was expected")


def token_side(model: ModelOptions) -> int:
    """Pixels of a token's side: the autoencoder's stride times the patch."""
    stride = 8 if model.encoders.video == "wan" else model.encoders.patch  # Wan2.1's VAE: 8 x 8 pixels
    return stride * max(model.wan.patch_size[1:])


def page() -> str:
    """docs/training_options.md."""
    lines = [
        "# Options of the trainer",
        "",
        "<!-- Made by `python -m trainer.config`; edit the options in the code instead. -->",
        "",
        '`python -m trainer.train key=value ...`, or `make train OPTIONS="key=value ..."`. Unknown keys are refused.',
        "These are the defaults of the code; `model=`, `experiment=` and `parallel=` choose files of `conf/` that set",
        "some of them (`python -m trainer.train --show ...` prints the outcome and runs nothing).",
        "`trainer.encode` and `trainer.sample` take the groups that they need, under the same names.",
    ]
    lines += options_tables("Training", TrainOptions(), "", "`python -m trainer.train`")
    own = ("seed", "limit")
    rest = [
        line
        for line in options_tables("", SampleRunOptions(), "", "")
        if line.startswith(tuple(f"| `{n}`" for n in own))
    ]
    lines += ["", "## Sampling only", "", "| key | default | meaning |", "|---|---|---|", *rest]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(page_command(sys.argv[1:], page(), "python -m trainer.config"))
