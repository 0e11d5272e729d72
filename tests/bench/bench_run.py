"""How runs grow, and what Ray costs beside the local runner, on the same clips in the same session. About 11 minutes.

    python tests/bench/bench_run.py [--growth 100] [--few 2] [--clips 16] [--frames 33] [--height 320] [--width 560]
        [--rounds 3]

growth  1, 4 and 16, then 1, 10 and 100 tiny clips (9 x 64 x 112), perception read from files: CPU seconds per further
        clip, peak memory. Linear = ratio 1
ray     --few clips, then --clips, by the local runner in one process and on a cluster of 1 and of 2 CPUs, all after a
        first run that pays for imports. The difference is what further clips cost, without the start of a run (an
        actor loads its models): CPU seconds of all processes, Ray's own included, and wall seconds. Each round does
        all three, and compares within itself: this is a machine whose speed drifts. --rounds 0 leaves Ray out
"""

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "engine" / "run"))
import unroll_inputs

from engine.config import load
from engine.run.drive import drive

WORDS = ["perception=precomputed", "threads=1", "report=false", "shots.enabled=false", "runner.isolate=false"]
TINY = (9, 64, 112)
IDLE_S = 10
SERIES = ((1, 4, 16), (1, 10, 100))


def words(source: Path, output: Path, size: tuple[int, int, int]) -> list[str]:
    frames, height, width = size
    shape = [f"clip.frames={frames}", f"clip.min_frames={frames}", f"render.size=[{height},{width}]"]
    return [f"input={source}", f"output={output}", *WORDS, *shape]


def videos(folder: Path, count: int, size: tuple[int, int, int]) -> Path:
    unroll_inputs.FRAMES, unroll_inputs.HEIGHT, unroll_inputs.WIDTH = size
    return unroll_inputs.write_input(folder, count)


