"""Gates: verdicts from columns, in the right direction, with the reason."""

import pytest

from engine.stages.gates import HIGH_IS_GOOD, GateOptions, judge
from shards.schema import QUALITY

GOOD = {name: 1.0 if name in HIGH_IS_GOOD else 0.0 for name in QUALITY} | {"selfcheck_psnr_db": 30.0}


def test_a_good_clip_is_kept_without_reasons():
    assert judge(GOOD, "general", 2, GateOptions()) == judge(GOOD, "static", 1, GateOptions())
    assert judge(GOOD, "general", 2, GateOptions()).verdict == "kept"
    assert judge(GOOD, "general", 2, GateOptions()).reasons == ()


@pytest.mark.parametrize(
    ("column", "value", "verdict"),
    [
        ("pose_inlier_ratio", 0.5, "flagged"),
        ("pose_inlier_ratio", 0.1, "rejected"),
        ("pose_reprojection_px", 2.0, "flagged"),
        ("selfcheck_psnr_db", 12.0, "flagged"),
        ("selfcheck_depth_absrel", 0.5, "rejected"),
        ("depth_flicker", float("nan"), "rejected"),
    ],
)
def test_each_column_is_judged_in_its_direction(column, value, verdict):
    found = judge({**GOOD, column: value}, "general", 1, GateOptions())
    assert found.verdict == verdict
    assert len(found.reasons) == 1
    assert found.reasons[0].startswith(column)


def test_the_worst_decides_and_every_reason_is_kept():
    found = judge({**GOOD, "pose_reprojection_px": 2.0, "depth_flicker": 0.5}, "failed", 1, GateOptions())
    assert found.verdict == "rejected"
    assert found.reasons[:2] == ("camera_kind failed", "depth_flicker 0.5 > 0.2")
    assert len(found.reasons) == 3


def test_gates_can_be_moved_and_taken_away():
    bad = {**GOOD, "pose_inlier_ratio": 0.1}
    assert judge(bad, "general", 1, GateOptions(pose_inlier_ratio=[])).verdict == "kept"
    assert judge(bad, "general", 1, GateOptions(pose_inlier_ratio=[0.2, 0.05])).verdict == "flagged"
    assert judge(GOOD, "failed", 1, GateOptions(reject_failed_camera=False)).verdict == "kept"
    with pytest.raises(ValueError, match=r"gates\.depth_flicker: \[flag, reject\] with flag <= reject"):
        judge(GOOD, "general", 1, GateOptions(depth_flicker=[0.5, 0.1]))


def test_a_clip_without_subjects_is_not_blamed_for_them():
    nobody = {**GOOD, "subject_observed_share": 0.0}
    assert judge(nobody, "general", 0, GateOptions()).verdict == "kept"
    assert judge(nobody, "general", 1, GateOptions()).verdict == "flagged"


def test_every_gate_is_a_column():
    assert {name for name, value in vars(GateOptions()).items() if isinstance(value, list)} <= set(QUALITY)
