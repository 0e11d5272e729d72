"""The solved camera path of real sequences against their recorded one.

    python tests/bench/bench_poses.py FOLDER ... [--ways sensor calibrated embedded]

Layouts of a FOLDER: tests/bench/poses.py. One row for each sequence and way of perceiving it:

    sensor      the depth sensor's depth and the calibration (sequences with depth)
    calibrated  embedded perception from colour alone, told the calibration
    embedded    embedded perception from colour alone, as any video

`ate` is the RMSE of the camera centres in shares of the path after rigid alignment without scale ("-" where the truth
has no scale), `sim3` the same with scale, `scale` the factor of that alignment - 1, `rotation` the median angle.
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from anywhere, installed or not

from engine.stages.camera import solve_camera
from engine.stages.options import StageOptions
from engine.stages.scene import fuse_scene
from engine.types import Camera
from tests.bench.accuracy import embedded_models, path_errors
from tests.bench.poses import Sequence, read_sequences, sensor, uncalibrated

WAYS = ("sensor", "calibrated", "embedded")


def solve(sequence: Sequence, way: str) -> Camera:
    """The camera of a sequence, perceived in one of WAYS."""
    options, clip = StageOptions(), sequence.clip
    if way == "sensor":
        tracks, geometry = sensor(sequence)
    else:
        models = embedded_models()
        clip = clip if way == "calibrated" else uncalibrated(clip)
        tracks = models.tracker.track(clip)
        geometry = models.geometry.geometry(clip, tracks)
    return solve_camera(clip, fuse_scene(clip, tracks, geometry, None, options.scene), options.camera)


def row(sequence: Sequence, way: str) -> str:
    camera = solve(sequence, way)
    errors = path_errors(camera.c2w, sequence.c2w)
    metric = sequence.depth is not None
    cells = [
        f"{100 * errors['ate']:8.2f}" if metric and "ate" in errors else f"{'-':>8}",
        f"{100 * errors['sim3']:8.2f}" if "sim3" in errors else f"{'-':>8}",
        f"{100 * errors['scale']:8.1f}" if metric and "scale" in errors else f"{'-':>8}",
        f"{errors['rotation_deg']:8.2f}",
        f"{100 * (np.median(camera.K[:, 0, 0]) / sequence.clip.K[0, 0] - 1):8.1f}",
        f"{camera.inliers.mean():8.2f}",
        f"{camera.quality['parallax_px']:8.1f}",
    ]
    length = f"{errors['path_m']:8.2f}{'m' if metric else ' '}"
    return f"{sequence.name:20}{len(sequence.clip.frames):>7}{length} {way:11}{camera.kind:>9}" + "".join(cells)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=WAYS)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    if not given.folders:
        print("not run: no folder of images with recorded poses was named (7-Scenes, Redwood, TUM, RealEstate10K)")
        return 0
    head = ("ate %", "sim3 %", "scale %", "rot deg", "focal %", "inliers", "parallax")
    print(f"{'sequence':20}{'frames':>7}{'path':>9} {'way':11}{'class':>9}" + "".join(f"{h:>8}" for h in head))
    for folder in given.folders:
        for sequence in read_sequences(folder):
            for way in given.ways:
                if way != "sensor" or sequence.depth is not None:
                    print(row(sequence, way), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
