"""Does a sample obey schema 1? `check_sample` returns every rule it breaks, as one sentence each."""

import io
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import av
import numpy as np

from shards import codec, schema

ROTATION_TOLERANCE = 1e-3  # of R R^T against the identity; float32 poses of a long path stay below 1e-5
PSD_TOLERANCE = 1e-5  # most negative eigenvalue over the trace; float32 rounding


def check_sample(members: Mapping[str, bytes], key: str | None = None) -> list[str]:
    """Every violated rule of the schema; empty when the sample is right. `key` is what the sample is filed under."""
    return list(_violations(members, key))


def read_meta(members: Mapping[str, bytes]) -> tuple[dict[str, Any] | None, list[str]]:
    """meta.json as an object; None and what is wrong with it otherwise (nothing where it is missing)."""
    if "meta.json" not in members:
        return None, []
    try:
        meta = codec.decode("meta.json", members["meta.json"])
    except ValueError as error:
        return None, [str(error)]
    if not isinstance(meta, dict):
        return None, [f"meta.json: expected an object, found {type(meta).__name__}"]
    return meta, []


def filed_right(meta: Mapping[str, Any], key: str | None) -> Iterator[str]:
    """Is it of this schema, and the sample that it is filed as?"""
    if meta.get("schema_version") != schema.SCHEMA_VERSION:
        yield f"meta.json: schema_version is {meta.get('schema_version')}, expected {schema.SCHEMA_VERSION}"
    if key is not None and meta.get("key") != key:
        yield f"meta.json: key is {meta.get('key')!r}, but the sample is filed under {key!r}"


def _violations(members: Mapping[str, bytes], key: str | None) -> Iterator[str]:
    for member in schema.MEMBERS:
        if member.required and member.name not in members:
            yield f"{member.name}: missing"
    for name in sorted(members):
        if schema.member(name) is None:
            yield f"{name}: unknown member"
    meta, problems = read_meta(members)
    yield from problems
    if meta is None:
        return
    yield from _meta(meta, members, key)
    if any(not isinstance(meta.get(f), int) for f in ("frames", "height", "width")):
        return  # nothing else can be judged without T, H, W
    subjects = meta.get("subjects")
    size = {"T": meta["frames"], "H": meta["height"], "W": meta["width"]}
    size["N"] = len(subjects) if isinstance(subjects, list) else 0
    for name in sorted(members):
        found = schema.member(name)
        if found is not None and found.kind != "json":
            try:
                yield from (f"{name}: {text}" for text in CHECKS[found.kind](found, members[name], size, meta))
            except ValueError as error:
                yield str(error) if str(error).startswith(f"{name}: ") else f"{name}: {error}"


def _meta(meta: dict[str, Any], members: Mapping[str, bytes], key: str | None) -> Iterator[str]:
    for name, rule in schema.META.items():
        if name not in meta:
            if rule.required:
                yield f"meta.json: field {name} is missing"
        elif not isinstance(meta[name], rule.type) or isinstance(meta[name], bool):
            yield f"meta.json: {name} has type {type(meta[name]).__name__}; it is {rule.doc}"
    for name in sorted(meta.keys() - schema.META.keys()):
        yield f"meta.json: unknown field {name}"
    yield from filed_right(meta, key)
    if not schema.KEY.match(str(meta.get("key"))):
        yield f"meta.json: key {meta.get('key')!r} is not of the form {schema.KEY.pattern}"
    if meta.get("verdict") not in schema.VERDICTS:
        yield f"meta.json: verdict {meta.get('verdict')!r} is none of {schema.VERDICTS}"
    if meta.get("camera_kind") not in schema.CAMERA_KINDS:
        yield f"meta.json: camera_kind {meta.get('camera_kind')!r} is none of {schema.CAMERA_KINDS}"
    frames = meta.get("frames")
    if isinstance(frames, int) and (frames < 1 or frames % 4 != 1):
        yield f"meta.json: frames is {frames}, expected 1 + 4k"
    if isinstance(meta.get("fps"), int | float) and not meta["fps"] > 0:
        yield f"meta.json: fps is {meta['fps']}, expected a positive number"
    source = meta.get("source")
    if isinstance(source, dict):
        for name in ("uri", "video_id", "start_s", "end_s", "width", "height", "crop", "frames"):
            if name not in source:
                yield f"meta.json: source.{name} is missing"
        if isinstance(source.get("frames"), list) and len(source["frames"]) != frames:
            yield f"meta.json: source.frames has {len(source['frames'])} entries, expected T = {frames}"
    yield from _meta_subjects(meta.get("subjects"), members)
    yield from _meta_numbers(meta, members)


