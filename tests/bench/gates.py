"""Do the quality gates stop the clips that are wrong, and keep those that are right?

    python tests/bench/gates.py --seeds 4
    python tests/bench/gates.py --catastrophic 24
    python tests/bench/gates.py --paths camera_test_set.zip     (TUM-like text files of real camera paths)

Synthetic clips are unrolled through the oracle and judged by the default gates; each row shows the gated columns beside
the true error of the camera path. The first form makes the oracle's errors worse step by step. `--catastrophic` runs
worlds of every kind, street and room, walk and orbit, with every error on. Both exit with 1 when a clip whose path is
catastrophically wrong (ATE > 10 % of its length) is not rejected. `--paths` says what real cameras do to
`camera_jerk_relative`. Rows are kept under bench/gates/ while the sources stay as they are: a run that was stopped goes
on where it was, and moved limits are judged without unrolling again.
"""

import argparse
import io
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from anywhere, installed or not

from engine.geometry.camera import first_frame_world
from engine.mwsu import unroll_clip
from engine.perception.oracle import OracleOptions
from engine.stages.gates import GateOptions, Judgement, judge
from engine.stages.options import StageOptions
from engine.stages.quality import path_quality
from engine.synthetic.perceive import oracle_from_view
from tests.bench.ablations import EVERY_ERROR
from tests.bench.accuracy import ORACLE, cached, path_errors
from tests.bench.views import ROOT, fingerprint, load_view

LEVELS = {
    "as imitated": {},
    "3x noise": {"depth_noise": 0.06, "smooth_noise": 0.1, "log_scale_jitter": 0.15, "disparity_smooth_noise": 0.08},
    "10x noise": {"depth_noise": 0.2, "smooth_noise": 0.4, "log_scale_jitter": 0.5, "disparity_smooth_noise": 0.3},
    "no masks": {"subject_dropout": 1.0},
    "wild focal": {"focal_jitter": 0.5},
    "no geometry": {"depth_noise": 0.5, "smooth_noise": 1.5, "log_scale_jitter": 1.5, "disparity": False},
}
BIAS = 0.03  # log of the scale error that a clip's metric depth shares, either sign
SHOWN = ("pose_inlier_ratio", "pose_reprojection_px", "camera_jerk_relative", "log_scale_sigma", "depth_flicker")
SHOWN += ("selfcheck_psnr_db", "selfcheck_depth_absrel", "holistic_coverage")
GOOD, CATASTROPHIC = 0.02, 0.1  # ATE in shares of the path
STAGES = ("background", "camera", "identity", "quality", "render", "scene", "subjects")
SOURCES = (*(f"engine/stages/{name}.py" for name in STAGES), "engine/mwsu.py", "engine/geometry", "engine/synthetic")


def every_error(seed: int) -> dict:
    """Changes of the oracle's defaults that put every error on, the shared scale's too."""
    return {**EVERY_ERROR, "log_scale_bias": BIAS * (1, -1)[seed % 2]}


def measure_clip(world: dict, changes: dict) -> dict:
    """The errors of the path and everything that the gates look at, for one world through the spoiled oracle."""
    view = load_view(ROOT / "bench" / "accuracy" / "views", **world)
    clip, models = oracle_from_view(view, replace(OracleOptions(seed=world["seed"]), **changes))
    state = unroll_clip(clip, models, StageOptions())
    errors = path_errors(state.camera.c2w, first_frame_world(view.c2w))
    return {"kind": state.camera.kind, "subjects": len(state.subjects.mean), "quality": state.quality, **errors}


def verdict(row: dict, gates: GateOptions) -> Judgement:
    return judge(row["quality"], row["kind"], row["subjects"], gates)


def missed(rows: list[dict], gates: GateOptions) -> list[dict]:
    """The rows whose path is catastrophically wrong (or not a number) and that the gates do not reject."""
    return [r for r in rows if not r["ate"] <= CATASTROPHIC and verdict(r, gates).verdict != "rejected"]


def run(jobs: list[tuple[str, dict, dict]]) -> list[dict]:
    """Rows of (name, world, changes), each printed when it is done."""
    folder = ROOT / "bench" / "gates" / fingerprint(*SOURCES, *ORACLE)
    print(
        f"{'':26}{'ATE %':>7}{'scale %':>9}{'rotation':>9}{'verdict':>10} " + " ".join(f"{c[-14:]:>14}" for c in SHOWN)
    )
    rows = []
    for name, world, changes in jobs:
        path = folder / f"{name.replace(' ', '_')}-{'-'.join(f'{v}' for _, v in sorted(world.items()))}.json"
        row = {"name": name, "ate": float("nan"), **cached(path, lambda w=world, c=changes: measure_clip(w, c))}
        found = verdict(row, GateOptions())
        cells = " ".join(f"{row['quality'][c]:>14.4f}" for c in SHOWN)
        numbers = f"{100 * row['ate']:>7.2f}{100 * row.get('scale', float('nan')):>9.2f}{row['rotation_deg']:>9.3f}"
        print(f"{name:26}{numbers}{found.verdict:>10} {cells}  {'; '.join(found.reasons)}", flush=True)
        rows.append(row)
    return rows


