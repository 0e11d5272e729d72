"""Shards beside webdataset, in one process, in CPU seconds and in ratios.

    python tests/bench/bench_shards.py [--samples 48] [--megabytes 4] [--plan 100000]

writer   spool + commit against webdataset.ShardWriter, which neither hashes, nor syncs, nor survives a crash
reader   SampleStream against a plain webdataset pipeline over the same tars, bytes only, checksums off and on
codec    CPU seconds and bytes of each kind of member of a default clip (81 x 480 x 832)
plan     planning and status of --plan units: seconds and peak memory
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import webdataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "shards"))
from shard_samples import tiny, unit

from shards import codec, depth16
from shards.reader import Loader, SampleStream, open_dataset
from shards.run import Run, ShardLimits, Unit, status


def sample(i: int, size: int) -> dict[str, bytes]:
    noise = np.random.default_rng(i).bytes(size)
    return tiny(unit(i).key, i) | {
        "caption.txt": b"x",
        "target.mp4": noise[: size // 2],
        "depth.npz": noise[size // 2 :],
    }


def seconds(function: Callable[[], object], repeat: int = 3) -> tuple[float, float]:
    """(CPU, wall) seconds of the fastest of `repeat` calls by CPU."""
    best = (float("inf"), 0.0)
    for _ in range(repeat):
        cpu, wall = time.process_time(), time.perf_counter()
        function()
        best = min(best, (time.process_time() - cpu, time.perf_counter() - wall))
    return best


def write_ours(folder: Path, samples: list[dict[str, bytes]]) -> None:
    with Run.open(str(folder), config={}, limits=ShardLimits(samples=16)) as run:
        run.extend(unit(i) for i in range(len(samples)))
        for todo in run.todo():
            run.spool.put(todo, samples[int(todo.key[:12], 16)])
            run.commit_ready()
        run.finish()


def write_webdataset(folder: Path, samples: list[dict[str, bytes]]) -> None:
    folder.mkdir(parents=True)
    with webdataset.ShardWriter(str(folder / "wds-%06d.tar"), maxcount=16, verbose=0) as sink:
        for i, members in enumerate(samples):
            sink.write({"__key__": unit(i).key} | members)


def bench_writer(root: Path, samples: list[dict[str, bytes]]) -> Path:
    runs = iter(range(100))
    ours = seconds(lambda: write_ours(root / f"ours{next(runs)}", samples))
    peer = seconds(lambda: write_webdataset(root / f"wds{next(runs)}", samples))
    print(f"writer  ours {ours[0]:.2f} s CPU, webdataset {peer[0]:.2f} s CPU; ratio {ours[0] / peer[0]:.2f}")
    print(f"        ours {ours[1]:.2f} s wall, webdataset {peer[1]:.2f} s wall; ratio {ours[1] / peer[1]:.2f}")
    return root / "ours0"


def bench_reader(output: Path, count: int) -> None:
    urls = [str(path) for path in sorted(output.glob("*.tar"))]

    def plain() -> None:
        assert sum(1 for _ in webdataset.WebDataset(urls, shardshuffle=False)) == count

    def ours(checksums: str) -> None:
        dataset = open_dataset(output, checksums=checksums)
        stream = SampleStream(dataset, epochs=1, transform=lambda views: dataset.members(views[0].key))
        assert sum(1 for _ in Loader(stream)) == count

    plain()  # the page cache is warm for all
    peer = seconds(plain, 5)
    for checksums in ("off", "first"):
        mine = seconds(lambda c=checksums: ours(c), 5)
        print(
            f"reader  checksums {checksums:<5} ours {count / mine[0]:.0f}, webdataset {count / peer[0]:.0f} samples "
            f"per CPU second; throughput ratio {peer[0] / mine[0]:.2f} (wall {peer[1] / mine[1]:.2f})"
        )


def bench_codec() -> None:
    T, H, W = 81, 480, 832
    t, y, x = np.meshgrid(np.arange(T), np.arange(H), np.arange(W), indexing="ij", sparse=True)
    waves = [
        128 + 60 * np.sin((x + 2 * t) / 11 + y / 40),
        128 + 60 * np.cos((y - t) / 9),
        128 + 50 * np.sin((x + y) / 15),
    ]
    clip = np.stack([np.broadcast_to(w, (T, H, W)) for w in waves], -1).astype(np.uint8)
    noise = np.random.default_rng(0).normal(size=(H, W))
    depth = (4 + np.sin(x / 50) + y / 200 + t / 80 + 0.01 * noise).astype(np.float32)
    code = depth16.encode(depth, *depth16.depth_range(depth))
    labels = ((x - 3 * t - 200) ** 2 + (y - 240) ** 2 < 60**2).astype(np.uint8)
    for name, value in {
        "target.mp4": clip,
        "condition_anchor_depth.mkv": code,
        "depth.npz": {"code": code},
        "masks.npz": {"labels": labels, "dynamic": labels > 0},
    }.items():
        data = codec.encode(name, value, fps=16)
        cost = seconds(lambda n=name, v=value: codec.encode(n, v, fps=16), 1)[0]
        back = seconds(lambda n=name, d=data: codec.decode(n, d), 1)[0]
        print(f"codec   {name:<27} encode {cost:.2f} s CPU, decode {back:.2f} s CPU, {len(data) / 1e6:.1f} MB")


def bench_plan(root: Path, count: int) -> None:
    """A generated listing: `count` planned units, half of them with a work file in the store."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Run.open(str(root / "plan"), config={}) as run:
        units = (Unit(f"{i:064x}", f"{i:012x}-0000", f"s3://in/{i}.mp4", 0.0, 5.0) for i in range(count))
        cpu, wall = time.process_time(), time.perf_counter()
        run.extend(units)
        print(f"plan    {count} units planned in {time.process_time() - cpu:.1f} s CPU")
        work = root / "plan" / "_work"
        work.mkdir()
        for i in range(1, count, 2):
            (work / f"{i:064x}.tar").touch()
        cpu, wall = time.process_time(), time.perf_counter()
        todo = sum(1 for _ in run.todo())
        found = status(str(root / "plan"))
        assert todo == found.todo == count - count // 2
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"        todo and status in {time.process_time() - cpu:.1f} s CPU, {time.perf_counter() - wall:.1f} s wall")
    print(f"        peak memory {peak / 1e3:.0f} MB ({(peak - before) / 1e3:.0f} MB more than before)")


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--samples", type=int, default=48)
    arguments.add_argument("--megabytes", type=float, default=4)
    arguments.add_argument("--plan", type=int, default=100_000)
    args = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        samples = [sample(i, int(args.megabytes * 1e6)) for i in range(args.samples)]
        bench_plan(Path(folder), args.plan)
        output = bench_writer(Path(folder), samples)
        bench_reader(output, args.samples)
    bench_codec()


if __name__ == "__main__":
    main()
