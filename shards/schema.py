"""The sample: what every member of a training tuple is called, holds and means. Schema version 1.

A training sample and an inference request are the same thing: a request is a sample without `target.mp4`.

Conventions, everywhere
    camera axes  OpenCV: x right, y down, z forward
    pose         c2w float32 [T,4,4], camera-to-world, metres; the world is the clip's first camera (frame 0 is
                 the identity)
    intrinsics   K float32 [T,3,3] in pixels of the stored resolution; pixel centres at +0.5
    depth        z-depth in metres; 0 = no value; sky has no value
    time         frames at the stored fps; T = 1 + 4k
    subjects     mean float32 [N,T,3] and covariance [N,T,3,3] in world metres; observed bool [N,T]
    images       uint8 RGB [T,H,W,3]
    labels       uint8, 0 = background, 1..N = subject n (row n-1 of every [N,...] array), 255 = hole

Keys are `<video id: 12 hex>-<clip: 4 digits>[-<view>]` without dots; nothing is pickled.
"""

import re
from dataclasses import dataclass

SCHEMA_VERSION = 1
KEY = re.compile(r"^[0-9a-f]{12}-[0-9]{4}(-[a-z0-9]+)?$")
HOLE = 255

CAMERA_KINDS = ("static", "rotation", "zoom", "general", "failed")
HEADING_SOURCES = ("unknown", "velocity", "torso")
VERDICTS = ("kept", "flagged", "rejected")


@dataclass(frozen=True)
class Array:
    """An array of an .npz member. Axes are letters shared over the sample (T, H, W, N; P is free per member)."""

    dtype: str
    axes: tuple[str | int, ...]
    doc: str


@dataclass(frozen=True)
class Member:
    """One file of a sample. `kind` picks the codec: video, depth16, npz, rgba, json, text."""

    name: str
    kind: str
    doc: str
    required: bool = True
    arrays: tuple[tuple[str, Array], ...] = ()


def _cloud(what: str) -> tuple[tuple[str, Array], ...]:
    return (
        ("xyz", Array("float32", ("P", 3), f"{what}: world metres")),
        ("rgb", Array("uint8", ("P", 3), "colour")),
        ("frame", Array("int32", ("P",), "clip frame the point was seen in")),
    )


MEMBERS: tuple[Member, ...] = (
    Member("target.mp4", "video", "the clip, RGB [T,H,W,3]; absent in inference requests", required=False),
    Member(
        "camera.npz",
        "npz",
        "the operator's motion and how well it is known",
        arrays=(
            ("K", Array("float32", ("T", 3, 3), "intrinsics, pixels")),
            ("c2w", Array("float32", ("T", 4, 4), "camera-to-world, metres; frame 0 is the identity")),
            ("inliers", Array("float32", ("T",), "share of static tracks the pose explains, 0..1")),
            ("reprojection", Array("float32", ("T",), "median reprojection error, pixels")),
            ("scale_t", Array("float32", ("T",), "factor applied to each frame's depth to agree with the clip")),
            ("log_scale_sigma", Array("float32", (), "standard deviation of the log metric scale")),
            ("up", Array("float32", (3,), "unit up direction, world axes")),
            ("kind", Array("uint8", (), f"camera class, index into {CAMERA_KINDS}")),
        ),
    ),
    Member(
        "subjects.npz",
        "npz",
        "per-frame 3D Gaussians of the N visible subjects; N may be 0",
        arrays=(
            ("mean", Array("float32", ("N", "T", 3), "centre, world metres")),
            ("cov", Array("float32", ("N", "T", 3, 3), "covariance, world metres squared")),
            ("observed", Array("bool", ("N", "T"), "False where the state is bridged in time")),
            ("mean_camera", Array("float32", ("N", "T", 3), "centre in each frame's camera, metres")),
            ("uv", Array("float32", ("N", "T", 2), "projected centre, pixels")),
            (
                "heading",
                Array("float32", ("N", "T"), "atan2(d_x, d_z) of the facing direction, world, radians; NaN unknown"),
            ),
            ("heading_source", Array("uint8", ("N", "T"), f"index into {HEADING_SOURCES}")),
            ("points", Array("int32", ("N", "T"), "pixels behind each Gaussian")),
        ),
    ),
    Member(
        "masks.npz",
        "npz",
        "who is where",
        arrays=(
            ("labels", Array("uint8", ("T", "H", "W"), "0 = background, n = subject n")),
            ("dynamic", Array("bool", ("T", "H", "W"), "pixels not trusted as static; contains labels > 0")),
        ),
        required=False,
    ),
    Member(
        "depth.npz",
        "npz",
        "depth of the clip in 16-bit log codes (shards.depth16)",
        arrays=(
            ("code", Array("uint16", ("T", "H", "W"), "0 = no value")),
            ("range", Array("float32", (2,), "near, far in metres")),
            ("confidence", Array("uint8", ("T", "H/4", "W/4"), "0..255, every fourth pixel")),
        ),
        required=False,
    ),
    Member("background_anchor.npz", "npz", "background seen in frame 0", arrays=_cloud("frame 0")),
    Member("background_holistic.npz", "npz", "background fused over all frames", arrays=_cloud("all frames")),
    Member("condition_anchor_rgb.mp4", "video", "anchor background and moving Gaussians along the camera path"),
    Member("condition_holistic_rgb.mp4", "video", "holistic background and moving Gaussians along the camera path"),
    Member("condition_anchor_depth.mkv", "depth16", "its depth: FFV1 gray16, log codes, range in meta.json"),
    Member("condition_holistic_depth.mkv", "depth16", "its depth: FFV1 gray16, log codes, range in meta.json"),
    Member(
        "condition_anchor_ids.npz",
        "npz",
        "what each pixel of the anchor condition shows",
        arrays=(("ids", Array("uint8", ("T", "H", "W"), "0 = background, n = subject n, 255 = hole")),),
    ),
    Member(
        "condition_holistic_ids.npz",
        "npz",
        "what each pixel of the holistic condition shows",
        arrays=(("ids", Array("uint8", ("T", "H", "W"), "0 = background, n = subject n, 255 = hole")),),
    ),
    Member("meta.json", "json", "everything that is not an array; see META"),
    Member("caption.txt", "text", "what happens, in words", required=False),
)
IDENTITY = re.compile(r"^identity_(\d{2})\.png$")  # identity_00.png belongs to subject 1; RGBA, one per subject


