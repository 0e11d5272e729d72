"""Speed of foundation perception here: clips per GPU-hour, frames per second, GPU busy share, peak memory.

    python tests/bench/bench_gpu.py                  full-size architectures with random weights, 480x832x81, on a GPU
    python tests/bench/bench_gpu.py --small          shrunken networks and clips, on any machine (a trial of the bench)
    python tests/bench/bench_gpu.py --cpu            the smallest published variants on a CPU, two frames of 480x832
    python tests/bench/bench_gpu.py --weights ROOT   published weights that `make weights` put there

As in production (`engine/run/ray.py`) two clips are in the actor at a time: one computes on the device while the other
is in the CPU's steps (motion verification, fields of view, copies), and further clips are made meanwhile. The detector
runs on its keyframes; two scripted boxes go to SAM 2, since random weights detect nothing. The table times each model
alone (device synchronised); the first line is end to end. Public mark: ViPE reports 3 to 5 frames/s; the goal is 12
frames/s on one H100 with the GPU busy at least 85 % of the time. `flops.py` says what the operations alone would take.
"""

import argparse
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from anywhere, installed or not

from engine.perception.detector import Detection
from engine.perception.foundation import FoundationActor, FoundationOptions, from_dotlist, weight_names
from engine.perception.random_weights import write
from engine.types import Clip, View

SMALL = ["moge.variant=vits", "moge.tokens=60", "sam2.variant=tiny", "sam2.side=128", "depth_anything.short_side=70"]
ON_CPU = ["moge.variant=vits", "sam2.variant=tiny", "depth_anything.short_side=392", "detector.keyframes=1"]
GOAL_FPS, GOAL_BUSY = 12.0, 0.85


