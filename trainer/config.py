"""The configuration of the trainer, typed and described; conf/*.yaml fill it in, unknown keys are refused.

`python -m trainer.config > docs/training_options.md` writes the page of options (`--check FILE` compares instead).
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from shards.options import option, options_tables
from trainer.data import DataOptions
from trainer.flow import FlowOptions
from trainer.model.encoders import EncoderOptions
from trainer.model.parallelize import ParallelOptions
from trainer.model.sawg import SawgOptions, WanOptions
from trainer.model.wsa import WsaOptions
from trainer.strategy import OptimizerOptions


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
    ema: float = option(0.999, "decay of the weight average; 0 = none (needed with DeepSpeed, which owns the weights)")
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


def register() -> None:
    """Put the typed schemas where conf/*.yaml find them."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainOptions)
    store.store(name="encode_schema", node=EncodeOptions)
    store.store(name="sample_schema", node=SampleRunOptions)


class ConfigError(ValueError):
    """Options that contradict each other or lie outside their choices."""


def typed(config: DictConfig) -> Any:
    """The dataclasses of a composed configuration, checked. Raises ConfigError."""
    options = OmegaConf.to_object(config)
    _check_choices(options, "")
    return options


def _check_choices(options: Any, path: str) -> None:
    import dataclasses

    for field in dataclasses.fields(options):
        value, name = getattr(options, field.name), f"{path}{field.name}"
        if dataclasses.is_dataclass(value):
            _check_choices(value, f"{name}.")
        choices = field.metadata.get("choices") or ()
        if choices and value not in choices:
            raise ConfigError(f"{name}={value!r}: choose one of {', '.join(choices)}")


def page() -> str:
    """docs/training_options.md."""
    lines = [
        "# Options of the trainer",
        "",
        "<!-- Made by `python -m trainer.config`; edit the options in the code instead. -->",
        "",
        '`python -m trainer.train key=value ...`, or `make train OPTIONS="key=value ..."`. Unknown keys are refused.',
        "These are the defaults of the code; `model=`, `experiment=` and `parallel=` choose files of `conf/` that set",
        "some of them (`python -m trainer.train --cfg job ...` prints the outcome and runs nothing).",
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


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--check"]:
        if Path(arguments[1]).is_file() and Path(arguments[1]).read_text() == page():
            return 0
        print(f"{arguments[1]} is out of date; run: python -m trainer.config > {arguments[1]}", file=sys.stderr)
        return 1
    sys.stdout.write(page())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
