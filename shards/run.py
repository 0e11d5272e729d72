"""`Run`: the one door to an output for whoever makes samples. The protocol is explained in shards/commit.py.

A driver (one process) and any number of workers (processes, machines) make a run:

    units = [Unit(unit="9f3c...", key="0a1b2c3d4e5f-0000", uri="s3://in/a.mp4", start_s=0.0, end_s=5.0, payload="{}")]
    with Run.open("out/", name="metaworld", config=config) as run:   # takes the lease; RunMismatch when config differs
        run.extend(units)                      # a new immutable plan generation with the units not planned yet
        for unit in run.todo():                # planned - committed - quarantined - spooled, in plan order
            try:
                run.spool.put(unit, members)   # {member name: bytes}; `run.spool` is picklable: send it to workers
            except ClipError as error:
                run.spool.quarantine(unit, stage="decode", reason="no_video_stream", traceback="...", attempts=2)
            run.commit_ready()                 # every shard whose units are all decided becomes tar + commit record
        status = run.finish()                  # commits the rest, rebuilds the index, drops used work files

Nothing is lost whatever dies: open the same output again and go on. Tar bytes depend on the plan, the samples and the
limits alone, never on the order of completion or on restarts. Exceptions: RunMismatch (configuration), LeaseHeld,
LeaseLost (another driver), StorageError.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass

from shards import index
from shards.commit import Assembler, ShardLimits
from shards.lease import TTL_S, Lease, read_lease
from shards.plan import Plan, Unit
from shards.records import read_commits
from shards.schema import SCHEMA_VERSION
from shards.store import Store, open_store
from shards.writer import Spool, json_bytes, sha256, work_path

__all__ = ["Run", "RunMismatch", "RunStatus", "ShardLimits", "Spool", "Unit", "failures", "status"]


class RunMismatch(ValueError):
    """The output was begun with another configuration; the message is the difference."""


@dataclass(frozen=True)
class RunStatus:
    """Counts of units: planned = committed + quarantined + spooled + todo. `lease` as in `read_lease`."""

    planned: int
    committed: int
    quarantined: int
    spooled: int
    todo: int
    shards: int
    bytes: int
    lease: dict | None = None


class Run:
    """A driver's hold on an output. Make it with `Run.open`; it is a context manager."""

    def __init__(self, store: Store, lease: Lease, name: str, limits: ShardLimits):
        self.store, self.lease, self.name = store, lease, name
        self.spool = Spool(store)
        self.plan = Plan(store)
        self._assembler = Assembler(store, self.plan, lease, name, limits)

    @classmethod
    def open(
        cls,
        url: str,
        *,
        name: str = "metaworld",
        config: Mapping,
        limits: ShardLimits | None = None,
        lease_ttl_s: float = TTL_S,
        wait_s: float = 0,
    ) -> "Run":
        """Take the lease of the output; check that it was begun with the same `config` (plain JSON), name and limits.

        LeaseHeld when another driver lives (after waiting `wait_s`); RunMismatch with a diff when the config differs.
        """
        store, limits = open_store(url), limits or ShardLimits()
        if not name or set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789_-"):
            raise ValueError(f"shard name {name!r}: use lower-case letters, digits, - and _")
        check_config(store, name, config, limits)
        lease = Lease(store, ttl_s=lease_ttl_s)
        lease.acquire(wait_s=wait_s)
        try:
            check_config(store, name, config, limits, write=True)
            return cls(store, lease, name, limits)
        except BaseException:
            lease.release()
            raise

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def extend(self, units: Iterable[Unit]) -> int:
        """Plan the units (in the given order) that are not planned yet; returns how many were new."""
        self.lease.check()
        return self.plan.extend(units)

    def retry_failed(self, reasons: set[str] | None = None) -> int:
        """Plan one more attempt of every quarantined unit (of the given reasons); returns how many."""
        self.lease.check()
        failed = {record["ident"] for record in failures(self.store) if not reasons or record["reason"] in reasons}
        return self.plan.retry(failed - self._assembler.committed)

    def todo(self) -> Iterator[Unit]:
        """Units nobody has decided yet, in plan order. Looks at the store once, when called."""
        return self.plan.units(_undecided(self.store, self.plan, self._assembler.committed))

    def commit_ready(self) -> list[str]:
        """Commit every shard whose units are all decided; returns the new shards' names. Cheap when there is none."""
        return self._assembler.advance()

    def finish(self) -> RunStatus:
        """Commit what can be, rebuild the index, drop work files of committed units. Undecided units stay todo."""
        self.commit_ready()
        self.lease.check()
        index.rebuild(self.store)
        for entry in self.store.list("_work"):
            if entry.path[6:-4] in self._assembler.committed:
                self.store.delete(work_path(entry.path[6:-4]))
        return self.status()

    def status(self) -> RunStatus:
        return status(self.store)

    def close(self) -> None:
        """Give the lease back. Safe to call twice and after it was lost."""
        self.lease.release()