def local(sources: list[Path], output: Path, size: tuple[int, int, int]) -> list[dict[str, float]]:
    """Runs one after the other in a fresh process: CPU and wall seconds of each, peak memory of the process so far."""
    code = (
        "import json, resource, sys, time\n"
        "from engine.config import load\nfrom engine.run.drive import drive\n"
        "def cpu():\n"
        "    child = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "    return time.process_time() + child.ru_utime + child.ru_stime\n"
        "found = []\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    wall, used = time.perf_counter(), cpu()\n"
        "    assert drive(load(words)) == 0\n"
        "    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "    found.append({'wall': time.perf_counter() - wall, 'cpu': cpu() - used, 'peak': peak})\n"
        "print(json.dumps(found))\n"
    )
    runs = [words(source, output.with_name(f"{output.name}-{i}"), size) for i, source in enumerate(sources)]
    done = subprocess.run([sys.executable, "-c", code, json.dumps(runs)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def on_ray(sources: list[Path], output: Path, size: tuple[int, int, int], cpus: int) -> list[dict[str, float]]:
    """Runs one after the other on one cluster: CPU seconds of all its processes, wall seconds. At the end `idle`: the
    CPUs that the cluster takes with nothing to do."""
    from engine.run.cluster import prepare_local

    prepare_local()
    import psutil
    import ray

    def used() -> dict[int, float]:
        found = {}
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                found[process.pid] = times.user + times.system
        return found

    ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="warning")
    runs = []
    try:
        for i, source in enumerate(sources):
            started, before = time.perf_counter(), used()
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                there = output.with_name(f"{output.name}-{i}")
                assert drive(load([*words(source, there, size), "runner=ray"])) == 0
            wall, after = time.perf_counter() - started, used()
            runs.append({"wall": wall, "cpu": sum(s - before.get(pid, 0.0) for pid, s in after.items())})
        before = used()
        time.sleep(IDLE_S)
        runs.append({"idle": sum(s - before.get(pid, 0.0) for pid, s in used().items()) / IDLE_S})
        return runs
    finally:
        ray.shutdown()


def bench_growth(root: Path, most: int) -> None:
    print(f"growth: {TINY[0]} x {TINY[1]} x {TINY[2]}, precomputed perception, local runner, threads=1")
    print(f"{'clips':>6} {'cpu s':>8} {'cpu s/clip':>11} {'wall s':>8} {'peak MiB':>9}")
    found: dict[int, dict[str, float]] = {}
    for count in sorted({n for series in SERIES for n in series if n <= most}):
        source = videos(root / f"in{count}", count, TINY)
        f = found[count] = local([source / "v000.mp4", source], root / f"out{count}", TINY)[1]
        print(f"{count:>6} {f['cpu']:>8.2f} {f['cpu'] / count:>11.3f} {f['wall']:>8.2f} {f['peak']:>9.0f}", flush=True)
    for a, b, c in (series for series in SERIES if max(series) <= most):
        slopes = [(found[y]["cpu"] - found[x]["cpu"]) / (y - x) for x, y in ((a, b), (b, c))]
        print(
            f"{a}, {b}, {c} clips: CPU seconds per further clip {slopes[0]:.3f}, then {slopes[1]:.3f} = "
            f"{slopes[1] / slopes[0]:.2f}x; peak memory {found[c]['peak'] / found[a]['peak']:.2f}x"
        )


def bench_ray(root: Path, few: int, clips: int, size: tuple[int, int, int], rounds: int) -> bool:
    """False when the bytes differ."""
    frames, height, width = size
    print(f"ray: {few} and {clips} clips of {frames} x {height} x {width}, precomputed perception, threads=1")
    start = videos(root / "few", few, size)
    sources = [start, start, videos(root / "clips", clips, size)]  # the first run pays for imports and compilation
    same, overhead, speed = True, {1: [], 2: []}, {1: [], 2: []}
    for i in range(rounds):
        alone = _further(local(sources, root / f"alone{i}", size), clips - few)
        print(f"local: per further clip {alone['cpu']:.2f} s CPU, {alone['wall']:.2f} s wall", flush=True)
        for cpus in (1, 2):
            runs = on_ray(sources, root / f"ray{i}-{cpus}", size, cpus)
            further = _further(runs, clips - few)
            overhead[cpus].append(further["cpu"] / alone["cpu"])
            speed[cpus].append(alone["wall"] / further["wall"])
            same &= unroll_inputs.shards_of(root / f"ray{i}-{cpus}-2") == unroll_inputs.shards_of(root / f"alone{i}-2")
            print(
                f"ray, {cpus} CPU: {further['cpu']:.2f} s CPU = {overhead[cpus][-1]:.3f}x, "
                f"{further['wall']:.2f} s wall = {speed[cpus][-1]:.2f}x as fast; "
                f"idle, Ray takes {runs[-1]['idle']:.3f} of a CPU",
                flush=True,
            )
    for cpus in (1, 2):
        print(
            f"ray, {cpus} CPU, median of {rounds}: {median(overhead[cpus]):.3f}x the CPU seconds of the local runner "
            f"({min(overhead[cpus]):.3f} to {max(overhead[cpus]):.3f}), {median(speed[cpus]):.2f}x as fast"
        )
    print(f"equal bytes: {same}")
    return same


def _further(runs: list[dict[str, float]], count: int) -> dict[str, float]:
    """What each of the `count` clips cost that the third run has more than the second."""
    return {what: (runs[2][what] - runs[1][what]) / count for what in ("cpu", "wall")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--growth", type=int, default=100)
    parser.add_argument("--few", type=int, default=2)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--frames", type=int, default=33)
    parser.add_argument("--height", type=int, default=320)
    parser.add_argument("--width", type=int, default=560)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    size = (args.frames, args.height, args.width)
    with tempfile.TemporaryDirectory() as folder:
        bench_growth(Path(folder), args.growth)
        same = not args.rounds or bench_ray(Path(folder), args.few, args.clips, size, args.rounds)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
