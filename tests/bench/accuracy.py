"""How right the unrolled world is, against worlds that are known exactly. `make bench-accuracy` runs it.

    python tests/bench/accuracy.py --seeds 8
    python tests/bench/accuracy.py --seeds 2 --perception embedded
    python tests/bench/accuracy.py --seeds 8 --every-error
    python tests/bench/accuracy.py --ablations --seeds 3 --frames 33 --size 240 416
    python tests/bench/accuracy.py --seeds 0 --davis FOLDER ...     (the layouts: tests/bench/davis.py)

One row per world, printed when it is done and kept under bench/accuracy/ for as long as the sources stay as they are: a
run that was stopped goes on where it was. Exits with 1 when a goal is missed.

ATE is the root mean square distance of camera centres after rigid alignment WITHOUT scale (evo's Umeyama alignment), in
shares of the path's length; `sim3` is the same after alignment with scale; `scale` is the factor of that alignment - 1;
`rotation` is the median angle to the true orientation in the first camera's frame.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import cv2
import numpy as np
from evo.core.geometry import umeyama_alignment

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from anywhere, installed or not

from engine.geometry.camera import first_frame_world, invert, rotation_angle, transform
from engine.perception import Models
from engine.perception.oracle import OracleOptions
from engine.stages.background import build_backgrounds
from engine.stages.camera import solve_camera
from engine.stages.options import StageOptions
from engine.stages.scene import depth_flicker, follow_grid, fuse_scene
from engine.stages.subjects import unroll_subjects
from engine.synthetic.perceive import oracle_from_view
from engine.synthetic.render import View
from engine.types import Camera, Cloud
from tests.bench.ablations import ABLATIONS, EVERY_ERROR, judge_gains
from tests.bench.views import ROOT, fingerprint, load_view

GOALS = {
    "ate": (0.01, "median ATE of the walking camera, share of the path"),
    "rotation_deg": (0.3, "median rotation error of the walking camera, degrees"),
    "scale": (0.02, "median |metric scale error| of the walking camera"),
    "subject": (1.0, "median subject centre error in units of 5 cm + 2 % of the distance"),
}
FLICKER_GOAL = 0.5  # depth flicker of every walk after the joint alignment, in shares of the raw one
IOU_GOAL = 0.8  # mask IoU of people, embedded perception


def path_errors(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """ATE with and without scale alignment, scale and rotation errors of c2w paths [T,4,4], both from the identity."""
    centres, exact = found[:, :3, 3].astype(np.float64), truth[:, :3, 3]
    length = float(np.linalg.norm(np.diff(exact, axis=0), axis=1).sum())
    turned = rotation_angle(np.swapaxes(found[:, :3, :3].astype(np.float64), 1, 2) @ truth[:, :3, :3])
    out = {"path_m": length, "rotation_deg": float(np.degrees(np.median(turned)))}
    if length < 0.05:  # a camera that stands: what it moved is the error, in metres
        return {**out, "drift_m": float(np.linalg.norm(centres - exact, axis=1).max())}

    def ate(with_scale: bool) -> tuple[float, float]:
        if np.ptp(centres, axis=0).max() < 1e-9:
            return float("inf"), float("nan")
        R, t, s = umeyama_alignment(centres.T, exact.T, with_scale)
        off = np.linalg.norm(s * centres @ R.T + t - exact, axis=1)
        return float(np.sqrt((off**2).mean())) / length, s

    rigid, (similar, scale) = ate(False)[0], ate(True)
    return {**out, "ate": rigid, "sim3": similar, "scale": 1 / scale - 1}


def subject_errors(subjects, view: View, labels: np.ndarray) -> dict[str, float]:
    """Median centre error in units of 5 cm + 2 % of the distance, over observed states whose truth is visible.

    `matched` is the share of visible (figure, frame) pairs that have one; subjects match figures by mask overlap."""
    world = invert(view.c2w[0])
    errors, visible = [], 0
    for figure in range(len(view.figures)):
        mask = view.labels == figure + 1
        visible += int(np.isfinite(view.centroid[figure, :, 0]).sum())
        overlap = np.bincount(labels[mask], minlength=len(subjects.mean) + 1)[1:]
        if not overlap.any():
            continue
        n = int(overlap.argmax())
        known = subjects.observed[n] & np.isfinite(view.centroid[figure, :, 0])
        exact = transform(world, view.centroid[figure, known].astype(np.float64))
        distance = np.linalg.norm(view.centroid[figure, known] - view.c2w[known, :3, 3], axis=1)
        errors.append(np.linalg.norm(subjects.mean[n, known] - exact, axis=1) / (0.05 + 0.02 * distance))
    every = np.concatenate(errors) if errors else np.zeros(0)
    if not len(every):
        return {"subject": float("inf"), "subject_p90": float("inf"), "matched": 0.0}
    return {
        "subject": float(np.median(every)),
        "subject_p90": float(np.percentile(every, 90)),
        "matched": len(every) / max(visible, 1),
    }


def mask_iou(found: np.ndarray, truth: np.ndarray) -> float:
    """Mean over frames with people of the IoU of (labels > 0) [T,H,W]."""
    some = (truth > 0).any((1, 2))
    both = ((found > 0) & (truth > 0))[some].sum((1, 2))
    either = ((found > 0) | (truth > 0))[some].sum((1, 2))
    return float((both / np.maximum(either, 1)).mean()) if some.any() else float("nan")


def load_models(perception: str, view: View, changes: dict) -> tuple:
    """(clip, models, options of the oracle or None)."""
    clip, models = oracle_from_view(view, OracleOptions(**changes))
    if perception == "embedded":
        models = embedded_models()
    return clip, models


def embedded_models() -> Models:
    """Perception without downloads, with its default options."""
    from engine.perception import embedded as e

    return Models(e.EmbeddedTracker(e.EmbeddedTrackerOptions()), e.EmbeddedGeometry(e.EmbeddedGeometryOptions()))


def cloud_errors(cloud: Cloud, camera: Camera, view: View) -> dict[str, float]:
    """Shares of a cloud's points that are where the world has nothing, each judged in the frame it was taken from.

    `wall`: beyond 1.5 times the true depth, or before the open sky. `flying`: off every true surface in the 3x3 pixels
    about it by more than 5 cm + 5 % of the depth (walls included)."""
    wall, flying = np.zeros(len(cloud.xyz), bool), np.zeros(len(cloud.xyz), bool)
    height, width = view.depth.shape[1:]
    for t in np.unique(cloud.frame):
        index = np.flatnonzero(cloud.frame == t)
        seen = transform(invert(camera.c2w[t].astype(np.float64)), cloud.xyz[index].astype(np.float64))
        uv = seen[:, :2] / seen[:, 2:] * camera.K[t][[0, 1], [0, 1]] + camera.K[t][:2, 2]
        column = np.clip(uv[:, 0].astype(int), 1, width - 2)
        row = np.clip(uv[:, 1].astype(int), 1, height - 2)
        truth = np.stack([view.depth[t, row + dy, column + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)], -1)
        z = seen[:, 2:]
        flying[index] = (np.abs(z - truth) > 0.05 + 0.05 * z).all(1)
        wall[index] = z[:, 0] > 1.5 * truth.max(1)
    return {"wall": float(wall.mean()), "flying": float(flying.mean()), "cloud_points": float(len(cloud.xyz))}


def measure_world(
    view: View, perception: str, changes: dict, options: StageOptions, clouds: bool = False
) -> dict[str, float | str]:
    """One row: the view through perception, scene, camera and subjects (and its background), beside its truth."""
    clip, models = load_models(perception, view, changes)
    start = time.process_time()
    tracks = models.tracker.track(clip)
    geometry = models.geometry.geometry(clip, tracks)
    depth = models.depth.depth(clip, tracks, geometry) if models.depth else None
    perceived = time.process_time()
    scene = fuse_scene(clip, tracks, geometry, depth, options.scene)
    fused = time.process_time()
    camera = solve_camera(clip, scene, options.camera)
    solved = time.process_time()
    subjects = unroll_subjects(clip, scene, camera, options.subjects)
    final = scene.depth * camera.scale_t[:, None, None]
    row: dict[str, float | str] = {
        "kind": camera.kind,
        **path_errors(camera.c2w, first_frame_world(view.c2w)),
        **subject_errors(subjects, view, tracks.labels),
        "iou": mask_iou(tracks.labels, view.labels),
        "focal": float(np.median(camera.K[:, 0, 0] / view.K[:, 0, 0]) - 1),
        "depth_absrel": depth_absrel(final, view.depth, scene.static),
        "inliers": camera.quality["pose_inlier_ratio"],
        "flicker_raw": scene.quality["depth_flicker_raw"],
        "flicker": scene.quality["depth_flicker"],
        "flicker_final": depth_flicker(follow_grid(clip.frames, options.scene.align_stride), final, scene.static),
        "log_scale_sigma": camera.log_scale_sigma,
        "cpu_perception_s": perceived - start,
        "cpu_scene_s": fused - perceived,
        "cpu_camera_s": solved - fused,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }
    if clouds:
        holistic = build_backgrounds(clip, scene, camera, options.scene.dilation, options.background)[1]
        row |= cloud_errors(holistic, camera, view)
    return row


def depth_absrel(found: np.ndarray, truth: np.ndarray, static: np.ndarray) -> float:
    """Mean |z / z_true - 1| over static pixels that have both."""
    known = static & (truth > 0) & (found > 0)
    return float(np.abs(found[known] / truth[known] - 1).mean()) if known.any() else float("nan")


def cached(path: Path, make) -> dict:
    """The JSON object at `path`, made and written when it is not there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(make(), indent=1, sort_keys=True) + "\n")
        part.replace(path)
    return json.loads(path.read_text())


