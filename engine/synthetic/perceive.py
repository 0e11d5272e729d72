"""A rendered view as a clip with exact perception, in memory: for tests and benches that need no files."""

import hashlib
from dataclasses import dataclass

import numpy as np

from engine.geometry import camera as geometry
from engine.perception import Models
from engine.perception.oracle import OracleOptions, oracle
from engine.perception.precomputed import tracks_of
from engine.synthetic.camera_path import UP
from engine.synthetic.render import View
from engine.types import Clip, DepthEstimate, GeometryEstimate, Tracks
from engine.types import View as ClipView


def clip_of(view: View) -> Clip:
    """The clip that ingest would make of the view's video, without the video's loss. K is not told."""
    w = view.world
    name = f"{w.kind}-{w.camera}-{w.seed}-{view.agent}-{w.frames}x{w.height}x{w.width}"
    video_id = hashlib.sha256(name.encode()).hexdigest()[:12]
    whole = ClipView(w.height, w.width, 0.0, 0.0, float(w.width), float(w.height), w.height, w.width)
    return Clip(
        key=f"{video_id}-0000",
        video_id=video_id,
        uri=f"synthetic/{name}.mp4",
        frames=view.frames,
        fps=w.fps,
        times=np.arange(w.frames) / w.fps,
        source_frames=np.arange(w.frames),
        view=whole,
    )


@dataclass(frozen=True)
class Truth:
    """All three answers about the clip of one view, exact."""

    view: View

    def track(self, clip: Clip) -> Tracks:
        labels = self.view.labels
        return tracks_of(labels, labels > 0, "person", {"tracker": {"truth": "synthetic"}})

    def geometry(self, clip: Clip, tracks: Tracks) -> GeometryEstimate:
        v = self.view
        return GeometryEstimate(
            K=v.K.astype(np.float32),
            depth=v.depth.copy(),
            sky=v.depth == 0,
            confidence=(v.depth > 0).astype(np.float32),
            c2w=geometry.first_frame_world(v.c2w).astype(np.float32),
            c2w_exact=True,
            log_scale_sigma=0.001,
            K_source="user",
            up=(v.c2w[0, :3, :3].T @ UP).astype(np.float32),
            world=v.c2w[0].astype(np.float64),
            models={"geometry": {"truth": "synthetic"}},
        )

    def depth(self, clip: Clip, tracks: Tracks, geometry: GeometryEstimate) -> DepthEstimate | None:
        return None


def oracle_from_view(view: View, options: OracleOptions | None = None) -> tuple[Clip, Models]:
    """The view's clip and the oracle's models for it, with the errors of `options`."""
    truth = Truth(view)
    return clip_of(view), oracle(options, Models(truth, truth, truth))