def report(rows: list[dict]) -> int:
    """Prints what the default gates made of the rows; 1 when they let a catastrophic clip through."""
    gates = GateOptions()
    found = [verdict(r, gates).verdict for r in rows]
    good = [v for r, v in zip(rows, found, strict=True) if r["ate"] <= GOOD]
    bad = [v for r, v in zip(rows, found, strict=True) if not r["ate"] <= CATASTROPHIC]
    for name in ("ate", "rotation_deg", "scale"):
        values = np.abs([r.get(name, float("nan")) for r in rows])
        known = values[np.isfinite(values)]  # a path that is one point has neither
        if len(known):
            print(
                f"|{name}|: median {np.median(known):.4f}, worst {np.max(known):.4f}, none for {len(rows) - len(known)}"
            )
    print("verdicts: " + ", ".join(f"{found.count(v)} {v}" for v in ("kept", "flagged", "rejected")))
    print(f"good clips (ATE <= {GOOD:.0%}): {len(good)}, of which {good.count('kept')} kept")
    print(f"catastrophic clips (ATE > {CATASTROPHIC:.0%}): {len(bad)}, of which {bad.count('rejected')} rejected")
    for r in missed(rows, gates):
        print(f"MISSED {r['name']}: ATE {r['ate']:.1%} of the path and not rejected")
    return 1 if missed(rows, gates) else 0


def real_jerk(archive: Path, frames: int = 81) -> tuple[np.ndarray, np.ndarray]:
    """(camera_jerk_relative, net displacement / length) of every half-overlapping window of `frames` frames at half the
    rate (30 to 15 fps) of the paths in a zip of text files `index tx ty tz ...`. Their unit of length is unknown: every
    window is scaled to a median step of 8 cm a frame, a walk of 1.3 m/s."""
    jerk, straight = [], []
    with zipfile.ZipFile(archive) as z:
        for name in sorted(n for n in z.namelist() if n.endswith(".txt") and not n.startswith("__")):
            centres = np.loadtxt(io.BytesIO(z.read(name)))[::2, 1:4]
            for start in range(0, max(1, len(centres) - frames + 1), frames // 2):
                window = centres[start : start + frames]
                steps = np.linalg.norm(np.diff(window, axis=0), axis=1)
                if len(window) < 33 or not np.median(steps) > 0:
                    continue
                jerk.append(path_quality(window * 0.08 / np.median(steps))["camera_jerk_relative"])
                straight.append(np.linalg.norm(window[-1] - window[0]) / steps.sum())
    return np.array(jerk), np.array(straight)


def show_paths(archive: Path) -> None:
    jerk, straight = real_jerk(archive)
    print(f"camera_jerk_relative of {len(jerk)} windows of real paths, by net displacement in shares of the length")
    for low, high in ((0, 0.2), (0.2, 0.5), (0.5, 0.8), (0.8, 1.01)):
        of = jerk[(straight >= low) & (straight < high)]
        cells = " ".join(f"p{p} {np.percentile(of, p):.1f}" for p in (50, 75, 90, 95, 99, 100))
        above = ", ".join(f"{np.mean(of > limit):.1%} above {limit:g}" for limit in GateOptions().camera_jerk_relative)
        print(f"  {low:.1f} to {min(high, 1):.1f}: {len(of)} windows, {cells}; {above}")


def jobs_of(arguments: argparse.Namespace) -> list[tuple[str, dict, dict]]:
    size = {"agents": 3, "frames": arguments.frames, "height": arguments.size[0], "width": arguments.size[1]}
    out = []
    if arguments.catastrophic:
        for seed in range(arguments.first, arguments.first + arguments.catastrophic):
            kind, camera = ("street", "room")[seed % 2], ("walk", "orbit")[seed // 2 % 2]
            world = {"kind": kind, "camera": camera, "seed": seed, **size}
            out.append((f"{seed} {kind} {camera}", world, every_error(seed)))
        return out
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        world = {"kind": ("street", "room")[seed % 2], "camera": "walk", "seed": seed, **size}
        out += [(f"{seed} {level}", world, LEVELS[level]) for level in arguments.levels]
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--levels", nargs="*", default=list(LEVELS), choices=list(LEVELS))
    parser.add_argument("--catastrophic", type=int, default=0, help="worlds with every error on")
    parser.add_argument("--paths", type=Path, help="zip of real camera paths")
    parser.add_argument("--frames", type=int, default=33)
    parser.add_argument("--size", type=int, nargs=2, default=[240, 416], metavar=("HEIGHT", "WIDTH"))
    arguments = parser.parse_args()
    if arguments.paths:
        show_paths(arguments.paths)
        return 0
    cv2.setNumThreads(1)
    return report(run(jobs_of(arguments)))


if __name__ == "__main__":
    np.seterr(all="ignore")
    sys.exit(main())