def world_of(camera: str, seed: int, arguments: argparse.Namespace) -> dict:
    height, width = arguments.size
    return {
        "kind": ("street", "room")[seed % 2],
        "camera": camera,
        "agents": 3,
        "seed": seed,
        "frames": arguments.frames,
        "height": height,
        "width": width,
    }


SOURCES = ("engine/geometry", "engine/stages", "engine/synthetic", "tests/bench/accuracy.py")
ORACLE = ("engine/perception/oracle.py", "engine/perception/precomputed.py")
COLUMNS = (
    "kind",
    "path_m",
    "ate",
    "sim3",
    "scale",
    "rotation_deg",
    "drift_m",
    "subject",
    "iou",
    "depth_absrel",
    "flicker_raw",
    "flicker",
    "flicker_final",
    "wall",
    "flying",
)
COLUMNS += ("inliers", "cpu_camera_s")


def show(name: str, row: dict) -> None:
    cells = [f"{row[c]:>9.4f}" if isinstance(row.get(c), float) else f"{row.get(c, ''):>9}" for c in COLUMNS]
    print(f"{name:34}" + " ".join(cells), flush=True)


def run(arguments: argparse.Namespace) -> list[dict]:
    cache = ROOT / "bench" / "accuracy"
    version = fingerprint(*SOURCES, *(["engine/perception"] if arguments.perception == "embedded" else ORACLE))
    rows = []
    print(f"{'':34}" + " ".join(f"{c[:9]:>9}" for c in COLUMNS), flush=True)
    for variant, changes, stages, kinds in variants(arguments):
        for camera in arguments.cameras:
            for seed in range(arguments.first, arguments.first + arguments.seeds):
                world = world_of(camera, seed, arguments)
                if world["kind"] not in kinds:
                    continue
                name = f"{variant}-{camera}-{seed}-{arguments.frames}x{world['height']}x{world['width']}"

                def make(world=world, changes=changes, stages=stages, seed=seed) -> dict:
                    view = load_view(cache / "views", **world)
                    return measure_world(
                        view, arguments.perception, {**changes, "seed": seed}, stages, arguments.ablations
                    )

                row = cached(cache / version / f"{arguments.perception}-{name}.json", make)
                rows.append({"name": name, "variant": variant, "camera": camera, "seed": seed, **row})
                show(name, row)
    return rows


