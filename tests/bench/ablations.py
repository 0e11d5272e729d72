"""Each imitated error of perception alone, with and without the countermeasure that handles it."""

from dataclasses import dataclass, field

import numpy as np

from engine.perception.oracle import exact_options
from engine.stages.options import StageOptions


@dataclass(frozen=True)
class Ablation:
    """An error (changes of exact oracle options, poses hidden), the stage options that switch its countermeasure off,
    and the columns of the bench (small is good) in which the countermeasure must show its gain."""

    name: str
    error: dict
    off: dict = field(default_factory=dict)  # "stage.field" -> value
    metrics: tuple[str, ...] = ("ate",)
    kinds: tuple[str, ...] = ("street", "room")  # worlds that have what the error touches

    def variants(self) -> list[tuple[str, dict, StageOptions]]:
        """(name, oracle options, stage options) with the countermeasure and without."""
        errors = {**vars(exact_options(hide_poses=True, disparity=False)), **self.error}
        without = StageOptions()
        for path, value in self.off.items():
            *stages, name = path.split(".")
            target = without
            for stage in stages:
                target = getattr(target, stage)
            if not hasattr(target, name):
                raise AttributeError(f"ablation {self.name}: no option {path}")
            setattr(target, name, value)
        return [(f"{self.name}+", errors, StageOptions()), (f"{self.name}-", errors, without)]


ABLATIONS = (
    # Per-frame field of view: one lens for the clip, against every frame's own.
    Ablation("focal_jitter", {"focal_jitter": 0.03}, {"camera.focal": "per_frame"}, ("ate", "rotation_deg")),
    # Flicker of the metric head: every frame's scale taken from the path, against the head's own.
    Ablation(
        "scale_flicker", {"log_scale_jitter": 0.05}, {"camera.synchronise_scale": False}, ("flicker_final", "subject")
    ),
    # Flicker of both heads: joint alignment and scales from the path, against frame by frame and neither.
    Ablation(
        "disparity_flicker",
        {"log_scale_jitter": 0.05, "disparity": True, "disparity_scale_jitter": 0.05, "disparity_shift_jitter": 0.02},
        {"scene.align_scale_sigma": 0.0, "camera.synchronise_scale": False},
        ("flicker_final", "subject"),
    ),
    # The same with alignment alone: the scales stay synchronised on both sides.
    Ablation(
        "alignment_alone",
        {"log_scale_jitter": 0.05, "disparity": True, "disparity_scale_jitter": 0.05, "disparity_shift_jitter": 0.02},
        {"scene.align_scale_sigma": 0.0},
        ("flicker",),
    ),
    # The sky as a wall: removed, against kept as geometry says.
    Ablation("sky_wall", {"sky_depth": 40.0}, {"scene.remove_sky": False}, ("wall",), ("street",)),
    # Flying points at depth edges: edges and flying pixels left out, against kept.
    Ablation("edge_bleed", {"edge_bleed": 4}, {"scene.edge": 1e9, "background.median": 0}, ("flying", "depth_absrel")),
    # Masks that are missing in a fifth of the frames: Cauchy losses, against least squares.
    Ablation("missing_masks", {"mask_dropout": 0.2}, {"camera.bundle.cauchy": 1e6}, ("ate", "rotation_deg")),
)
# What the oracle's defaults leave out, on: with them every imitated error that differs from frame to frame or clip to
# clip. (The shared bias of the metric scale stays 0: no geometry can see it; see gates.py.)
EVERY_ERROR = {"focal_jitter": 0.03, "sky_depth": 40.0, "mask_dropout": 0.05, "subject_dropout": 0.1}
GAIN = 1.1  # without / with, of the means over the worlds: less is no gain


def gains(rows: list[dict]) -> list[tuple[str, str, float, float, float]]:
    """(ablation, metric, mean with, mean without, factor) of every ablation, over the walks among the rows; NaN where
    there is none of its worlds."""
    out, walking = [], [r for r in rows if r["camera"] == "walk"]
    for ablation in ABLATIONS:
        for metric in ablation.metrics:
            with_, without = (
                np.array([r[metric] for r in walking if r["variant"] == f"{ablation.name}{side}"]) for side in "+-"
            )
            a, b = (float(side.mean()) if len(side) else float("nan") for side in (with_, without))
            gain = float("inf") if a == 0 < b else float(np.divide(b, a)) if a != 0 else 1.0
            out.append((ablation.name, metric, a, b, gain))
    return out


def judge_gains(rows: list[dict]) -> list[str]:
    """Prints the table of gains; the ablations that show none, in words."""
    missed = []
    print(f"{'ablation':20}{'metric':>16}{'with':>10}{'without':>10}{'gain':>8}")
    for name, metric, with_, without, gain in gains(rows):
        print(f"{name:20}{metric:>16}{with_:>10.4f}{without:>10.4f}{gain:>7.1f}x")
        if not gain >= GAIN:
            missed.append(f"{name}: {metric} {with_:.4f} with, {without:.4f} without: no gain of {GAIN}")
    return missed