def _meta_subjects(subjects: Any, members: Mapping[str, bytes]) -> Iterator[str]:
    if not isinstance(subjects, list):
        return
    expected = {schema.identity_name(n) for n in range(len(subjects))}
    present = {name for name in members if schema.IDENTITY.match(name)}
    for name in sorted(expected - present):
        yield f"{name}: missing, meta.json lists {len(subjects)} subjects"
    for name in sorted(present - expected):
        yield f"{name}: there are only {len(subjects)} subjects in meta.json"
    for n, subject in enumerate(subjects):
        if not isinstance(subject, dict):
            yield f"meta.json: subjects[{n}] is no object"
            continue
        if subject.get("identity") != schema.identity_name(n):
            yield f"meta.json: subjects[{n}].identity is {subject.get('identity')!r}, not {schema.identity_name(n)}"
        if subject.get("label") != n + 1:
            yield f"meta.json: subjects[{n}].label is {subject.get('label')}, expected {n + 1}"
        for name in ("category", "frame", "box", "score"):
            if name not in subject:
                yield f"meta.json: subjects[{n}].{name} is missing"


def _meta_numbers(meta: dict, members: Mapping[str, bytes]) -> Iterator[str]:
    ranges, quality = meta.get("depth_range"), meta.get("quality")
    if isinstance(ranges, dict):
        for name in members:
            if name == "depth.npz" or name.endswith("_depth.mkv"):
                near_far = ranges.get(name)
                if not (isinstance(near_far, list) and len(near_far) == 2 and 0 < near_far[0] < near_far[1] < math.inf):
                    yield f"meta.json: depth_range of {name} is {near_far}, expected 0 < near < far"
    if isinstance(quality, dict):
        for name in sorted(quality.keys() - schema.QUALITY.keys()):
            yield f"meta.json: unknown quality column {name}"
        if "target.mp4" in members:  # a request was not measured
            for name in sorted(schema.QUALITY.keys() - quality.keys()):
                yield f"meta.json: quality column {name} is missing"
        for name, value in quality.items():
            if not isinstance(value, int | float) or not math.isfinite(value):
                yield f"meta.json: quality column {name} is {value!r}, expected a finite number"
    pair = meta.get("pair")
    if isinstance(pair, dict):
        if not (pair.get("id") and pair.get("view")):
            yield f"meta.json: pair is {pair}, expected id and view"
        for name in sorted(pair.keys() - {"id", "view", "world"}):
            yield f"meta.json: unknown field pair.{name}"
        if pair.get("world") is not None:
            yield from _pair_world(pair["world"])


def _pair_world(world: Any) -> Iterator[str]:
    try:
        matrix = np.array(world, np.float64)
    except (TypeError, ValueError):
        matrix = np.empty(0)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        yield f"meta.json: pair.world is {world}, expected 4 rows of 4 finite numbers, or null"
        return
    R = matrix[:3, :3]
    proper = np.abs(R @ R.T - np.eye(3)).max() <= ROTATION_TOLERANCE and np.linalg.det(R) > 0
    if not proper or not np.allclose(matrix[3], [0, 0, 0, 1]):
        yield "meta.json: pair.world is no rigid motion: expected a proper rotation and a last row of 0 0 0 1"


