"""How fast foundation perception can be at best: floating-point operations of every network for one frame.

    python tests/bench/flops.py [--size 480 832] [--tflops 400] [key=value ...]

Counted by torch over the full-size architectures: no weights, no GPU, a minute on any machine. A
multiply-add is two operations. `--tflops` is the rate that the network is assumed to reach: 400 TFLOP/s is 40 % of the
dense 16-bit peak of an H100 SXM (989 TFLOP/s, NVIDIA's data sheet), as large matrix products do; small ones and
convolutions do less. What the times leave out: launches of small kernels, memory traffic, copies, the CPU's steps.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from anywhere, installed or not

from engine.perception import random_weights
from engine.perception.depth_anything import input_size
from engine.perception.foundation import FoundationOptions, from_dotlist
from engine.perception.sam2 import build_sam2

META = torch.device("meta")
SUBJECTS, FRAMES = 2, 81  # a clip of two people


def count(run: Callable[[], object], device: str = "meta") -> float:
    """Floating-point operations of a call, in TFLOP."""
    with torch.device(device), FlopCounterMode(display=False) as counter, torch.inference_mode():
        run()
    return counter.get_total_flops() / 1e12


def moge(options: FoundationOptions, size: tuple[int, int]) -> float:
    from moge.model.v2 import MoGeModel

    linspace = torch.linspace  # its values are read while the network is built
    on_cpu = mock.patch.object(torch, "linspace", lambda *a, **k: linspace(*a, **{**k, "device": "cpu"}))
    with on_cpu, META:
        network = MoGeModel(**random_weights.moge_config(options.moge.variant)).eval()
    network.enable_pytorch_native_sdpa()
    return count(lambda: network(torch.zeros(1, 3, *size, device=META), num_tokens=options.moge.tokens))


def depth_anything(options: FoundationOptions, size: tuple[int, int]) -> float:
    from transformers import DepthAnythingForDepthEstimation

    with META:
        config = random_weights.depth_anything_config(options.depth_anything.variant, small=False)
        network = DepthAnythingForDepthEstimation(config).eval()
    inputs = torch.zeros(1, 3, *input_size(*size, options.depth_anything.short_side), device=META)
    return count(lambda: network(pixel_values=inputs))


def sam2(options: FoundationOptions) -> tuple[float, float]:
    """(image encoder, the rest for one subject: attention over a full memory, decoder, memory encoder)."""
    network = build_sam2(options.sam2.variant, options.sam2.side).to(META).eval()
    encoder = count(lambda: network.forward_image(torch.zeros(1, 3, *[options.sam2.side] * 2, device=META)))
    side, dim, kept = options.sam2.side // 16, network.hidden_dim, network.mem_dim
    tokens, pointers = side * side, (network.max_obj_ptrs_in_encoder - 1) * (dim // kept)
    memory = torch.zeros(network.num_maskmem * tokens + pointers, 1, kept, device=META)
    here = torch.zeros(tokens, 1, dim, device=META)
    features = torch.zeros(1, dim, side, side, device=META)
    high = [
        torch.zeros(1, dim // 8, 4 * side, 4 * side, device=META),
        torch.zeros(1, dim // 4, 2 * side, 2 * side, device=META),
    ]
    masks = torch.zeros(1, 1, *[options.sam2.side] * 2, device=META)

    def follow() -> None:
        network.memory_attention(
            curr=[here], curr_pos=[here], memory=memory, memory_pos=memory, num_obj_ptr_tokens=pointers
        )
        network._forward_sam_heads(features, high_res_features=high, multimask_output=True)
        network.memory_encoder(features, masks, skip_mask_sigmoid=True)

    return encoder, count(follow)


def detector(options: FoundationOptions, size: tuple[int, int]) -> float:
    """Grounding DINO on one keyframe; its image is resized to a shorter side of 800. It looks at values on its way, so
    that it has to be run: half a minute of a CPU."""
    from transformers import GroundingDinoForObjectDetection

    scale = min(800 / min(size), 1333 / max(size))
    height, width = (round(side * scale) for side in size)
    config = random_weights.grounding_dino_config(options.detector.variant, small=False)
    network = GroundingDinoForObjectDetection(config).eval()
    words = torch.zeros(1, 16, dtype=torch.long)
    images = torch.zeros(1, 3, height, width)
    return count(lambda: network(pixel_values=images, input_ids=words), device="cpu")


def table(options: FoundationOptions, size: tuple[int, int]) -> list[tuple[str, float]]:
    """(network, TFLOP per frame of the clip)."""
    encoder, follower = sam2(options)
    rows = [
        (f"MoGe-2 {options.moge.variant}, {options.moge.tokens} tokens", moge(options, size)),
        (f"Depth Anything V2 {options.depth_anything.variant}", depth_anything(options, size)),
        (f"SAM 2.1 {options.sam2.variant}: image encoder", encoder),
        (f"SAM 2.1 {options.sam2.variant}: {SUBJECTS} subjects", SUBJECTS * follower),
    ]
    if options.detector.variant.startswith("grounding-dino"):
        per_frame = detector(options, size) * options.detector.keyframes / FRAMES
        rows.append((f"{options.detector.variant}, {options.detector.keyframes} of {FRAMES} frames", per_frame))
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=[480, 832], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--tflops", type=float, default=400.0, help="assumed rate")
    parser.add_argument("options", nargs="*", help="key=value of the foundation perception")
    given = parser.parse_args(arguments)
    rows = table(from_dotlist(given.options), tuple(given.size))
    total = sum(tflop for _, tflop in rows)
    print(f"{'network':<40}{'TFLOP/frame':>13}{'ms at ' + f'{given.tflops:g} TFLOP/s':>20}")
    for name, tflop in [*rows, ("all", total)]:
        print(f"{name:<40}{tflop:>13.3f}{1000 * tflop / given.tflops:>20.2f}")
    print(f"at most {given.tflops / total:.0f} frames/s at that rate; 12 frames/s need {12 * total:.0f} TFLOP/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
