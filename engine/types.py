"""What passes between the stages of one clip: frozen dataclasses of arrays, one convention each.

Conventions (stated once in `shards.schema`): OpenCV camera axes (x right, y down, z forward); poses are
camera-to-world in metres and the world is the clip's first camera; K is in pixels of the stored
resolution with pixel centres at +0.5; depth is z-depth in metres with 0 for "no value".
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

CameraKind = Literal["static", "rotation", "zoom", "general", "failed"]


@dataclass(frozen=True)
class View:
    """How a source frame becomes a clip frame: crop (source pixels), then resize to (height, width)."""

    source_height: int
    source_width: int
    crop_x: float
    crop_y: float
    crop_width: float
    crop_height: float
    height: int
    width: int


@dataclass(frozen=True)
class Clip:
    """A window of a video at the render size.

    key            "<video id: 12 hex>-<clip: 4 digits>"
    uri            where the video came from
    frames         uint8 [T,H,W,3] RGB, T = 1 + 4k
    fps            frames per second of `frames`
    times          float64 [T] presentation time in the source, seconds
    source_frames  int64 [T] index of the source frame that each clip frame shows
    view           crop and resize that made the frames
    K              float64 [3,3] at the stored resolution, when the user or the metadata gave a focal; else None
    K_source       "user", "metadata" or "none"
    caption        text from the sidecar or the configured default; may be empty
    """

    key: str
    video_id: str
    uri: str
    frames: np.ndarray
    fps: float
    times: np.ndarray
    source_frames: np.ndarray
    view: View
    K: np.ndarray | None = None
    K_source: str = "none"
    caption: str = ""
    pair: tuple[str, str] | None = None  # (pair id, view name) when another clip shows the same world

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.frames.shape[1], self.frames.shape[2]


@dataclass(frozen=True)
class SubjectTrack:
    """One followed subject. `label` is its value in `Tracks.labels` (1..N, contiguous).

    score    float32 [T] detection confidence in [0,1], 0 where unseen
    facing   float32 [T,3] unit torso direction in the CAMERA frame, NaN where unknown
    distance float32 [T] metric z-depth of the body's centre by the person model, metres, NaN where unknown
    """

    label: int
    category: str
    score: np.ndarray
    facing: np.ndarray | None = None
    distance: np.ndarray | None = None


@dataclass(frozen=True)
class Tracks:
    """What a Tracker returns.

    labels   uint8 [T,H,W], 0 = background, 1..N = subject
    dynamic  bool [T,H,W], every pixel not to be trusted as static: the subjects, what they carry or ride,
             other moving things. Always a superset of labels > 0
    """

    labels: np.ndarray
    dynamic: np.ndarray
    subjects: tuple[SubjectTrack, ...]
    models: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GeometryEstimate:
    """What a Geometry returns: intrinsics and metric depth.

    K          float32 [T,3,3] pixels
    depth      float32 [T,H,W] metres, 0 = no value (sky included)
    sky        bool [T,H,W]
    confidence float32 [T,H,W] in [0,1]
    c2w        float32 [T,4,4] when the source knows the poses (precomputed, or a model that solves them), else None
    c2w_exact  True when c2w is given by the user and must be kept as it is
    log_scale_sigma  standard deviation of the log of the metric scale, over the whole clip
    K_source   "user", "metadata", "estimated" or "prior"
    up         float32 [3] unit up direction in the first camera's frame, or None
    normals    float16 [T,H,W,3] unit surface normals in each frame's camera, when they were asked for, else None
    world      float64 [4,4] c2w of the first frame in the source's own world, metres, or None. It relates the views of
               a pair and takes no part in solving: it is told even where the poses are hidden
    """

    K: np.ndarray
    depth: np.ndarray
    sky: np.ndarray
    confidence: np.ndarray
    c2w: np.ndarray | None = None
    c2w_exact: bool = False
    log_scale_sigma: float = 0.1
    K_source: str = "estimated"
    up: np.ndarray | None = None
    normals: np.ndarray | None = None
    world: np.ndarray | None = None
    models: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DepthEstimate:
    """What a Depth returns. `kind` says what the numbers mean and is never guessed.

    values  float32 [T,H,W]; kind "metric": z-depth in metres; "disparity": a_t / z + b_t with unknown a_t, b_t
            per frame; 0 or NaN = no value for "metric", NaN = no value for "disparity"
    """

    kind: Literal["metric", "disparity"]
    values: np.ndarray
    models: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scene:
    """Everything perceived of a clip, after the depth of all sources was brought into one metric depth.

    depth, confidence, sky as in GeometryEstimate; labels, dynamic as in Tracks. `static` pixels are
    valid, not sky, not on a depth edge, not dynamic (dilated).
    """

    K: np.ndarray
    depth: np.ndarray
    confidence: np.ndarray
    sky: np.ndarray
    static: np.ndarray
    tracks: Tracks
    geometry: GeometryEstimate
    models: dict[str, Any] = field(default_factory=dict)  # of the Depth adapter
    quality: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Camera:
    """The operator's motion.

    K            float32 [T,3,3] pixels
    c2w          float32 [T,4,4], frame 0 is the identity
    kind         camera class
    inliers      float32 [T] share of tracked static points that the pose explains
    reprojection float32 [T] median reprojection error, pixels
    scale_t      float32 [T] factor applied to each frame's depth to agree with the clip (MoGe flicker); the
                 robust centre of their logs is 0
    log_scale_sigma  std of the log metric scale of the clip
    up           float32 [3] unit up direction in world axes
    """

    K: np.ndarray
    c2w: np.ndarray
    kind: CameraKind
    inliers: np.ndarray
    reprojection: np.ndarray
    scale_t: np.ndarray
    log_scale_sigma: float
    up: np.ndarray
    quality: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Subjects:
    """Per-frame 3D Gaussians of N subjects in world metres (N may be 0).

    mean [N,T,3], cov [N,T,3,3] float32; observed bool [N,T]; mean_camera [N,T,3] in each frame's camera;
    uv [N,T,2] projection in pixels; heading [N,T] radians, atan2(d_x, d_z) of the facing direction d in the
    world's x-z plane, NaN where unknown; heading_source uint8 [N,T] (0 unknown, 1 velocity, 2 torso);
    points int32 [N,T] number of pixels behind each Gaussian.
    Where `observed` is False mean and cov are bridged in time.
    """

    mean: np.ndarray
    cov: np.ndarray
    observed: np.ndarray
    mean_camera: np.ndarray
    uv: np.ndarray
    heading: np.ndarray
    heading_source: np.ndarray
    points: np.ndarray


@dataclass(frozen=True)
class Cloud:
    """A coloured point cloud in world metres: xyz float32 [P,3], rgb uint8 [P,3], frame int32 [P] (source frame).

    size float32 [P] is the edge in metres of the surface patch that each point stands for: `grain` pixels of its
    source frame, so a reader derives it from the sample as grain * z / f (`engine.geometry.cloud.point_size`; the
    sample's meta.json tells `grain`). None = unknown.
    """

    xyz: np.ndarray
    rgb: np.ndarray
    frame: np.ndarray
    size: np.ndarray | None = None
    grain: float = 1.0


@dataclass(frozen=True)
class Rendering:
    """A condition video: rgb uint8 [T,H,W,3]; depth float32 [T,H,W] metres, 0 = hole; ids uint8 [T,H,W]
    (0 = background, 1..N = subject, 255 = hole)."""

    rgb: np.ndarray
    depth: np.ndarray
    ids: np.ndarray


@dataclass(frozen=True)
class Identity:
    """One reference image: rgba uint8 [h,w,4] cut from clip frame `frame`; box (x0,y0,x1,y1) pixels; score in [0,1]."""

    label: int
    category: str
    rgba: np.ndarray
    frame: int
    box: tuple[int, int, int, int]
    score: float


@dataclass(frozen=True)
class WorldState:
    """The unrolled clip: all that a sample stores."""

    clip: Clip
    scene: Scene
    camera: Camera
    subjects: Subjects
    anchor: Cloud
    holistic: Cloud
    anchor_rendering: Rendering
    holistic_rendering: Rendering
    identities: tuple[Identity, ...]
    quality: dict[str, float]
    verdict: Literal["kept", "flagged", "rejected"] = "kept"
    reasons: tuple[str, ...] = ()  # every quality limit the clip crossed
    render: dict[str, Any] = field(default_factory=dict)  # the options that drew the renderings