def _check_video(member: schema.Member, data: bytes, size: dict, meta: dict) -> Iterator[str]:
    pixels = {"video": "yuv420p", "depth16": "gray16le"}[member.kind]
    with codec.damage_named(member.name), av.open(io.BytesIO(data), "r") as container:
        if not container.streams.video:
            yield "no video stream"
            return
        stream = container.streams.video[0]
        found = sum(packet.size > 0 for packet in container.demux(stream))
        if found != size["T"]:
            yield f"has {found} frames, expected T = {size['T']}"
        if (stream.height, stream.width) != (size["H"], size["W"]):
            yield f"is {stream.height}x{stream.width}, expected {size['H']}x{size['W']}"
        if stream.pix_fmt != pixels:
            yield f"has pixels {stream.pix_fmt}, expected {pixels}"
        rate = float(stream.average_rate or 0)
        if isinstance(meta.get("fps"), int | float) and abs(rate - meta["fps"]) > 0.01 * meta["fps"]:
            yield f"plays at {rate:g} frames per second, expected {meta['fps']:g}"


def _check_npz(member: schema.Member, data: bytes, size: dict, meta: dict) -> Iterator[str]:
    rules, free = dict(member.arrays), dict(size)
    headers = codec.array_headers(member.name, data)
    for name in sorted(headers.keys() - rules.keys()):
        yield f"unknown array {name}"
    right = True
    for name, rule in rules.items():
        if name not in headers:
            right = False
            yield f"array {name} is missing"
            continue
        dtype, shape = headers[name]
        expected = _shape(rule.axes, shape, free)
        if dtype != np.dtype(rule.dtype) or shape != expected:
            right = False
            yield f"{name} is {dtype} {list(shape)}, expected {rule.dtype} {list(expected)} = {list(rule.axes)}"
    if right and member.name in CONTENT:
        yield from CONTENT[member.name](codec.decode(member.name, data), size, meta)


