"""Do the quality gates stop the clips that are wrong, and keep those that are right?

    python tests/bench/gates.py --seeds 6

Synthetic walks are unrolled through the oracle with its errors as they are and made several times worse. Each row shows
the columns that are gated beside the true error of the camera path; the end says what the default gates do with clips
that are good (ATE <= 2 % of the path) and catastrophic (> 10 %). Exits with 1 when a catastrophic clip is kept.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from anywhere, installed or not

from engine.geometry.camera import first_frame_world
from engine.mwsu import unroll_clip
from engine.perception.oracle import OracleOptions
from engine.stages.gates import GateOptions, judge
from engine.stages.options import StageOptions
from engine.synthetic.perceive import oracle_from_view
from tests.bench.accuracy import path_errors
from tests.bench.views import ROOT, load_view

LEVELS = {
    "as imitated": {},
    "3x noise": {"depth_noise": 0.06, "smooth_noise": 0.1, "log_scale_jitter": 0.15, "disparity_smooth_noise": 0.08},
    "10x noise": {"depth_noise": 0.2, "smooth_noise": 0.4, "log_scale_jitter": 0.5, "disparity_smooth_noise": 0.3},
    "no masks": {"subject_dropout": 1.0},
    "wild focal": {"focal_jitter": 0.5},
    "no geometry": {"depth_noise": 0.5, "smooth_noise": 1.5, "log_scale_jitter": 1.5, "disparity": False},
}
SHOWN = ("pose_inlier_ratio", "pose_reprojection_px", "log_scale_sigma", "depth_flicker", "selfcheck_psnr_db")
SHOWN += ("selfcheck_depth_absrel", "holistic_coverage")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--frames", type=int, default=33)
    parser.add_argument("--size", type=int, nargs=2, default=[240, 416], metavar=("HEIGHT", "WIDTH"))
    given = parser.parse_args()
    gates = GateOptions()
    kept_good = good = kept_bad = bad = 0
    print(f"{'':22}{'ATE %':>7}{'scale %':>9}{'verdict':>10} " + " ".join(f"{c[:14]:>14}" for c in SHOWN))
    for seed in range(given.seeds):
        world = {
            "kind": ("street", "room")[seed % 2],
            "camera": "walk",
            "agents": 3,
            "seed": seed,
            "frames": given.frames,
            "height": given.size[0],
            "width": given.size[1],
        }
        view = load_view(ROOT / "bench" / "accuracy" / "views", **world)
        for level, changes in LEVELS.items():
            clip, models = oracle_from_view(view, replace(OracleOptions(seed=seed), **changes))
            state = unroll_clip(clip, models, StageOptions())
            error = path_errors(state.camera.c2w, first_frame_world(view.c2w))
            ate, scale = error.get("ate", float("nan")), error.get("scale", float("nan"))
            found = judge(state.quality, state.camera.kind, len(state.subjects.mean), gates)
            good, bad = good + (ate <= 0.02), bad + (not ate <= 0.1)
            kept_good += ate <= 0.02 and found.verdict == "kept"
            kept_bad += not ate <= 0.1 and found.verdict == "kept"
            cells = " ".join(f"{state.quality[c]:>14.4f}" for c in SHOWN)
            print(f"{seed} {level:<20}{100 * ate:>7.2f}{100 * scale:>9.2f}{found.verdict:>10} {cells}", flush=True)
    print(f"good clips kept: {kept_good} of {good}; catastrophic clips kept: {kept_bad} of {bad}")
    return 1 if kept_bad else 0


if __name__ == "__main__":
    np.seterr(all="ignore")
    sys.exit(main())
