"""The options of all stages after perception, one dataclass per stage, each declared beside its stage."""

from dataclasses import dataclass

from engine.options import option
from engine.stages.background import BackgroundOptions
from engine.stages.camera import CameraOptions
from engine.stages.gates import GateOptions
from engine.stages.identity import IdentityOptions
from engine.stages.render import RenderOptions
from engine.stages.scene import SceneOptions
from engine.stages.subjects import SubjectOptions


@dataclass
class StageOptions:
    scene: SceneOptions = option(SceneOptions(), "depth fusion and static pixels")
    camera: CameraOptions = option(CameraOptions(), "camera class, poses and metric scale")
    subjects: SubjectOptions = option(SubjectOptions(), "per-frame 3D Gaussians")
    identity: IdentityOptions = option(IdentityOptions(), "identity crops")
    background: BackgroundOptions = option(BackgroundOptions(), "anchor and holistic clouds")
    render: RenderOptions = option(RenderOptions(), "condition videos")
    gates: GateOptions = option(GateOptions(), "quality limits: which clips are kept, flagged or rejected")
