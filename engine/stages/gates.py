"""Quality gates: which clips are kept, flagged or rejected, and why. A pure function of the manifest's columns.

A flagged clip is stored and marked; a rejected one is stored too unless the run is told to drop it, since every metric
is a column and somebody else's limits may differ. Where the limits come from stands beside each of them; the rest are
set from the accuracy bench as docs/quality.md says.
"""

from dataclasses import dataclass, fields
from typing import Literal

from engine.options import option

Verdict = Literal["kept", "flagged", "rejected"]

HIGH_IS_GOOD = {
    "pose_inlier_ratio",
    "selfcheck_psnr_db",
    "holistic_coverage",
    "depth_confidence",
    "subject_observed_share",
}


@dataclass
class GateOptions:
    """One field per gated column: [flag, reject]. A column that is good when high is flagged below the first number
    and rejected below the second, any other above them. [] takes the gate away."""

    pose_inlier_ratio: list[float] = option([0.6, 0.3], "poses that explain few of the static tracks are chance")
    pose_reprojection_px: list[float] = option([1.5, 4.0], "tracks are good to 1 px, so poses are to be")
    camera_jerk_relative: list[float] = option(
        [10.0, 30.0], "of real hand-held cameras that travel 95 % stay below 9 and all below 14 (docs/quality.md)"
    )
    log_scale_sigma: list[float] = option(
        [0.3, 0.8], "0.3 is a scale known to a third, 0.8 one known to a factor of two"
    )
    depth_flicker: list[float] = option(
        [0.05, 0.2], "share of depth; doubles the thickness of surfaces at 2 m beyond 5 %"
    )
    selfcheck_psnr_db: list[float] = option([16.0, 11.0], "a frame against another scene's has about 10 dB")
    selfcheck_depth_absrel: list[float] = option([0.1, 0.3], "re-rendered depth against the frame's own, share")
    holistic_coverage: list[float] = option([0.5, 0.2], "a condition that is mostly holes says little")
    subject_area_share: list[float] = option([0.6, 0.9], "little background is left to know the camera by")
    subject_observed_share: list[float] = option(
        [0.3, 0.0], "states that are mostly bridged; clips without subjects pass"
    )
    reject_failed_camera: bool = option(True, "reject clips whose camera was classified as failed")


@dataclass(frozen=True)
class Judgement:
    """`reasons` names every column that crossed a limit, the rejecting ones first; empty when kept."""

    verdict: Verdict
    reasons: tuple[str, ...]


def judge(quality: dict[str, float], camera_kind: str, subjects: int, options: GateOptions) -> Judgement:
    """The verdict on a clip from its quality columns (`shards.schema.QUALITY`), camera class and number of subjects.

    Raises KeyError when a gated column is absent, ValueError when a gate is not [flag, reject] in order. A value that
    is not finite is rejected: nothing is known.
    """
    rejected, flagged = [], []
    if options.reject_failed_camera and camera_kind == "failed":
        rejected.append("camera_kind failed")
    for gate in fields(options):
        limits = getattr(options, gate.name)
        if not isinstance(limits, list) or not limits or (gate.name == "subject_observed_share" and subjects == 0):
            continue
        value, high_is_good = quality[gate.name], gate.name in HIGH_IS_GOOD
        flag, reject = _limits(gate.name, limits, high_is_good)
        worse = (lambda v, limit: not v >= limit) if high_is_good else (lambda v, limit: not v <= limit)
        if worse(value, reject):
            rejected.append(f"{gate.name} {value:.4g} {'<' if high_is_good else '>'} {reject:g}")
        elif worse(value, flag):
            flagged.append(f"{gate.name} {value:.4g} {'<' if high_is_good else '>'} {flag:g}")
    verdict: Verdict = "rejected" if rejected else "flagged" if flagged else "kept"
    return Judgement(verdict, (*rejected, *flagged))


def _limits(name: str, limits: list[float], high_is_good: bool) -> tuple[float, float]:
    if len(limits) != 2 or (limits[0] != limits[1] and (limits[0] < limits[1]) == high_is_good):
        order = "flag >= reject" if high_is_good else "flag <= reject"
        raise ValueError(f"gates.{name}: [flag, reject] with {order} was expected, found {limits}")
    return limits[0], limits[1]
