"""The manifest: one row per sample, as parquet for filters and as a small json, both rebuilt from the commit records."""

import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

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


def rebuild(store: Store) -> dict:
    """Write the manifest and the summary from the commits; returns the summary. Equal commits give equal bytes."""
    from shards.commit import read_commits

    sink, shards, samples, digest = io.BytesIO(), [], 0, []
    with pq.ParquetWriter(sink, COLUMNS, compression="zstd") as writer:
        batch: list[dict] = []
        for record in read_commits(store):
            batch += manifest_rows(record)
            samples += len(record["samples"])
            digest.append(f"{record['shard']} {record['sha256']}")
            shards.append({k: record[k] for k in ("shard", "number", "bytes", "sha256")})
            shards[-1]["samples"] = len(record["samples"])
            if len(batch) >= PARTITION:
                writer.write_table(pa.Table.from_pylist(batch, schema=COLUMNS))
                batch = []
        if batch:
            writer.write_table(pa.Table.from_pylist(batch, schema=COLUMNS))
    summary = {"version": 1, "samples": samples, "shards": shards, "manifest": sha256("\n".join(digest).encode())}
    store.put(MANIFEST, sink.getvalue())
    store.put(SUMMARY, json_bytes(summary))
    return summary


def manifest_rows(record: dict) -> Iterator[dict]:
    """Parquet rows of one commit record."""
    for sample in record["samples"]:
        members = [{"name": name, **entry} for name, entry in sorted(sample["members"].items())]
        yield flat(sample, record["shard"]) | {"members": members}


def load(store: Store) -> tuple[pa.Table, dict]:
    """(manifest, summary). When the stored index is missing, damaged or older than the commits, it is made in memory."""
    from shards.commit import commit_numbers, read_commits

    numbers = commit_numbers(store)
    try:
        summary = json.loads(store.read(SUMMARY))
        table = pq.read_table(io.BytesIO(store.read(MANIFEST)))
        if [s["number"] for s in summary["shards"]] == numbers and len(table) == summary["samples"]:
            return table, summary
    except (FileNotFoundError, ValueError, KeyError, pa.ArrowException):
        pass
    rows, shards, digest = [], [], []
    for record in read_commits(store):
        rows += manifest_rows(record)
        digest.append(f"{record['shard']} {record['sha256']}")
        shards.append({k: record[k] for k in ("shard", "number", "bytes", "sha256")})
        shards[-1]["samples"] = len(record["samples"])
    summary = {"version": 1, "samples": len(rows), "shards": shards, "manifest": sha256("\n".join(digest).encode())}
    return pa.Table.from_pylist(rows, schema=COLUMNS), summary
