"""Inputs for runs: tiny videos of a still room with one walking block, and their depth and masks as files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np

ROOT = Path(__file__).resolve().parents[3]
HEIGHT, WIDTH, FRAMES = 64, 112, 9
WORDS = [
    "perception=precomputed",
    f"clip.frames={FRAMES}",
    f"clip.min_frames={FRAMES}",
    f"render.size=[{HEIGHT},{WIDTH}]",
    "shards.samples=2",
    "threads=1",
    "report=false",
    "runner.isolate=false",  # a child process of the local runner takes seconds to start
]


def write_input(folder: Path, count: int, seed: int = 0) -> Path:
    """`count` videos with <video>/depth.npz, masks.npz and camera.npz beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        wall = np.repeat(np.repeat(rng.integers(30, 220, (HEIGHT // 4, WIDTH // 4, 3), np.uint8), 4, 0), 4, 1)
        frames = np.repeat(wall[None], FRAMES, 0)
        depth = np.full((FRAMES, HEIGHT, WIDTH), 4.0, np.float32)
        labels = np.zeros((FRAMES, HEIGHT, WIDTH), np.uint8)
        for t in range(FRAMES):
            box = np.s_[t, 20:52, 20 + 5 * t : 36 + 5 * t]
            frames[box], depth[box], labels[box] = (40, 60, 200), 2.0, 1
        _write_video(folder / f"v{i:03d}.mp4", frames)
        truth = folder / f"v{i:03d}"
        truth.mkdir()
        np.savez(truth / "depth.npz", depth=depth)
        np.savez(truth / "masks.npz", labels=labels)
        np.savez(truth / "camera.npz", K=np.array([[90.0, 0, 56], [0, 90.0, 32], [0, 0, 1]]))
    return folder


def unroll(source: Path, output: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    """`python -m engine.unroll` in its own process."""
    return subprocess.run(
        command(source, output, *words), capture_output=True, text=True, env=_environment(environment), timeout=240
    )


def start(source: Path, output: Path, *words: str, **environment: str) -> subprocess.Popen:
    """The same, not waited for."""
    return subprocess.Popen(
        command(source, output, *words),
        env=_environment(environment),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def worker_environment(**environment: str) -> dict:
    """A Ray runtime environment whose workers run `poison.install` first."""
    return {
        "worker_process_setup_hook": "poison.install",
        "env_vars": {
            "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}",
            "OMP_NUM_THREADS": "1",
            **environment,
        },
    }


def run_on_ray(source: Path, out: Path, *words: str, **environment: str) -> int:
    """Drive a fresh cluster with poisonable workers; the exit code."""
    from engine.config import load
    from engine.run.cluster import prepare_local
    from engine.run.drive import drive

    prepare_local()
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=200 << 20,
        log_to_driver=False,
        logging_level="warning",
        runtime_env=worker_environment(**environment),
    )
    try:
        return drive(load([f"input={source}", f"output={out}", *WORDS, "runner=ray", *words]))
    finally:
        ray.shutdown()


def command(source: Path, output: Path, *words: str) -> list[str]:
    """The verb, with perception that heeds the notes of poison.py."""
    return [
        sys.executable,
        str(Path(__file__).with_name("poisoned_unroll.py")),
        f"input={source}",
        f"output={output}",
        *WORDS,
        *words,
    ]


def shards_of(output: Path) -> dict[str, bytes]:
    """name -> bytes of every committed tar and of every commit record."""
    records = sorted((output / "_commits").glob("*.json"))
    tars = {json.loads(r.read_text())["shard"] for r in records} if records else set()
    return {r.name: r.read_bytes() for r in records} | {name: (output / name).read_bytes() for name in sorted(tars)}


def _environment(extra: dict[str, str]) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | extra


def _write_video(path: Path, frames: np.ndarray) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=16, options={"crf": "12"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.codec_context.thread_count = 1
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