def check_config(store: Store, name: str, config: Mapping, limits: ShardLimits, *, write: bool = False) -> None:
    """RunMismatch when `_run.json` says otherwise; writes it when absent and `write`."""
    mine = json.loads(json.dumps({"name": name, "limits": asdict(limits), "config": config}, sort_keys=True))
    mine["schema_version"] = SCHEMA_VERSION
    data = json_bytes(mine | {"fingerprint": sha256(json_bytes(mine))})
    if write and store.put_new("_run.json", data):
        return
    try:
        theirs = json.loads(store.read("_run.json"))
    except FileNotFoundError:
        return
    theirs.pop("fingerprint", None)
    if theirs != mine:
        raise RunMismatch(
            f"{store.url} was begun with another configuration:\n{_diff(_leaves(theirs), _leaves(mine))}\n"
            "Use the configuration it was begun with, or a new output."
        )


def status(store: Store | str) -> RunStatus:
    """Counts from the store alone, without a lease; right while a driver works, up to the moment of each listing."""
    store = open_store(store) if isinstance(store, str) else store
    spooled = {e.path[6:-4] for e in store.list("_work")}
    failed = {e.path[6:-5] for e in store.list("_fail")}
    plan, committed, shards, size = Plan(store), set[str](), 0, 0
    for record in read_commits(store):
        committed.update(sample["unit"] for sample in record["samples"])
        shards, size = shards + 1, size + record["bytes"]
    counts = {"committed": 0, "quarantined": 0, "spooled": 0, "todo": 0}
    for unit in plan.latest():
        if unit in committed:
            counts["committed"] += 1
        elif unit in failed:
            counts["quarantined"] += 1
        elif unit in spooled:
            counts["spooled"] += 1
        else:
            counts["todo"] += 1
    return RunStatus(planned=sum(counts.values()), shards=shards, bytes=size, lease=read_lease(store), **counts)


def failures(store: Store | str, *, retried: bool = False) -> Iterator[dict]:
    """Quarantine records (the fields of `Spool.quarantine` and `ident`), sorted; `retried`: those planned again too."""
    store = open_store(store) if isinstance(store, str) else store
    latest = set() if retried else Plan(store).latest()
    for path in sorted(entry.path for entry in store.list("_fail")):
        if retried or path[6:-5] in latest:
            yield json.loads(store.read(path)) | {"ident": path[6:-5]}


def _undecided(store: Store, plan: Plan, committed: set[str]) -> set[str]:
    decided = {e.path[6:-4] for e in store.list("_work")} | {e.path[6:-5] for e in store.list("_fail")}
    return {name for name in plan.all_idents() if name not in decided and name not in committed}


def _leaves(value: object, path: str = "") -> dict[str, str]:
    if isinstance(value, dict) and value:
        return {k: v for key in value for k, v in _leaves(value[key], f"{path}.{key}" if path else key).items()}
    return {path: json.dumps(value, sort_keys=True)}


def _diff(old: dict[str, str], new: dict[str, str]) -> str:
    lines = []
    for path in sorted(old.keys() | new.keys()):
        if old.get(path) != new.get(path):
            lines.append(f"  {path}: {old.get(path, '(absent)')} in the output, {new.get(path, '(absent)')} now")
    return "\n".join(lines)
