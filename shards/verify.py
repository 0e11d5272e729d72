"""Is an output what its commit records say, down to every byte and schema rule?

`verify` reads every shard once, one sample in memory at a time. A problem is something wrong with what is committed or
left beside it; a note is something unfinished. Nothing is changed. Latent shards are known by their members.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from shards import index, parquet
from shards.check import check_sample
from shards.check_latents import MEMBER as LATENTS
from shards.check_latents import check_latents
from shards.lease import read_lease
from shards.plan import Plan
from shards.records import commit_numbers, commit_path, read_commit
from shards.store import StorageError, Store
from shards.writer import END, sha256, tar_entries


@dataclass
class Report:
    """`problems` and `notes` are {object, problem} pairs; `ok` is the absence of problems."""

    samples: int = 0
    shards: int = 0
    bytes: int = 0
    problems: list[dict[str, str]] = field(default_factory=list)
    notes: list[dict[str, str]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems

    def problem(self, where: str, what: str) -> None:
        self.problems.append({"object": where, "problem": what})

    def note(self, where: str, what: str) -> None:
        self.notes.append({"object": where, "problem": what})

    def to_json(self) -> dict[str, Any]:
        return {"ok": self.ok} | asdict(self)


def verify(store: Store, *, schema: bool = True) -> Report:
    """Recompute every hash, offset, key and (with `schema`) schema rule; compare plan, commits, tars and index."""
    report, seen, units = Report(), dict[str, str](), set[str]()
    if not store.exists("_run.json"):
        report.problem("_run.json", "missing: this is no output of a run, or it was damaged")
    numbers = commit_numbers(store)
    for gap in sorted(set(range(max(numbers, default=-1) + 1)) - set(numbers)):
        report.problem(commit_path(gap), "commit record missing: restore it from a backup; its samples are invisible")
    records = {}
    for number in numbers:
        try:
            record = read_commit(store, number)
            records[record["shard"]] = number
            _shard(store, record, report, seen, schema)
            units.update(sample["unit"] for sample in record["samples"])
        except (ValueError, KeyError, TypeError, FileNotFoundError, StorageError) as error:
            report.problem(commit_path(number), f"{error}")
    _leftovers(store, records, units, report)
    _index(store, report)
    return report


def _shard(store: Store, record: dict, report: Report, seen: dict[str, str], schema: bool) -> None:
    shard = record["shard"]
    size = store.size(shard)
    if size is None:
        report.problem(shard, "tar missing although it is committed: restore it from a backup")
        return
    if size != record["bytes"]:
        report.problem(shard, f"has {size} bytes, committed were {record['bytes']}")
        return
    digest, position = hashlib.sha256(), 0
    for sample in record["samples"]:
        where = f"{shard}:{sample['key']}"
        if sample["offset"] != position:
            report.problem(where, f"recorded at byte {sample['offset']}, expected {position}")
            return
        data = store.read_range(shard, position, position + sample["bytes"])
        digest.update(data)
        for what in _sample(sample, data, schema):
            report.problem(where, what)
        if sample["key"] in seen:
            report.problem(where, f"key appears twice, first in {seen[sample['key']]}")
        seen[sample["key"]] = shard
        position += sample["bytes"]
        report.samples += 1
    digest.update(store.read_range(shard, position, size))
    if digest.hexdigest() != record["sha256"]:
        report.problem(shard, f"sha256 is {digest.hexdigest()}, committed was {record['sha256']}")
    report.shards += 1
    report.bytes += size


def _sample(sample: dict, data: bytes, schema: bool) -> Iterator[str]:
    """Problems of one sample: its tar entries against the record, its hashes, its manifest row, the schema."""
    try:
        entries = list(tar_entries(data + END))
    except ValueError as error:
        yield str(error)
        return
    members = {}
    for entry in entries:
        key, _, name = entry.name.partition(".")
        if key != sample["key"]:
            yield f"tar entry {entry.name} belongs to another key"
            continue
        content = members[name] = data[entry.offset : entry.offset + entry.size]
        found = {"offset": sample["offset"] + entry.offset, "bytes": entry.size, "sha256": sha256(content)}
        recorded = sample["members"].get(name)
        if recorded is None:
            yield f"{name}: in the tar but not in the commit record"
        else:
            for what in found:
                if found[what] != recorded[what]:
                    yield f"{name}: {what} is {found[what]}, committed was {recorded[what]}"
    for name in sorted(sample["members"].keys() - members.keys()):
        yield f"{name}: in the commit record but not in the tar"
    if schema:
        yield from (check_latents if LATENTS in members else check_sample)(members, sample["key"])
    try:
        if asdict(index.row_of(json.loads(members["meta.json"]))) != sample["row"]:
            yield "the manifest row of the commit record does not follow from meta.json"
    except (KeyError, ValueError) as error:
        yield f"no manifest row can be made: {error}"


def _leftovers(store: Store, records: dict[str, int], units: set[str], report: Report) -> None:
    """What lies beside the commits: orphan tars, work files, undecided units."""
    lease = read_lease(store)
    working = bool(lease and lease["alive"])
    for entry in store.list():
        if entry.path.endswith(".tar") and entry.path not in records:
            if working:
                report.note(entry.path, "not committed yet: a driver is at work")
            else:
                report.problem(
                    entry.path, "orphan tar without a commit record: resume the run or `python -m shards gc`"
                )
    work = {entry.path[6:-4] for entry in store.list("_work")}
    failed = {entry.path[6:-5] for entry in store.list("_fail")}
    try:
        planned = set(Plan(store).all_idents())
    except (StorageError, ValueError, pa.ArrowException) as error:
        report.problem("_plan", str(error))
        return
    for unit in sorted(units - planned):
        report.problem("_plan", f"committed unit {unit} is not planned: a generation of the plan was lost")
    if used := work & units:
        report.note("_work", f"{len(used)} work files of committed units: `python -m shards gc` removes them")
    if waiting := (work & planned) - units - failed:
        report.note("_work", f"{len(waiting)} finished samples wait for their shard: resume the run")
    if todo := planned - units - failed - work:
        report.note("_plan", f"{len(todo)} units are not done yet: resume the run")


def _index(store: Store, report: Report) -> None:
    """The stored manifest and summary against what the commits give."""
    advice = "rebuild it with `python -m shards verify --repair-index`"
    try:
        fresh, summary = index.build(store)
        try:
            if json.loads(store.read(index.SUMMARY)) != summary:
                report.problem(index.SUMMARY, f"does not follow from the commits; {advice}")
            stored = parquet.read(store.read(index.MANIFEST))
            if not stored.equals(parquet.read(fresh)):
                report.problem(index.MANIFEST, f"does not follow from the commits; {advice}")
        except FileNotFoundError as error:
            if summary["shards"]:
                report.problem("_index", f"{error}: missing; {advice}")
        except (ValueError, pa.ArrowException, OSError) as error:
            report.problem("_index", f"damaged ({error}); {advice}")
    except (ValueError, KeyError, TypeError) as error:
        report.problem("_index", f"cannot be compared: {error}")