def _shape(axes: tuple[str | int, ...], found: tuple[int, ...], free: dict[str, int]) -> tuple[int, ...]:
    """The axes as numbers; a letter not known yet (P) takes the size found first in its member."""
    out = []
    for i, axis in enumerate(axes):
        if isinstance(axis, int):
            out.append(axis)
        elif "/" in axis:
            letter, _, divisor = axis.partition("/")
            out.append(-(-free[letter] // int(divisor)))
        else:
            out.append(free.setdefault(axis, found[i] if i < len(found) else 0))
    return tuple(out)


def _camera(a: dict, size: dict, meta: dict) -> Iterator[str]:
    if not all(np.isfinite(a[name]).all() for name in a):
        yield f"not finite: {', '.join(name for name in a if not np.isfinite(a[name]).all())}"
        return
    c2w, K = a["c2w"].astype(np.float64), a["K"]
    if not np.allclose(c2w[0], np.eye(4), atol=1e-5):
        yield "c2w of frame 0 is not the identity"
    R = c2w[:, :3, :3]
    error = np.abs(R @ R.transpose(0, 2, 1) - np.eye(3)).max()
    if error > ROTATION_TOLERANCE or (np.linalg.det(R) < 0).any():
        yield f"c2w holds no proper rotations: R R^T differs from the identity by {error:.2g}"
    if not np.allclose(c2w[:, 3], [0, 0, 0, 1]):
        yield "the last row of c2w is not 0 0 0 1"
    if (K[:, 0, 0] <= 0).any() or (K[:, 1, 1] <= 0).any() or not np.allclose(K[:, 2], [0, 0, 1]):
        yield "K is no intrinsic matrix: focal lengths must be positive and the last row 0 0 1"
    if not abs(np.linalg.norm(a["up"]) - 1) < 1e-3:
        yield f"up has length {np.linalg.norm(a['up']):.4g}, expected 1"
    if (a["inliers"] < 0).any() or (a["inliers"] > 1).any():
        yield "inliers lie outside 0..1"
    kind = int(a["kind"])
    if kind >= len(schema.CAMERA_KINDS) or schema.CAMERA_KINDS[kind] != meta.get("camera_kind"):
        yield f"kind is {kind}, but camera_kind of meta.json is {meta.get('camera_kind')!r}"


def _subjects(a: dict, size: dict, meta: dict) -> Iterator[str]:
    if not np.isfinite(a["mean"]).all() or not np.isfinite(a["cov"]).all():
        yield "mean or cov is not finite"
        return
    if a["cov"].size:
        cov = a["cov"].astype(np.float64)
        trace = np.trace(cov, axis1=-2, axis2=-1)
        if np.abs(cov - np.swapaxes(cov, -1, -2)).max(initial=0) > 1e-5 * max(1.0, trace.max()):
            yield "cov is not symmetric"
        elif (np.linalg.eigvalsh(cov)[..., 0] < -PSD_TOLERANCE * np.maximum(trace, 1e-6)).any():
            yield "cov is not positive semi-definite"
    if (a["heading_source"] >= len(schema.HEADING_SOURCES)).any():
        yield f"heading_source is no index into {schema.HEADING_SOURCES}"
    if not (np.isnan(a["heading"]) == (a["heading_source"] == 0)).all():
        yield "heading must be NaN exactly where heading_source is 0 (unknown)"
    if (a["points"] < 0).any():
        yield "points is negative"


def _masks(a: dict, size: dict, meta: dict) -> Iterator[str]:
    if a["labels"].max(initial=0) > size["N"]:
        yield f"labels reach {a['labels'].max()}, but there are N = {size['N']} subjects"
    if (a["labels"].astype(bool) & ~a["dynamic"]).any():
        yield "dynamic does not contain every labelled pixel"


def _depth(a: dict, size: dict, meta: dict) -> Iterator[str]:
    near, far = (float(x) for x in a["range"])
    if not 0 < near < far < math.inf:
        yield f"range is {near:g}, {far:g}, expected 0 < near < far"
    stated = meta.get("depth_range", {}).get("depth.npz")
    if stated is not None and not np.allclose(stated, (near, far)):
        yield f"range is {near:g}, {far:g}, but depth_range of meta.json says {stated}"


def _ids(a: dict, size: dict, meta: dict) -> Iterator[str]:
    wrong = (a["ids"] > size["N"]) & (a["ids"] != schema.HOLE)
    if wrong.any():
        yield f"ids holds {a['ids'][wrong].max()}, which is neither 0..N (N = {size['N']}) nor {schema.HOLE}"


def _cloud(a: dict, size: dict, meta: dict) -> Iterator[str]:
    if not np.isfinite(a["xyz"]).all():
        yield "xyz is not finite"
    if (a["frame"] < 0).any() or (a["frame"] >= size["T"]).any():
        yield f"frame lies outside 0..{size['T'] - 1}"


def _check_image(member: schema.Member, data: bytes, size: dict, meta: dict) -> Iterator[str]:
    codec.decode(member.name, data)  # raises ValueError when it is no picture
    yield from ()


def _check_text(member: schema.Member, data: bytes, size: dict, meta: dict) -> Iterator[str]:
    if not codec.decode(member.name, data).strip():
        yield "is empty; leave it out instead"


Check = Callable[[schema.Member, bytes, dict, dict], Iterator[str]]
CHECKS: dict[str, Check] = {
    "video": _check_video,
    "depth16": _check_video,
    "npz": _check_npz,
    "rgba": _check_image,
    "text": _check_text,
}
CONTENT: dict[str, Callable[[dict, dict, dict], Iterator[str]]] = {
    "camera.npz": _camera,
    "subjects.npz": _subjects,
    "masks.npz": _masks,
    "depth.npz": _depth,
    "background_anchor.npz": _cloud,
    "background_holistic.npz": _cloud,
    "condition_anchor_ids.npz": _ids,
    "condition_holistic_ids.npz": _ids,
}
