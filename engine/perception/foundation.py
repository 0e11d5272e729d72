"""Foundation perception: MoGe-2, SAM 2 with a detector, and Depth Anything, resident in one worker.

    models = load(options)                 # -> engine.perception.Models, for any runner
    actor = FoundationActor(options)       # the same as a stage: setup() / process(clip) / close()

`load` and `setup` stop before any work when weights are missing, with the list and the command; nothing is ever
substituted. `actor_plan` says which actors a Ray runner starts and the GPU share of each: one fused actor per GPU, or
one per model when `split` is set (`engine/run/split.py`). Several threads may call `process`: one at a time computes
on the device.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from engine.options import option
from engine.perception import Models, Perceived
from engine.perception.compute import DeviceFrames, pick_device
from engine.perception.depth_anything import DepthAnything, DepthAnythingOptions
from engine.perception.detector import Detector, DetectorOptions
from engine.perception.moge import MoGe, MoGeOptions
from engine.perception.sam2 import Sam2, Sam2Options
from engine.perception.tracker import FoundationTracker, TrackerOptions
from engine.perception.weights import WeightsOptions, folder, provenance, require
from engine.types import Clip, DepthEstimate, GeometryEstimate, Tracks

PARTS = ("tracker", "geometry", "depth")


@dataclass
class FoundationOptions:
    device: str = option(
        "auto", "auto is the first CUDA device where there is one, else the CPU; or a torch device name"
    )
    depth: str = option(
        "depth_anything",
        "what makes depth smooth over time, or none for MoGe-2's alone",
        choices=("depth_anything", "none"),
    )
    split: bool = option(False, "one actor per model instead of one fused actor per GPU")
    share: float = option(0.33, "GPU share of each actor when split")
    clips: int = option(2, "clips of an actor whose frames and features are on the device at a time, at most")
    weights: WeightsOptions = option(WeightsOptions(), "where the weights lie")
    detector: DetectorOptions = option(DetectorOptions(), "boxes on keyframes")
    sam2: Sam2Options = option(Sam2Options(), "masks from boxes")
    tracker: TrackerOptions = option(TrackerOptions(), "identities from masks")
    moge: MoGeOptions = option(MoGeOptions(), "field of view and metric depth")
    depth_anything: DepthAnythingOptions = option(DepthAnythingOptions(), "smooth disparity")


@dataclass(frozen=True)
class ActorSpec:
    """One actor of a runner: the parts it holds and the GPUs it asks for (0 on a CPU)."""

    name: str
    parts: tuple[str, ...]
    gpus: float


class FoundationActor:
    """The networks of one worker as a stage. `parts` leaves some to other actors."""

    def __init__(self, options: FoundationOptions, parts: Iterable[str] = PARTS) -> None:
        self.options, self.parts = options, tuple(parts)
        self.models: dict[str, Any] = {}
        self.frames: DeviceFrames | None = None

    def setup(self) -> None:
        """Load every network of this worker; again after a failure is fine. WeightsError, CheckpointError."""
        require(self.options.weights, weight_names(self.options, self.parts))
        self.frames = DeviceFrames(pick_device(self.options.device), self.options.clips)
        self.models = {part: _BUILD[part](self.options, self.frames) for part in self.parts if self._wanted(part)}

    def process(self, clip: Clip) -> Perceived:
        """Everything perceived of one clip, by all three parts."""
        if set(self.parts) != set(PARTS) or not self.models:
            raise RuntimeError(
                f"this actor holds {self.parts or 'nothing'}: call setup first, and track/geometry/depth apart"
            )
        tracks = self.track(clip)
        geometry = self.geometry(clip, tracks)
        return Perceived(tracks, geometry, self.depth(clip, tracks, geometry))

    def track(self, clip: Clip) -> Tracks:
        return self.models["tracker"].track(clip)

    def geometry(self, clip: Clip, tracks: Tracks) -> GeometryEstimate:
        return self.models["geometry"].geometry(clip, tracks)

    def depth(self, clip: Clip, tracks: Tracks, geometry: GeometryEstimate) -> DepthEstimate | None:
        return self.models["depth"].depth(clip, tracks, geometry) if "depth" in self.models else None

    def close(self) -> None:
        """Give the device's memory back."""
        self.models.clear()
        if self.frames is not None:
            self.frames.clear()
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _wanted(self, part: str) -> bool:
        return part != "depth" or self.options.depth != "none"


def load(options: FoundationOptions) -> Models:
    """All networks in this process. Raises WeightsError before any work when weights are missing."""
    actor = FoundationActor(options)
    actor.setup()
    return Models(actor.models["tracker"], actor.models["geometry"], actor.models.get("depth"))


def actor_plan(options: FoundationOptions) -> tuple[ActorSpec, ...]:
    """The actors that answer for one GPU (or for the CPU)."""
    gpu = pick_device(options.device).type == "cuda"
    if not options.split:
        return (ActorSpec("perception", PARTS, 1.0 if gpu else 0.0),)
    parts = PARTS if options.depth != "none" else PARTS[:2]
    return tuple(ActorSpec(part, (part,), options.share if gpu else 0.0) for part in parts)


def weight_names(options: FoundationOptions, parts: Iterable[str] = PARTS) -> list[str]:
    """Catalogue entries that the configuration needs."""
    names = {
        "tracker": [options.detector.variant, f"sam2.1-hiera-{options.sam2.variant}"],
        "geometry": [f"moge-2-{options.moge.variant}-normal"],
        "depth": [f"depth-anything-v2-{options.depth_anything.variant}"] if options.depth != "none" else [],
    }
    return [name for part in parts for name in names[part]]


def from_dotlist(given: list[str]) -> FoundationOptions:
    """Options from key=value words. Raises ValueError for an unknown key, a wrong type or a value not among choices."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        merged = OmegaConf.merge(OmegaConf.structured(FoundationOptions), OmegaConf.from_dotlist(given))
        options: FoundationOptions = OmegaConf.to_object(merged)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise ValueError(f"foundation perception: {str(error).splitlines()[0]}") from error
    _check_choices(options, "")
    return options


def _check_choices(options: Any, prefix: str) -> None:
    for f in fields(options):
        value, choices = getattr(options, f.name), f.metadata.get("choices")
        if choices and value not in choices:
            raise ValueError(f"{prefix}{f.name}={value}: one of {', '.join(choices)} was expected")
        if hasattr(value, "__dataclass_fields__"):
            _check_choices(value, f"{prefix}{f.name}.")


def _located(options: FoundationOptions, name: str) -> tuple[Path, dict[str, str]]:
    return folder(options.weights, name), provenance(options.weights, name)


def _tracker(options: FoundationOptions, frames: DeviceFrames) -> FoundationTracker:
    at, about = _located(options, options.detector.variant)
    detector = Detector(options.detector, at, frames, about)
    name = f"sam2.1-hiera-{options.sam2.variant}"
    at, about = _located(options, name)
    sam2 = Sam2(options.sam2, at / f"{name.replace('-', '_')}.pt", frames, about)
    return FoundationTracker(options.tracker, options.detector, detector, sam2)


def _geometry(options: FoundationOptions, frames: DeviceFrames) -> MoGe:
    at, about = _located(options, f"moge-2-{options.moge.variant}-normal")
    return MoGe(options.moge, at / "model.pt", frames, about)


def _depth(options: FoundationOptions, frames: DeviceFrames) -> DepthAnything:
    at, about = _located(options, f"depth-anything-v2-{options.depth_anything.variant}")
    return DepthAnything(options.depth_anything, at, frames, about)


_BUILD = {"tracker": _tracker, "geometry": _geometry, "depth": _depth}
