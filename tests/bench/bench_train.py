"""What SAWG and WSA cost beside plain diffusers Wan at equal tokens, and on a GPU what a 14B-width step reaches.

    python tests/bench/bench_train.py                 # CPU: wall share against FLOP share, in alternating runs
    python tests/bench/bench_train.py --device cuda   # GPU: step time, MFU, memory by attention backend, 34,320 tokens

Shares are (ours - plain) / plain, the median of the ratios of neighbouring runs: what slows the machine slows both.
The goal: wall share <= FLOP share + 5 points. On a GPU: MFU >= 40 % on an H100, beside the public marks for Wan-14B at
37,440 tokens, 23.1 % (diffusers and FSDP2, 64 H100) and 32.9 % (Megatron, 128 H100).
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable

import torch
from diffusers import WanTransformer3DModel

from trainer.config import TrainOptions, load
from trainer.data import Batch
from trainer.launch import distributed
from trainer.meter import flops, memory, peak_flops
from trainer.model.build import build_generator
from trainer.model.parallelize import ParallelError, make_grid
from trainer.model.sawg import SawgOptions, WanOptions, WorldGenerator, is_new
from trainer.model.wan import init_new
from trainer.model.wsa import WsaOptions
from trainer.plan import latent_shape
from trainer.plan import memory as planned
from trainer.strategy import make_strategy
from trainer.train import batch_loss

SAWG, WSA = SawgOptions(), WsaOptions(enabled=True)
BACKENDS = ["native", "_native_cudnn", "_native_flash", "flash", "_flash_3"]
GOAL_POINTS, GOAL_MFU = 0.05, 0.40


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, the device's queue emptied before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def overhead(wan: WanOptions, latent: tuple[int, int, int], references: int, text: int, rounds: int) -> dict:
    """A forward and backward pass of ours against plain Wan at equal tokens on the CPU."""
    torch.manual_seed(0)
    ours = WorldGenerator(wan, SAWG, WSA)
    init_new(ours, [name for name, _ in ours.named_parameters() if is_new(name)])
    plain = WanTransformer3DModel.from_config(dict(ours.wan.config))
    plain.load_state_dict({k: v for k, v in ours.wan.state_dict().items() if ".wsa." not in k})
    noisy, geometry, identity = (
        torch.randn(2, channels, frames, *latent[1:])
        for channels, frames in ((16, latent[0]), (32, latent[0]), (16, references))
    )
    timestep, words, latents = (
        torch.full((2,), 500.0),
        torch.randn(2, text, wan.text_dim),
        torch.cat([noisy, identity], 2),
    )

    def run_plain() -> None:
        plain.zero_grad(set_to_none=True)
        plain(latents, timestep, words, return_dict=False)[0][:, :, : latent[0]].square().mean().backward()

    def run_ours() -> None:
        ours.zero_grad(set_to_none=True)
        ours(noisy, timestep, words, geometry, identity, 2).square().mean().backward()

    run_plain(), run_ours()  # warm
    cpu, pairs = torch.device("cpu"), []
    for turn in range(rounds):  # plain first, then ours first: a drift of the machine cancels
        if turn % 2:
            seconds = timed(run_ours, cpu), timed(run_plain, cpu)
        else:
            seconds = tuple(reversed((timed(run_plain, cpu), timed(run_ours, cpu))))
        pairs.append(seconds)
    cost = flops(wan, SAWG, WSA, 2, latent, references, text, 2)
    base = flops(wan, SAWG, WsaOptions(), 2, latent, references, text, 1)
    compression = 2.0 * 2 * SAWG.kernel**2 * latent[0] * latent[1] * latent[2] * wan.in_channels * 2 * wan.in_channels
    ratios = sorted(mine / theirs - 1 for mine, theirs in pairs)
    flop_share, wall_share = cost.forward / (base.forward - compression) - 1, statistics.median(ratios)
    return {
        "rounds": rounds,
        "plain_s": statistics.median(theirs for _, theirs in pairs),
        "ours_s": statistics.median(mine for mine, _ in pairs),
        "flop_share": flop_share,
        "wall_share": wall_share,
        "wall_share_quartiles": [ratios[rounds // 4], ratios[-1 - rounds // 4]],
        "within_goal": wall_share <= flop_share + GOAL_POINTS,
    }


def step_options(branches: int, backend: str, layers: int, *words: str) -> TrainOptions:
    """A training step of the 14B at 81 x 480 x 832 with one reference: 34,320 tokens a branch. `words` change it."""
    return load(
        "train",
        [
            "shards=none", "model=phantom_wan_14b", f"experiment=stage{branches}", "parallel=single",
            "model.weights=null", "model.from_scratch=true", f"model.wan.num_layers={layers}", "data.references=1",
            "parallel.precision=bf16", f"parallel.attention={backend}", "optimizer.trainable=all", "loop.ema=0", *words,
        ],
    )  # fmt: skip


def layers_that_fit(branches: int, gib: float, *words: str) -> int:
    """By the arithmetic of `trainer.plan`, with a tenth of the memory left for what it leaves out."""
    fits = 0
    for layers in range(1, 41):
        if planned(step_options(branches, "native", layers, *words), 1).total > 0.9 * gib * 2**30:
            break
        fits = layers
    return fits


def training_step(options: TrainOptions, device: torch.device, repeats: int) -> dict:
    """Steps of the trainer itself (float32 masters, bf16 compute, recomputation, clipping, AdamW) on random latents.

    MFU counts the layers that ran, forward and backward, attention included, recomputation not.
    """
    rows, (frames, height, width, references) = options.data.branches, latent_shape(options)
    channels, text = options.model.wan.in_channels, options.data.text_length
    grid = make_grid(options.parallel, rows, device.type)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    model = build_generator(options.model, options.optimizer.trainable, options.parallel, grid, device)
    strategy = make_strategy(model, options.optimizer, options.parallel, 1, 1)

    def latents(*shape: int) -> torch.Tensor:
        return torch.randn(rows, *shape, device=device)

    batch = Batch(
        clean=latents(channels, frames, height, width),
        noise=latents(channels, frames, height, width),
        sigma=torch.full((rows,), 0.5, device=device),
        geometry=latents(2 * channels, frames, height, width),
        references=latents(channels, references, height, width),
        text=latents(text, options.model.wan.text_dim),
        weight=torch.ones(rows, frames, device=device),
        keys=("random",) * rows,
    )
    losses = []

    def step() -> None:
        loss = batch_loss(strategy.module, batch, rows, options.parallel.dtype)
        strategy.backward(loss, last=True)
        strategy.step(0)
        losses.append(float(loss.detach()))

    seconds = statistics.median([timed(step, device) for _ in range(repeats + 2)][2:])
    wan = options.model.wan
    cost = flops(
        wan, options.model.sawg, options.model.wsa, rows, (frames, height, width), references, text, rows
    ).step(options.optimizer.trainable)
    peak = peak_flops(device)
    return {
        "tokens": (frames + references) * (height // wan.patch_size[1]) * (width // wan.patch_size[2]),
        "layers": wan.num_layers,
        "step_s": seconds,
        "tflops": cost / seconds / 1e12,
        "mfu": cost / seconds / peak if peak else None,
        "memory_gib": memory(device) / 2**30,
        "planned_gib": planned(options, 1).total / 2**30,
        "loss": losses[-1],
    }


def compare_backends(
    backends: list[str], device: torch.device, gib: float, repeats: int, *words: str, layers: int = 0
) -> list[dict]:
    """One row for each stage and backend; a backend that cannot run gives a row with its reason."""
    rows = []
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    for branches in (1, 2):
        most = layers or layers_that_fit(branches, gib, *words)
        for backend in backends:
            row = {"device": name, "stage": branches, "backend": backend}
            for count in range(most, 0, -1):
                try:
                    row |= training_step(step_options(branches, backend, count, *words), device, repeats)
                    break
                except torch.OutOfMemoryError:
                    most = count - 1  # the arithmetic was too hopeful; the next backend starts from here
                except (ParallelError, RuntimeError, NotImplementedError) as error:
                    row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
                    break
                finally:
                    gc.collect()
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=15, help="CPU: rounds of plain and ours; GPU: a third, steps")
    parser.add_argument("--layers", type=int, default=0, help="14B-width blocks on the GPU; 0 = as many as fit")
    parser.add_argument("--backends", nargs="+", default=BACKENDS, help="attention backends on the GPU")
    parser.add_argument("words", nargs="*", help="options of the GPU's steps, such as parallel.compile=true")
    options = parser.parse_args()
    if options.device == "cuda":
        device = torch.device("cuda", 0)
        gib = torch.cuda.get_device_properties(device).total_memory / 2**30
        with distributed():
            repeats = max(options.repeats // 3, 1)
            rows = compare_backends(options.backends, device, gib, repeats, *options.words, layers=options.layers)
        best = max((row["mfu"] or 0 for row in rows if "mfu" in row), default=0)
        print(f"best MFU {best:.1%}, goal {GOAL_MFU:.0%} on an H100")
        return
    wan = WanOptions(num_layers=4, num_attention_heads=4, attention_head_dim=64, ffn_dim=1024, text_dim=64, freq_dim=64)
    result = overhead(wan, (5, 24, 40), 1, 32, options.repeats)
    print(json.dumps(result, default=float))
    if not torch.cuda.is_available():
        print("No GPU here: the 14B-width part (--device cuda) was not run.")


if __name__ == "__main__":
    main()
