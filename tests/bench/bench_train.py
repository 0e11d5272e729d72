"""What SAWG and WSA cost beside plain diffusers Wan at equal tokens, and on a GPU what a 14B-width step reaches.

    python tests/bench/bench_train.py                 # CPU: wall share against FLOP share, in alternating runs
    python tests/bench/bench_train.py --device cuda   # GPU: step time, MFU, memory by attention backend, 34,320 tokens

Shares are ratios within one run on one machine: (ours - plain) / plain, of the fastest of several alternating repeats.
The goal: wall share <= FLOP share + 5 points. On a GPU: MFU >= 40 % on an H100, beside the public marks for Wan-14B at
37,440 tokens, 23.1 % (diffusers and FSDP2, 64 H100) and 32.9 % (Megatron, 128 H100).
"""

import argparse
import json
import time
from collections.abc import Callable

import torch
from diffusers import WanTransformer3DModel

from trainer.meter import flops, peak_flops
from trainer.model.parallelize import ParallelOptions, set_attention
from trainer.model.sawg import SawgOptions, WanOptions, WorldGenerator, is_new
from trainer.model.wan import init_new
from trainer.model.wsa import WsaOptions

SAWG, WSA = SawgOptions(), WsaOptions(enabled=True)


def batch(
    wan: WanOptions, latent: tuple, references: int, text: int, rows: int, device: str, dtype: torch.dtype
) -> tuple:
    """Arguments of a WorldGenerator, two branches in `rows` rows."""
    make = lambda *shape: torch.randn(shape, device=device, dtype=dtype)  # noqa: E731
    return (
        make(rows, wan.in_channels, *latent), torch.full((rows,), 500.0, device=device), make(rows, text, wan.text_dim),
        make(rows, 2 * wan.in_channels, *latent), make(rows, wan.in_channels, references, *latent[1:]), rows,
    )  # fmt: skip


def step(call: Callable[[], torch.Tensor], model: torch.nn.Module, device: str) -> float:
    """Seconds of a forward and backward pass."""
    model.zero_grad(set_to_none=True)
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call().float().square().mean().backward()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def overhead(wan: WanOptions, latent: tuple, references: int, text: int, repeats: int) -> dict:
    """Ours against plain Wan at equal tokens on the CPU, alternating, so that a busy machine slows both."""
    torch.manual_seed(0)
    ours = WorldGenerator(wan, SAWG, WSA)
    init_new(ours, [name for name, _ in ours.named_parameters() if is_new(name)])
    plain = WanTransformer3DModel.from_config(dict(ours.wan.config))
    plain.load_state_dict({k: v for k, v in ours.wan.state_dict().items() if ".wsa." not in k})
    arguments = batch(wan, latent, references, text, 2, "cpu", torch.float32)
    noisy, timestep, words, _, identity, _ = arguments
    latents = torch.cat([noisy, identity], dim=2)
    calls = {
        "plain": (lambda: plain(latents, timestep, words, return_dict=False)[0][:, :, : latent[0]], plain),
        "ours": (lambda: ours(*arguments), ours),
    }
    seconds = {name: [] for name in calls}
    for _ in range(repeats + 1):  # the first round warms up
        for name, (call, model) in calls.items():
            seconds[name].append(step(call, model, "cpu"))
    best = {name: min(times[1:]) for name, times in seconds.items()}
    cost = flops(wan, SAWG, WSA, 2, latent, references, text, 2)
    base = flops(wan, SAWG, WsaOptions(), 2, latent, references, text, 1)
    compression = 2.0 * 2 * SAWG.kernel**2 * latent[0] * latent[1] * latent[2] * wan.in_channels * 2 * wan.in_channels
    flop_share = cost.forward / (base.forward - compression) - 1
    wall_share = best["ours"] / best["plain"] - 1
    return {
        "plain_s": best["plain"], "ours_s": best["ours"], "flop_share": flop_share, "wall_share": wall_share,
        "within_goal": wall_share <= flop_share + 0.05,
    }  # fmt: skip


def gpu(layers: int, backends: list[str], repeats: int) -> list[dict]:
    """Real 14B-width blocks in bf16 with full recomputation, as many as asked: step time, MFU, memory by backend.

    MFU counts the layers that ran, 3 x forward, attention included, recomputation not.
    """
    wan, latent, references, text = WanOptions(num_layers=layers), (21, 60, 104), 1, 512
    rows = []
    for branches in (1, 2):
        for backend in backends:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            row = {"branches": branches, "layers": layers, "backend": backend, "device": torch.cuda.get_device_name()}
            try:
                with torch.device("cuda"):
                    model = WorldGenerator(wan, SAWG, WSA if branches == 2 else WsaOptions()).bfloat16()
                model.restore_rope(torch.device("cuda"))
                set_attention(model, backend)
                from trainer.model.parallelize import _recompute

                for block in model.wan.blocks:
                    block.recompute = _recompute(ParallelOptions().checkpointing)
                arguments = batch(wan, latent, references, text, branches, "cuda", torch.bfloat16)
                times = [step(lambda m=model, a=arguments: m(*a), model, "cuda") for _ in range(repeats + 2)][2:]
                cost = flops(wan, SAWG, WSA, branches, latent, references, text, branches).step()
                peak = peak_flops(torch.device("cuda"))
                row |= {
                    "step_s": min(times), "tflops": cost / min(times) / 1e12,
                    "mfu": cost / min(times) / peak if peak else None,
                    "memory_gib": torch.cuda.max_memory_allocated() / 2**30,
                }  # fmt: skip
            except (torch.cuda.OutOfMemoryError, RuntimeError, ValueError, ImportError) as error:
                row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            rows.append(row)
            print(json.dumps(row), flush=True)
            model = None
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--layers", type=int, default=6, help="14B-width blocks on the GPU; 6 fit 80 GB without sharding"
    )
    parser.add_argument(
        "--backends", nargs="+", default=["native", "_native_cudnn", "_native_flash", "flash", "_flash_3"]
    )
    options = parser.parse_args()
    if options.device == "cuda":
        gpu(options.layers, options.backends, options.repeats)
        return
    wan = WanOptions(num_layers=4, num_attention_heads=4, attention_head_dim=64, ffn_dim=1024, text_dim=64, freq_dim=64)
    result = overhead(wan, (5, 24, 40), 1, 32, options.repeats)
    print(json.dumps({name: round(value, 4) for name, value in result.items()}))
    print("No GPU here: the 14B-width part (--device cuda) was not run." if not torch.cuda.is_available() else "")


if __name__ == "__main__":
    main()
