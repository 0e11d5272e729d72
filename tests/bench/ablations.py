"""Each imitated error of perception alone, with and without the countermeasure that handles it."""

from dataclasses import dataclass, field

from engine.perception.oracle import exact_options
from engine.stages.options import StageOptions


@dataclass(frozen=True)
class Ablation:
    """An error (changes of exact oracle options, poses hidden) and what switches its countermeasure off: stage options,
    and `hide_sky` for a geometry model that does not say where the sky is."""

    name: str
    error: dict
    off: dict = field(default_factory=dict)  # "stage.field" -> value
    hide_sky: bool = False

    def variants(self) -> list[tuple[str, dict, StageOptions, bool]]:
        """(name, oracle options, stage options, hide_sky) with the countermeasure and without."""
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
        return [(f"{self.name}+", errors, StageOptions(), False), (f"{self.name}-", errors, without, self.hide_sky)]


ABLATIONS = (
    # Per-frame field of view: the clip's median, refined in bundle adjustment, against the median alone.
    Ablation("focal_jitter", {"focal_jitter": 0.03}, {"camera.focal_sigma_estimated": 0.0}),
    # Flicker of the metric head: a scale per frame in the bundle adjustment, against one scale for all.
    Ablation("scale_flicker", {"log_scale_jitter": 0.05}, {"camera.bundle.scale_sigma": 1e-4}),
    # Flicker again, with a Depth model: alignment that is steady along the flow, against frame by frame.
    Ablation(
        "disparity_flicker",
        {"log_scale_jitter": 0.05, "disparity": True, "disparity_scale_jitter": 0.05, "disparity_shift_jitter": 0.02},
        {"scene.align_scale_sigma": 0.0},
    ),
    # Flying points at depth edges: edges left out of the static pixels, against none.
    Ablation("edge_bleed", {"edge_bleed": 4}, {"scene.edge": 1e9}),
    # The sky as a wall: left out by the sky mask, against a model that has none.
    Ablation("sky_wall", {"sky_depth": 40.0}, hide_sky=True),
    # Masks that are missing in a fifth of the frames: Cauchy losses, against least squares.
    Ablation("missing_masks", {"mask_dropout": 0.2}, {"camera.bundle.cauchy": 1e6}),
)
