"""The gates bench: what it counts as missed, what it runs, and real paths."""

import zipfile

import numpy as np
import pytest

from engine.stages.gates import HIGH_IS_GOOD, GateOptions
from engine.stages.quality import path_quality
from shards.schema import QUALITY
from tests.bench.gates import every_error, missed, real_jerk, report

CALM = {name: 1.0 if name in HIGH_IS_GOOD else 0.0 for name in QUALITY} | {"selfcheck_psnr_db": 30.0}


def row(ate: float, **quality) -> dict:
    return {
        "name": "x", "kind": "general", "subjects": 1, "quality": CALM | quality,
        "ate": ate, "rotation_deg": 0.1, "scale": 0.0,
    }  # fmt: skip


def test_a_catastrophic_clip_counts_as_missed_unless_it_is_rejected():
    rows = [row(0.01), row(0.2), row(float("nan")), row(0.2, depth_flicker=9.0), row(0.2, depth_flicker=0.1)]
    assert missed(rows, GateOptions()) == [rows[1], rows[2], rows[4]]
    assert report(rows) == 1
    assert report([rows[0], rows[3]]) == 0


def test_every_error_is_on():
    from engine.perception.oracle import OracleOptions

    spoiled = {**vars(OracleOptions()), **every_error(1)}
    off = {name for name, value in spoiled.items() if value == 0 and name != "seed"}
    assert off == set()


def test_a_smooth_path_is_calm_and_one_wrong_pose_is_not():
    t = np.arange(81)
    smooth = np.stack([0.02 * np.sin(t / 3), 0.02 * np.sin(t / 2), 0.08 * t], -1)
    limit = GateOptions().camera_jerk_relative
    assert path_quality(smooth)["camera_jerk_relative"] < limit[0] / 10
    broken = smooth.copy()
    broken[40:] += [0, 0, 3.0]  # the camera jumps by 3 m
    assert path_quality(broken)["camera_jerk_relative"] > limit[1]
    assert path_quality(np.zeros((81, 3)))["camera_jerk_relative"] == 0
    assert path_quality(np.zeros((1, 3))) == {"camera_jerk": 0, "camera_jerk_relative": 0, "path_length_m": 0}


def test_real_paths_are_read_whatever_their_unit(tmp_path):
    t = np.arange(200)
    centres = np.stack([np.sin(t / 6), 0 * t, 0.7 * t], -1)
    with zipfile.ZipFile(tmp_path / "paths.zip", "w") as z:
        for name, unit in (("a.txt", 1.0), ("b.txt", 1e-3)):
            lines = [" ".join(map(str, [i, *unit * c, 0, 0, 0, 1])) for i, c in enumerate(centres)]
            z.writestr(name, "\n".join(lines))
    jerk, straight = real_jerk(tmp_path / "paths.zip")
    assert len(jerk) == 2
    assert jerk[0] == pytest.approx(jerk[1], rel=1e-6)
    assert (straight > 0.9).all()