@dataclass(frozen=True)
class Field:
    """A field of meta.json."""

    type: type | tuple[type, ...]
    doc: str
    required: bool = True


META: dict[str, Field] = {
    "schema_version": Field(int, "1"),
    "key": Field(str, "the sample's key"),
    "source": Field(dict, "uri, video_id, start_s, end_s, width, height (of the source), crop [x,y,w,h], frames [T]"),
    "fps": Field((int, float), "frames per second"),
    "frames": Field(int, "T"),
    "height": Field(int, "H"),
    "width": Field(int, "W"),
    "subjects": Field(list, "per subject: label, category, identity (member name), frame, box [x0,y0,x1,y1], score"),
    "camera_kind": Field(str, f"one of {CAMERA_KINDS}"),
    "K_source": Field(str, "user, metadata, estimated or prior"),
    "depth_range": Field(dict, "member -> [near, far] metres of its 16-bit codes"),
    "render": Field(
        dict,
        "the options that drew the conditions (docs/configuration.md, `render`) and `grain`, pixels per point of both "
        "backgrounds: a point stands for grain * z / f metres, z and f those of its source frame; absent = unknown",
        required=False,
    ),
    "models": Field(dict, "perception: name -> {version or sha256, licence, ...}"),
    "config": Field(str, "fingerprint of the configuration that made the sample"),
    "quality": Field(dict, "column -> number; see QUALITY"),
    "verdict": Field(str, f"the run's quality gates: one of {VERDICTS}"),
    "reasons": Field(list, "every quality limit the clip crossed, in words; empty when kept"),
    "pair": Field(
        (dict, type(None)),
        "{id, view, world} when another sample shows the same world at the same time. world is c2w of the clip's first "
        "camera in the world that all views of the id share, 4x4 rows, metres: x_shared = world x; null = unknown",
    ),
}

QUALITY: dict[str, str] = {
    "pose_inlier_ratio": "mean share of static tracks explained by the poses, 0..1",
    "pose_reprojection_px": "median reprojection error, pixels",
    "camera_jerk": "99th percentile of the third difference of the camera centre, metres per frame cubed",
    "camera_jerk_relative": "camera_jerk over the median step of the camera centre (at least 2 cm), 1/frame^2",
    "path_length_m": "length of the camera path, metres",
    "log_scale_sigma": "standard deviation of the log metric scale",
    "depth_flicker": "median relative depth change of static points between frames after alignment",
    "depth_confidence": "mean depth confidence of static pixels, 0..1",
    "subject_observed_share": "share of (subject, frame) pairs that were observed, 0..1; 0 without subjects",
    "subject_area_share": "mean share of the image covered by subjects, 0..1",
    "anchor_coverage": "mean share of condition pixels that the anchor background fills, 0..1",
    "holistic_coverage": "mean share of condition pixels that the holistic background fills, 0..1",
    "selfcheck_psnr_db": "PSNR of static pixels, re-rendered holistic background against the clip, dB",
    "selfcheck_depth_absrel": "mean |z_render - z| / z of static pixels, re-rendered holistic background",
}


def identity_name(subject: int) -> str:
    """Member name of subject n's reference image (n = 0..N-1)."""
    return f"identity_{subject:02d}.png"


def member(name: str) -> Member | None:
    """The schema entry of a member name, or None when schema 1 does not know it."""
    if IDENTITY.match(name):
        return Member(name, "rgba", "reference image of one subject, RGBA [h,w,4]", required=False)
    return next((m for m in MEMBERS if m.name == name), None)