def variants(arguments: argparse.Namespace) -> list[tuple[str, dict, StageOptions, tuple[str, ...]]]:
    """(name, oracle errors, stage options, kinds of world) of every variant asked for."""
    if not arguments.ablations:
        errors, name = (EVERY_ERROR, "every_error") if arguments.every_error else ({}, arguments.perception)
        return [(name, errors, StageOptions(), ("street", "room"))]
    return [(*variant, ablation.kinds) for ablation in ABLATIONS for variant in ablation.variants()]


def judge(rows: list[dict], perception: str) -> list[str]:
    """The goals that are missed, in words."""
    missed = []
    walking = [r for r in rows if r["camera"] == "walk"]
    if perception == "oracle" and walking:
        for column, (goal, what) in GOALS.items():
            value = float(np.median([abs(r.get(column, float("inf"))) for r in walking]))
            print(f"{what}: {value:.4f} (goal <= {goal})")
            if not value <= goal:
                missed.append(f"{what}: {value:.4f} > {goal}")
        for r in walking:
            share = r["flicker"] / r["flicker_raw"]
            print(f"seed {r['seed']}: flicker after alignment {share:.2f} of raw (goal <= {FLICKER_GOAL})")
            if not share <= FLICKER_GOAL:
                missed.append(f"seed {r['seed']}: flicker after alignment {share:.2f} of raw > {FLICKER_GOAL}")
    if perception == "oracle":
        for camera in ("static", "rotation"):
            kinds = [r["kind"] for r in rows if r["camera"] == camera]
            if kinds:
                right = sum(kind == camera for kind in kinds)
                print(f"{camera} cameras classified right: {right} of {len(kinds)} (goal: all)")
                if right < len(kinds):
                    missed.append(f"{camera} cameras: {right} of {len(kinds)} classified right")
    tracked = [r for r in rows if perception == "embedded" or r.get("variant") == "davis"]
    iou = [r["iou"] for r in tracked if np.isfinite(r["iou"])]
    if iou:
        print(f"mask IoU: {np.mean(iou):.3f} (goal >= {IOU_GOAL})")
        if np.mean(iou) < IOU_GOAL:
            missed.append(f"mask IoU {np.mean(iou):.3f} < {IOU_GOAL}")
    return missed


