"""The solved camera path of RGB-D sequences against their true one, by evo.

    python tests/bench/bench_tum.py FOLDER ...

Each folder is a sequence in the TUM format (TUM RGB-D, Bonn), or one with depth in another layout of
tests/bench/poses.py. Depth and calibration are the sensor's; the path is solved. ATE is the RMSE of the camera centres
after rigid alignment without scale, RPE that of the motion over one second (or the whole of a shorter sequence), as
evo's ape and rpe give them: metres and degrees.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from evo.core import metrics
from evo.core.trajectory import PoseTrajectory3D
from scipy.spatial.transform import Rotation

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from anywhere, installed or not

from engine.ingest.tum import read_tum, tum_clip
from engine.stages.camera import solve_camera
from engine.stages.options import StageOptions
from engine.stages.scene import fuse_scene
from tests.bench.poses import read_sequences, sensor


def compare(found: np.ndarray, truth: np.ndarray, times: np.ndarray, fps: float) -> dict[str, float]:
    """ATE, RPE and rotation of c2w paths [T,4,4] with their times [T] in seconds."""
    paths = tuple(PoseTrajectory3D(poses_se3=list(rigid(p)), timestamps=times) for p in (truth, found))
    length = float(paths[0].path_length)
    delta = max(1, min(round(fps), len(times) - 1))
    out = {"path_m": length}
    for name, relation in (
        ("rpe_m", metrics.PoseRelation.translation_part),
        ("rpe_deg", metrics.PoseRelation.rotation_angle_deg),
    ):
        rpe = metrics.RPE(relation, delta, metrics.Unit.frames, all_pairs=True)
        rpe.process_data(paths)
        out[name] = float(rpe.get_statistic(metrics.StatisticsType.rmse))
    if np.ptp(found[:, :3, 3], axis=0).max() < 1e-9:  # the camera did not move, or its path was not found
        return {**out, "ate_m": float("inf"), "ate_share": float("inf")}
    paths[1].align(paths[0], correct_scale=False)
    ape = metrics.APE(metrics.PoseRelation.translation_part)
    ape.process_data(paths)
    ate = float(ape.get_statistic(metrics.StatisticsType.rmse))
    return {**out, "ate_m": ate, "ate_share": ate / length if length else float("nan")}


def rigid(poses: np.ndarray) -> np.ndarray:
    """float64 poses [T,4,4] whose rotations are orthonormal to the last digit, as evo demands; files round."""
    out = poses.astype(np.float64)
    out[:, :3, :3] = Rotation.from_matrix(out[:, :3, :3]).as_matrix()
    return out


def run(folder: Path, size: tuple[int, int], frames: int, fps: float, start: float) -> dict[str, float]:
    """One row: a window of a TUM sequence, or the whole of a short one in another layout."""
    if (folder / "groundtruth.txt").is_file():
        clip, truth = tum_clip(read_tum(folder), size, frames, fps, start)
        models, c2w = truth.models(), truth.c2w
        tracks = models.tracker.track(clip)
        geometry = models.geometry.geometry(clip, tracks)
    else:
        (sequence,) = [s for s in read_sequences(folder) if s.depth is not None]
        clip, c2w = sequence.clip, sequence.c2w
        tracks, geometry = sensor(sequence)
    options = StageOptions()
    camera = solve_camera(clip, fuse_scene(clip, tracks, geometry, None, options.scene), options.camera)
    return {"frames": len(clip.frames), "kind": camera.kind, **compare(camera.c2w, c2w, clip.times, clip.fps)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--fps", type=float, default=15.0)
    parser.add_argument("--start", type=float, default=0.0, help="seconds into the sequence")
    parser.add_argument("--size", type=int, nargs=2, default=[480, 640], metavar=("HEIGHT", "WIDTH"))
    given = parser.parse_args()
    if not given.folders:
        print("not run: no sequence given. Download one of TUM RGB-D or Bonn and name its folder")
    for folder in given.folders:
        print(
            json.dumps(
                {"sequence": folder.name, **run(folder, tuple(given.size), given.frames, given.fps, given.start)}
            )
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
