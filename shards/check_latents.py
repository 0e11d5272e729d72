"""Does a latent sample (what `trainer.encode` makes of a sample) hold together? Read without torch or safetensors."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from shards.check import filed_right, read_meta

MEMBER = "latents.safetensors"
CONDITIONS = ("anchor_rgb", "anchor_depth", "holistic_rgb", "holistic_depth")
AXES = {"target": "CThw", **dict.fromkeys(CONDITIONS, "CThw"), "references": "RChw", "text": "ND", "empty": "MD"}


def check_latents(members: Mapping[str, bytes], key: str | None = None) -> list[str]:
    """Every rule that a latent sample breaks; empty when it is right: both members, the arrays of AXES (target only in
    training samples) in float16 with agreeing axes, no byte too many, and the meta.json of the sample it was made from.
    """
    return list(_violations(members, key))


def _violations(members: Mapping[str, bytes], key: str | None) -> Iterator[str]:
    for name in sorted({MEMBER, "meta.json"} ^ members.keys()):
        yield f"{name}: {'missing' if name not in members else 'unknown member of a latent sample'}"
    if MEMBER in members:
        try:
            yield from (f"{MEMBER}: {text}" for text in _arrays(_header(members[MEMBER])))
        except ValueError as error:
            yield f"{MEMBER}: {error}"
    meta, problems = read_meta(members)
    yield from problems
    if meta is None:
        return
    yield from filed_right(meta, key)
    if not isinstance(meta.get("latents"), dict) or "encoders" not in meta["latents"]:
        yield "meta.json: latents.encoders is missing: which encoders made this is unknown"


def _header(data: bytes) -> dict[str, dict[str, Any]]:
    """The header of a safetensors file: name -> dtype, shape, data_offsets. ValueError when the file is damaged.

    Format: 8 bytes little-endian length, that much JSON, then the data (github.com/huggingface/safetensors).
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise ValueError(f"{len(data)} bytes are no safetensors file")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if end != len(data) - 8 - length:
        raise ValueError(f"the arrays end at byte {end}, the data has {len(data) - 8 - length}")
    return header


def _arrays(header: dict[str, dict[str, Any]]) -> Iterator[str]:
    sizes: dict[str, int] = {}
    for name in sorted(header.keys() | AXES.keys()):
        if name not in header:
            if name != "target":
                yield f"{name} is missing"
        elif name not in AXES:
            yield f"unknown array {name}"
        else:
            shape, axes = header[name]["shape"], AXES[name]
            if header[name]["dtype"] != "F16":
                yield f"{name} is {header[name]['dtype']}, expected F16"
            if len(shape) != len(axes):
                yield f"{name} has shape {shape}, expected axes {axes}"
                continue
            for axis, size in zip(axes, shape, strict=True):
                if sizes.setdefault(axis, size) != size:
                    yield f"{name} has shape {shape}: axis {axis} is {sizes[axis]} elsewhere"
