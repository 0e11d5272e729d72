"""Upkeep of an output: other shard sizes and orders, and removal of what nobody needs."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from shards.commit import ShardLimits
from shards.dataset import Dataset, open_dataset
from shards.lease import Lease
from shards.plan import Plan, Unit
from shards.records import read_commits
from shards.run import Run, RunStatus
from shards.store import open_store
from shards.writer import sha256

Order = Literal["commit", "key", "shuffle"]


def reshard(
    source: str,
    target: str,
    *,
    limits: ShardLimits,
    name: str = "metaworld",
    order: Order = "commit",
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> RunStatus:
    """Copy all committed samples into a new output with other limits or another order, under the same protocol.

    Killed and started again it goes on; started on grown shards it adds the new samples. The source is not changed.
    """
    dataset = open_dataset(source, checksums="always")
    if open_store(target).url == dataset.store.url:
        raise ValueError(f"reshard writes a new output; {target} is the source itself")
    config = {"resharded_from": dataset.store.url, "order": order, "seed": seed}
    with Run.open(target, name=name, config=config, limits=limits) as run:
        run.extend(_units(dataset, order, seed))
        for done, unit in enumerate(run.todo()):
            run.spool.put(unit, dataset.members(unit.key))
            run.commit_ready()
            progress(done + 1, len(dataset))
        return run.finish()


def _units(dataset: Dataset, order: Order, seed: int) -> list[Unit]:
    """The source's samples as units in the wanted order."""
    keys = dataset.order if order == "commit" else sorted(dataset)
    if order == "shuffle":
        random.Random(seed).shuffle(keys)
    table = dataset.table.select(["uri", "start_s", "end_s"]).to_pylist()
    rows = dict(zip(dataset.order, table, strict=True))
    return [Unit(unit=sha256(f"copy of {key}".encode()), key=key, **rows[key]) for key in keys]


@dataclass(frozen=True)
class Garbage:
    """Paths that `gc` removes (or would remove): work files no shard will take, and tars without a record."""

    work: list[str]
    tars: list[str]


def gc(url: str, *, dry_run: bool = False) -> Garbage:
    """Remove work files of committed, quarantined or unplanned units and uncommitted tars. Takes the lease.

    FileNotFoundError where no run was begun."""
    store = open_store(url)
    if not store.exists("_run.json"):
        raise FileNotFoundError(f"{store.url}: no output of a run here (no _run.json)")
    lease = Lease(store)
    lease.acquire()
    try:
        committed: set[str] = set()
        shards: set[str] = set()
        for record in read_commits(store):
            committed.update(sample["unit"] for sample in record["samples"])
            shards.add(record["shard"])
        wanted = set(Plan(store).all_idents()) - committed - {e.path[6:-5] for e in store.list("_fail")}
        garbage = Garbage(
            work=sorted(e.path for e in store.list("_work") if e.path[6:-4] not in wanted),
            tars=sorted(e.path for e in store.list() if e.path.endswith(".tar") and e.path not in shards),
        )
        if not dry_run:
            for path in garbage.work + garbage.tars:
                lease.check()
                store.delete(path)
            store.clear_scratch()
        return garbage
    finally:
        lease.release()
