"""How runs grow, and what Ray costs beside the local runner, on the same clips in the same session.

    python tests/bench/bench_run.py [--clips 16] [--height 240] [--width 416] [--frames 17] [--no-ray]

growth  1, 4, ... clips on the local runner: CPU seconds per clip beyond one clip's, peak memory. Linear = ratio 1
ray     the same clips on a cluster of 1 and of 2 CPUs, start-up apart: wall seconds beside the local runner's
"""

import argparse
import contextlib
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "engine" / "run"))
import unroll_inputs

from engine.config import load
from engine.run.drive import drive

WORDS = ["perception=precomputed", "threads=1", "report=false", "shots.enabled=false"]


def words(source: Path, output: Path, args: argparse.Namespace) -> list[str]:
    size = [f"clip.frames={args.frames}", f"clip.min_frames={args.frames}", f"render.size=[{args.height},{args.width}]"]
    return [f"input={source}", f"output={output}", *WORDS, *size]


def local(source: Path, output: Path, args: argparse.Namespace) -> dict[str, float]:
    """One run in a fresh process: CPU and wall seconds of the run itself, peak memory of the process."""
    code = (
        "import json, resource, sys, time\n"
        "from engine.config import load\nfrom engine.run.drive import drive\n"
        "wall, cpu = time.perf_counter(), time.process_time()\n"
        "code = drive(load(sys.argv[1:]))\n"
        "wall, cpu = time.perf_counter() - wall, time.process_time() - cpu\n"
        "child = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "print(json.dumps({'code': code, 'wall': wall, 'cpu': cpu + child.ru_utime + child.ru_stime, 'peak': peak}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words(source, output, args)], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("code") == 0, done.stderr
    return found


def on_ray(source: Path, output: Path, args: argparse.Namespace, cpus: int) -> dict[str, float]:
    """The run on a cluster that is already up and has done one clip (imports are paid)."""
    from engine.run.ray import prepare_local

    prepare_local()
    import ray

    start = time.perf_counter()
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="warning")
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warm = words(source / "v000.mp4", output.with_name(f"{output.name}-warm"), args)
            assert drive(load([*warm, "runner=ray"])) == 0
            started = time.perf_counter()
            assert drive(load([*words(source, output, args), "runner=ray"])) == 0
            return {"start": started - start, "wall": time.perf_counter() - started}
    finally:
        ray.shutdown()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--height", type=int, default=240)
    parser.add_argument("--width", type=int, default=416)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--no-ray", action="store_true")
    args = parser.parse_args()
    unroll_inputs.HEIGHT, unroll_inputs.WIDTH, unroll_inputs.FRAMES = args.height, args.width, args.frames
    counts = [n for n in (1, 4, 16, 64) if n <= args.clips]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        print(f"{args.frames} x {args.height} x {args.width}, precomputed perception, threads=1")
        print(f"{'clips':>6} {'cpu s':>8} {'cpu s/clip':>11} {'wall s':>8} {'peak MiB':>9}")
        found: dict[int, dict[str, float]] = {}
        for count in counts:
            source = unroll_inputs.write_input(root / f"in{count}", count)
            f = found[count] = local(source, root / f"out{count}", args)
            print(f"{count:>6} {f['cpu']:>8.2f} {f['cpu'] / count:>11.2f} {f['wall']:>8.2f} {f['peak']:>9.0f}")
        if len(counts) > 2:
            a, b, c = counts[-3:]
            slopes = [(found[y]["cpu"] - found[x]["cpu"]) / (y - x) for x, y in ((a, b), (b, c))]
            print(f"cpu seconds per further clip: {slopes[0]:.2f}, then {slopes[1]:.2f}: {slopes[1] / slopes[0]:.2f}x")
            print(f"peak memory of {c} clips beside {a}: {found[c]['peak'] / found[a]['peak']:.2f}x")
        if not args.no_ray:
            source, most = root / f"in{counts[-1]}", counts[-1]
            for cpus in (1, 2):
                f = on_ray(source, root / f"ray{cpus}", args, cpus)
                same = unroll_inputs.shards_of(root / f"ray{cpus}") == unroll_inputs.shards_of(root / f"out{most}")
                ratio = f["wall"] / found[most]["wall"]
                print(
                    f"ray, {cpus} CPU: {f['wall']:.2f} s beside {found[most]['wall']:.2f} s local = {ratio:.2f}x, "
                    f"start-up and first clip {f['start']:.1f} s, equal bytes: {same}"
                )
                if not same:
                    return 1
    print(f"peak of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