def make_clip(number: int, frames: int, height: int, width: int) -> Clip:
    """A pan over a smooth random texture: compute does not depend on what is seen, so any frames do."""
    rng = np.random.default_rng(number)
    coarse = torch.from_numpy(rng.random((1, 3, height // 8, width // 4), dtype=np.float32))
    wide = torch.nn.functional.interpolate(coarse, (height, 2 * width), mode="bicubic").clamp(0, 1)[0]
    picture = (wide.permute(1, 2, 0) * 255).to(torch.uint8).numpy()
    shifts = (np.arange(frames) * width // max(frames, 1)).astype(int)
    clip = np.stack([picture[:, s : s + width] for s in shifts])
    return Clip(
        key=f"{number:012x}-0000",
        video_id=f"{number:012x}",
        uri="memory://bench",
        frames=clip,
        fps=16.0,
        times=np.arange(frames) / 16,
        source_frames=np.arange(frames),
        view=View(height, width, 0, 0, width, height, height, width),
    )


def script_boxes(actor: FoundationActor, subjects: int) -> None:
    """Give SAM 2 a fixed number of boxes on the first keyframe; the detector's network still runs."""
    finder = actor.models["tracker"].finder
    detect = finder.detect

    def scripted(clip: Clip, keyframes: list[int]) -> list[Detection]:
        detect(clip, keyframes)
        height, width = clip.size
        return [
            Detection(
                keyframes[0],
                (width * (0.1 + 0.4 * n), height * 0.3, width * (0.3 + 0.4 * n), height * 0.9),
                "person",
                0.9,
            )
            for n in range(subjects)
        ]

    finder.detect = scripted


@dataclass
class BusyMeter:
    """Share of the time that the GPU runs a kernel, sampled by nvidia-smi five times a second; NaN without one."""

    samples: list[float] = field(default_factory=list)

    def __enter__(self) -> "BusyMeter":
        # by its id: nvidia-smi numbers all GPUs of the machine, torch those that it may see
        device = f"GPU-{torch.cuda.get_device_properties(0).uuid}" if torch.cuda.is_available() else "0"
        command = [
            "nvidia-smi",
            "--query-gpu=utilization.gpu",
            "--format=csv,noheader,nounits",
            "-lms",
            "200",
            "-i",
            device,
        ]
        try:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        except FileNotFoundError:
            self.process = None
            return self
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()
        return self

    def _read(self) -> None:
        for line in self.process.stdout:
            if line.strip().isdigit():
                self.samples.append(int(line) / 100)

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.thread.join(timeout=2)

    @property
    def share(self) -> float:
        return float(np.mean(self.samples)) if self.samples else float("nan")


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def per_model(actor: FoundationActor, clip: Clip) -> list[dict[str, object]]:
    """Milliseconds a frame and peak memory of each model alone, after one warm-up."""
    tracker = actor.models["tracker"]
    keyframes = list(range(0, len(clip.frames), max(1, len(clip.frames) // tracker.prompts.keyframes)))
    boxes = [d.box for d in tracker.finder.detect(clip, keyframes[:1])]
    tracks = actor.track(clip)
    geometry = actor.geometry(clip, tracks)
    runs = {
        "detector": (lambda: tracker.finder.detect(clip, keyframes), tracker.finder),
        "sam2": (lambda: (tracker.follower.release(clip), tracker.follower.follow(clip, 0, boxes)), tracker.follower),
        "moge": (lambda: actor.geometry(clip, tracks), actor.models["geometry"]),
        "depth_anything": (lambda: actor.depth(clip, tracks, geometry), actor.models.get("depth")),
        "tracker (all)": (lambda: actor.track(clip), None),
    }
    rows = []
    for name, (run, model) in runs.items():
        if name == "depth_anything" and model is None:
            continue
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        synchronise()
        start = time.perf_counter()
        run()
        synchronise()
        seconds = time.perf_counter() - start
        weights = sum(p.numel() for p in model.network.parameters()) / 1e6 if model is not None else 0
        rows.append(
            {
                "model": name,
                "ms_per_frame": 1000 * seconds / len(clip.frames),
                "batch": model.batches.size if model is not None else "",
                "parameters_m": weights,
                "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else float("nan"),
            }
        )
    return rows


def end_to_end(actor: FoundationActor, clips: int, frames: int, size: tuple[int, int]) -> dict[str, float]:
    """Clips per hour and frames per second of `clips` clips, `actor.options.clips` in the actor at a time, after one
    warm-up clip. Clips are made beside (decoding is the work of CPU tasks)."""
    together = actor.options.clips
    actor.process(make_clip(0, frames, *size))
    synchronise()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    ready: queue.Queue[Clip] = queue.Queue(maxsize=2)

    def make() -> None:
        for which in range(1, clips + 1):
            ready.put(make_clip(which, frames, *size))

    with BusyMeter() as busy, ThreadPoolExecutor(1) as maker, ThreadPoolExecutor(together) as perceiving:
        maker.submit(make)
        first = ready.get()  # the first clip is there when the clock starts
        start = time.perf_counter()
        for done in [
            perceiving.submit(lambda n=n: actor.process(first if n == 0 else ready.get())) for n in range(clips)
        ]:
            done.result()
        synchronise()
        seconds = time.perf_counter() - start
    return {
        "clips_per_hour": 3600 * clips / seconds,
        "frames_per_s": clips * frames / seconds,
        "busy_share": busy.share,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else float("nan"),
    }


def options_for(root: Path, small: bool, words: list[str]) -> FoundationOptions:
    return from_dotlist([*(SMALL if small else []), f"weights.root={root}", "weights.random=true", *words])


def bench(
    root: Path, small: bool, clips: int, frames: int, size: tuple[int, int], words: list[str]
) -> dict[str, object]:
    """Everything this bench measures, as a dict."""
    options = options_for(root, small, words)
    actor = FoundationActor(options)
    start = time.perf_counter()
    actor.setup()
    setup = time.perf_counter() - start
    script_boxes(actor, 2)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    whole = end_to_end(actor, clips, frames, size)
    models = per_model(actor, make_clip(1, frames, *size))
    actor.close()
    return {"device": device, "clip": [frames, *size], "setup_s": setup, "end_to_end": whole, "models": models}


def number(value: float, digits: int = 1) -> str:
    """The value in words: a dash where there is no GPU to measure."""
    return f"{value:.{digits}f}" if np.isfinite(value) else "-"


def show(result: dict) -> str:
    whole = result["end_to_end"]
    lines = [
        f"{result['device']}, clip {'x'.join(map(str, result['clip']))}, setup {result['setup_s']:.1f} s",
        f"end to end: {whole['clips_per_hour']:.0f} clips per hour, {whole['frames_per_s']:.2f} frames/s, "
        f"GPU busy {number(100 * whole['busy_share'], 0)} %, peak {number(whole['peak_gib'])} GiB",
        f"{'model':<16}{'ms/frame':>10}{'batch':>7}{'M params':>10}{'peak GiB':>10}",
    ]
    for row in result["models"]:
        lines.append(
            f"{row['model']:<16}{row['ms_per_frame']:>10.1f}{row['batch']:>7}{row['parameters_m']:>10.1f}"
            f"{number(row['peak_gib']):>10}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--small", action="store_true", help="shrunken networks and clips")
    parser.add_argument("--cpu", action="store_true", help="the smallest published variants, one clip of two frames")
    parser.add_argument("--weights", type=Path, help="folder of published weights; else random ones are made")
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("options", nargs="*", help="key=value of the foundation perception, e.g. sam2.compile=true")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available() and not (given.small or given.cpu):
        print('not run: no GPU here. On a machine with one: make bench-gpu   (a trial without: OPTIONS="--small")')
        return 0
    frames, size = (5, (72, 96)) if given.small else (2 if given.cpu else 81, (480, 832))
    words, clips = ([*ON_CPU, *given.options], 1) if given.cpu else (given.options, given.clips)
    with tempfile.TemporaryDirectory() as scratch:
        root = given.weights or Path(scratch)
        if given.weights is None:
            write(root, weight_names(options_for(root, given.small, words)), given.small)
        result = bench(root, given.small, clips, frames, size, words)
    print(json.dumps(result) if given.json else show(result))
    whole = result["end_to_end"]
    if given.small or given.cpu:
        return 0
    return 0 if whole["frames_per_s"] >= GOAL_FPS and whole["busy_share"] >= GOAL_BUSY else 1


if __name__ == "__main__":
    sys.exit(main())