def davis_row(folder: Path, models: Models, grown: int) -> dict[str, float]:
    """Mask IoU of a folder with masks in the DAVIS layout (`tests.bench.davis`), which show people grown by so many
    pixels."""
    from tests.bench.davis import read_davis

    clip, truth = read_davis(folder)
    tracks = models.tracker.track(clip)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * grown + 1, 2 * grown + 1))
    found = np.stack([cv2.dilate((labels > 0).astype(np.uint8), kernel) for labels in tracks.labels])
    both = float(((found > 0) & truth).sum())
    return {
        "iou": mask_iou(found, truth),
        "precision": both / max(int(found.sum()), 1),
        "recall": both / max(int(truth.sum()), 1),
        "subjects": float(len(tracks.subjects)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8, help="worlds of each camera")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument(
        "--cameras", nargs="*", help="classes of camera; by default walk static rotation, ablations: walk"
    )
    parser.add_argument("--perception", choices=("oracle", "embedded"), default="oracle")
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--size", type=int, nargs=2, default=[480, 832], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument(
        "--ablations", action="store_true", help="each imitated error with and without its countermeasure"
    )
    parser.add_argument(
        "--every-error", action="store_true", help="also the errors that the oracle leaves out by default"
    )
    parser.add_argument("--davis", type=Path, nargs="*", default=[], help="folders, see tests/bench/davis.py")
    parser.add_argument(
        "--grown", type=int, default=0, help="pixels by which the masks of --davis were grown, as for inpainting"
    )
    parser.add_argument("--json", type=Path, help="write all rows here")
    arguments = parser.parse_args()
    arguments.cameras = arguments.cameras or (["walk"] if arguments.ablations else ["walk", "static", "rotation"])
    cv2.setNumThreads(1)
    rows = run(arguments) if arguments.seeds else []
    for folder in arguments.davis:
        row = davis_row(folder, embedded_models(), arguments.grown)
        rows.append({"name": folder.name, "variant": "davis", "camera": "real", "seed": 0, **row})
        found = f"precision {row['precision']:.3f}, recall {row['recall']:.3f}, {row['subjects']:.0f} subjects"
        print(f"{folder.name:34} mask IoU {row['iou']:.3f}, {found}", flush=True)
    missed = judge_gains(rows) if arguments.ablations else judge(rows, arguments.perception)
    if arguments.json:
        arguments.json.write_text(json.dumps({"goals": GOALS, "missed": missed, "rows": rows}, indent=1) + "\n")
    for line in missed:
        print(f"MISSED {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
