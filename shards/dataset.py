"""Committed samples by key: lazily decoded members, read by byte range.

dataset = open_dataset("s3://bucket/run")          # needs the commit records only; no tar is opened
sample = dataset["0a1b2c3d4e5f-0000"]              # KeyError names the nearest keys
sample["camera.npz"]["c2w"]                        # one range read, checked against its sha256, decoded once
dataset.members(key, ["meta.json", "target.mp4"])  # bytes; one read when most of the sample is wanted
dataset.pairs                                      # key -> (pair id, view) or None
dataset.table                                      # the manifest (pyarrow), for filters
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from shards import codec, index
from shards.store import Store, open_store
from shards.writer import sha256

CHECKSUMS = ("first", "always", "off")


class BadSample(ValueError):
    """A sample's bytes are not what its commit record says, or do not decode."""


class Sample(Mapping[str, Any]):
    """One sample: member name -> decoded value, read and decoded when asked for and kept. `row` is its manifest row."""

    def __init__(self, dataset: "Dataset", key: str):
        self._dataset, self.key = dataset, key
        self._entries = dataset.entries(key)
        self._values: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._values:
            self._values[name] = self._dataset.decode(self.key, name, self.raw(name))
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def raw(self, name: str) -> bytes:
        """The member's bytes."""
        if name not in self._entries:
            raise KeyError(f"sample {self.key} has no {name}; it has {', '.join(self._entries)}")
        return self._dataset.members(self.key, [name])[name]

    @cached_property
    def row(self) -> dict[str, Any]:
        return self._dataset.row(self.key)


class Dataset(Mapping[str, Sample]):
    """The committed samples of an output, in commit order. Picklable. `checksums`: first read, always, or off."""

    def __init__(self, store: Store, table: pa.Table, manifest: str, checksums: str = "first"):
        if checksums not in CHECKSUMS:
            raise ValueError(f"checksums: expected one of {CHECKSUMS}, found {checksums!r}")
        self.store, self.table, self.manifest, self.checksums = store, table, manifest, checksums
        self.order: list[str] = table["key"].to_pylist()
        self._rows = {key: i for i, key in enumerate(self.order)}
        self._checked: set[tuple[str, str]] = set()

    def __getitem__(self, key: str) -> Sample:
        return Sample(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.order)

    def __len__(self) -> int:
        return len(self.order)

    def __contains__(self, key: object) -> bool:
        return key in self._rows

    def row(self, key: str) -> dict[str, Any]:
        """The manifest row: key, shard, offset, bytes, frames, height, width, ..., quality columns; no members."""
        return self._row(key, self._flat)

    def entries(self, key: str) -> dict[str, dict[str, Any]]:
        """Member name -> {offset, bytes, sha256} in the shard."""
        members = self._row(key, self._members)["members"]
        return {entry["name"]: entry for entry in members}

    def members(self, key: str, names: Iterable[str] | None = None) -> dict[str, bytes]:
        """Bytes of the named members (all by default; absent ones are left out), checked against their sha256."""
        entries = self.entries(key)
        wanted = {name: entries[name] for name in (entries if names is None else names) if name in entries}
        place = self._row(key, self._place)
        if 2 * sum(entry["bytes"] for entry in wanted.values()) >= place["bytes"]:
            whole = self.store.read_range(place["shard"], place["offset"], place["offset"] + place["bytes"])
            start = {name: entry["offset"] - place["offset"] for name, entry in wanted.items()}
            out = {name: whole[start[name] : start[name] + entry["bytes"]] for name, entry in wanted.items()}
        else:
            out = {
                name: self.store.read_range(place["shard"], entry["offset"], entry["offset"] + entry["bytes"])
                for name, entry in wanted.items()
            }
        if self.checksums != "off":
            for name, data in out.items():
                self._check(key, place["shard"], wanted[name], data)
        return out

    def decode(self, key: str, name: str, data: bytes) -> Any:
        """The member's value; BadSample names the sample when the bytes do not decode."""
        try:
            return codec.decode(name, data)
        except ValueError as error:
            raise BadSample(f"sample {key}: {error}") from error

    @cached_property
    def pairs(self) -> dict[str, tuple[str, str] | None]:
        """key -> (pair id, view), None for samples without a second view."""
        ids, views = self.table["pair_id"].to_pylist(), self.table["pair_view"].to_pylist()
        return {k: (i, v) if i else None for k, i, v in zip(self.order, ids, views, strict=True)}

    def groups(self) -> list[tuple[str, ...]]:
        """Keys that belong together: the views of a pair in the order of their names, other samples alone."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for key, pair in self.pairs.items():
            groups.setdefault(f"pair {pair[0]}" if pair else key, []).append((pair[1] if pair else "", key))
        return [tuple(key for _, key in sorted(group)) for group in groups.values()]

    def _check(self, key: str, shard: str, entry: dict, data: bytes) -> None:
        mark = (key, entry["name"])
        if self.checksums == "first" and mark in self._checked:
            return
        if sha256(data) != entry["sha256"]:
            raise BadSample(
                f"sample {key}: {entry['name']} at byte {entry['offset']} of {self.store.url}/{shard} does not have "
                f"the sha256 of its commit record; run `python -m shards verify {self.store.url}`"
            )
        self._checked.add(mark)

    def _row(self, key: str, table: pa.Table) -> dict[str, Any]:
        if key not in self._rows:
            near = difflib.get_close_matches(str(key), self.order, n=3, cutoff=0.3)
            raise KeyError(f"no sample {key!r} in {self.store.url}" + (f"; nearest: {', '.join(near)}" if near else ""))
        return table.slice(self._rows[key], 1).to_pylist()[0]

    @cached_property
    def _flat(self) -> pa.Table:
        return self.table.drop_columns(["members"])

    @cached_property
    def _members(self) -> pa.Table:
        return self.table.select(["members"])

    @cached_property
    def _place(self) -> pa.Table:
        return self.table.select(["shard", "offset", "bytes"])


def open_dataset(url: str | Path, *, checksums: str = "first") -> Dataset:
    """The committed samples under `url`. FileNotFoundError when there is no output."""
    store = open_store(url)
    table, summary = index.load(store)
    if not summary["shards"] and not store.exists("_run.json"):
        raise FileNotFoundError(f"{store.url}: no shards here (no _commits/ and no _run.json)")
    return Dataset(store, table, summary["manifest"], checksums)
