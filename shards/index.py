"""The manifest: one row per sample (parquet, for filters) and a small json, both rebuilt from the commit records."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from shards import parquet
from shards.records import commit_numbers, read_commits
from shards.schema import QUALITY
from shards.store import Store
from shards.writer import json_bytes, sha256

MANIFEST = "_index/manifest.parquet"
SUMMARY = "_index/index.json"

_ROW = [
    ("frames", pa.int32()),
    ("height", pa.int32()),
    ("width", pa.int32()),
    ("fps", pa.float64()),
    ("subjects", pa.int32()),
    ("camera_kind", pa.string()),
    ("verdict", pa.string()),
    ("uri", pa.string()),
    ("start_s", pa.float64()),
    ("end_s", pa.float64()),
    ("pair_id", pa.string()),
    ("pair_view", pa.string()),
]
_MEMBER = pa.struct([("name", pa.string()), ("offset", pa.int64()), ("bytes", pa.int64()), ("sha256", pa.string())])
COLUMNS = pa.schema(
    [("key", pa.string()), ("unit", pa.string()), ("shard", pa.string()), ("offset", pa.int64()), ("bytes", pa.int64())]
    + _ROW
    + [(name, pa.float64()) for name in QUALITY]
    + [("members", pa.list_(_MEMBER))]
)
PARTITION = 4096  # samples per row group: bounds memory while the manifest is written


@dataclass(frozen=True)
class Row:
    """What the manifest says of a sample beside where it lies. `quality` holds a subset of schema.QUALITY."""

    frames: int
    height: int
    width: int
    fps: float
    subjects: int
    camera_kind: str
    verdict: str
    uri: str
    start_s: float
    end_s: float
    pair_id: str | None = None
    pair_view: str | None = None
    quality: dict[str, float] = field(default_factory=dict)


def row_of(meta: dict) -> Row:
    """The manifest row of a sample's meta.json. ValueError names a missing field."""
    try:
        pair = meta.get("pair") or {}
        source = meta["source"]
        return Row(
            frames=int(meta["frames"]),
            height=int(meta["height"]),
            width=int(meta["width"]),
            fps=float(meta["fps"]),
            subjects=len(meta["subjects"]),
            camera_kind=meta["camera_kind"],
            verdict=meta["verdict"],
            uri=source["uri"],
            start_s=float(source["start_s"]),
            end_s=float(source["end_s"]),
            pair_id=pair.get("id"),
            pair_view=pair.get("view"),
            quality={k: float(v) for k, v in meta["quality"].items() if k in QUALITY and math.isfinite(v)},
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"meta.json: field missing or of the wrong type: {error}") from error


def flat(sample: dict, shard: str) -> dict:
    """A sample of a commit record as one flat row: key, shard, offset, bytes, the fields of Row, quality columns."""
    row = dict(sample["row"])
    quality = row.pop("quality")
    place = {"key": sample["key"], "unit": sample["unit"], "shard": shard}
    place |= {"offset": sample["offset"], "bytes": sample["bytes"]}
    return place | row | {name: quality.get(name) for name in QUALITY}


def build(store: Store) -> tuple[bytes, dict]:
    """(manifest parquet, summary) of the commits. Equal commits give equal bytes."""
    shards: list[dict] = []
    manifest = parquet.write(_tables(store, shards), COLUMNS)
    return manifest, _summary(shards)


def rebuild(store: Store) -> dict:
    """Write manifest and summary from the commits; returns the summary."""
    manifest, summary = build(store)
    store.put(MANIFEST, manifest)
    store.put(SUMMARY, json_bytes(summary))
    return summary


def load(store: Store) -> tuple[pa.Table, dict]:
    """(manifest, summary). A stored index that is missing, damaged or behind the commits is made anew in memory."""
    try:
        summary = json.loads(store.read(SUMMARY))
        table = parquet.read(store.read(MANIFEST))
        if [s["number"] for s in summary["shards"]] == commit_numbers(store) and len(table) == summary["samples"]:
            return table, summary
    except (FileNotFoundError, ValueError, KeyError, TypeError, pa.ArrowException):
        pass
    shards: list[dict] = []
    tables = list(_tables(store, shards))
    return pa.concat_tables(tables) if tables else COLUMNS.empty_table(), _summary(shards)


def _tables(store: Store, shards: list[dict]) -> Iterator[pa.Table]:
    """The manifest in pieces of about PARTITION rows; appends an entry per shard to `shards`."""
    batch: list[dict] = []
    for record in read_commits(store):
        batch += manifest_rows(record)
        shard = {k: record[k] for k in ("shard", "number", "bytes", "sha256")}
        shards.append(shard | {"samples": len(record["samples"])})
        if len(batch) >= PARTITION:
            yield pa.Table.from_pylist(batch, schema=COLUMNS)
            batch = []
    if batch:
        yield pa.Table.from_pylist(batch, schema=COLUMNS)


def _summary(shards: list[dict]) -> dict:
    """`manifest` identifies the samples and their order: what a reader's saved state refers to."""
    content = "\n".join(f"{shard['shard']} {shard['sha256']}" for shard in shards)
    return {
        "version": 1,
        "samples": sum(shard["samples"] for shard in shards),
        "shards": shards,
        "manifest": sha256(content.encode()),
    }


def manifest_rows(record: dict) -> Iterator[dict]:
    """Parquet rows of one commit record."""
    for sample in record["samples"]:
        members = [{"name": name, **entry} for name, entry in sorted(sample["members"].items())]
        yield flat(sample, record["shard"]) | {"members": members}
