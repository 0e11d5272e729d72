"""Monocular World-State Unrolling: the way of one clip through the engine, top to bottom."""

from dataclasses import fields

from engine.perception import Models, Perceived
from engine.stages.background import build_backgrounds
from engine.stages.camera import solve_camera
from engine.stages.gates import judge
from engine.stages.identity import pick_identities
from engine.stages.options import StageOptions
from engine.stages.quality import measure_quality
from engine.stages.render import RenderOptions, render_condition
from engine.stages.scene import fuse_scene
from engine.stages.subjects import unroll_subjects
from engine.stopwatch import Stopwatch
from engine.types import Clip, WorldState


def unroll_clip(clip: Clip, models: Models, options: StageOptions, watch: Stopwatch | None = None) -> WorldState:
    """The hidden multi-agent world state of a clip: `perceive`, then `unroll`."""
    return unroll(clip, perceive(clip, models, watch), options, watch)


def perceive(clip: Clip, models: Models, watch: Stopwatch | None = None) -> Perceived:
    """All that the models say of a clip: the one part that sees frames through networks and may want a GPU."""
    watch = watch or Stopwatch()
    with watch("track"):
        tracks = models.tracker.track(clip)
    with watch("geometry"):
        geometry = models.geometry.geometry(clip, tracks)
    with watch("depth"):
        depth = models.depth.depth(clip, tracks, geometry) if models.depth else None
    return Perceived(tracks, geometry, depth)


def unroll(clip: Clip, perceived: Perceived, options: StageOptions, watch: Stopwatch | None = None) -> WorldState:
    """The world state from what was perceived: geometry, on any machine.

    `watch` collects seconds per stage and never reaches the sample, so equal clips give equal bytes.
    """
    watch = watch or Stopwatch()
    with watch("scene"):
        scene = fuse_scene(clip, perceived.tracks, perceived.geometry, perceived.depth, options.scene)
    with watch("camera"):
        camera = solve_camera(clip, scene, options.camera)
    with watch("subjects"):
        subjects = unroll_subjects(clip, scene, camera, options.subjects)
        identities = pick_identities(clip, scene, options.identity)
    with watch("background"):
        anchor, holistic = build_backgrounds(clip, scene, camera, options.scene.dilation, options.background)
    with watch("render"):
        anchor_rendering = render_condition(clip.size, camera, subjects, anchor, options.render)
        holistic_rendering = render_condition(clip.size, camera, subjects, holistic, options.render)
    with watch("quality"):
        quality = measure_quality(clip, scene, camera, subjects, holistic, anchor_rendering, holistic_rendering)
        judgement = judge(quality, camera.kind, len(identities), options.gates)
    return WorldState(
        clip=clip,
        scene=scene,
        camera=camera,
        subjects=subjects,
        anchor=anchor,
        holistic=holistic,
        anchor_rendering=anchor_rendering,
        holistic_rendering=holistic_rendering,
        identities=identities,
        quality=quality,
        verdict=judgement.verdict,
        reasons=judgement.reasons,
        render={f.name: getattr(options.render, f.name) for f in fields(RenderOptions) if f.name != "threads"},
    )
