"""Commit records, and the assembly of spooled samples into shards.

`_commits/000123.json` is the only truth: a tar without a record is invisible. A record names its tar, the hash of
every byte, where each sample and member lies, which rows of the plan it decided, and each sample's manifest row, so the
index can be rebuilt without opening a tar.

Assembly walks the plan in order. A row is decided when it is quarantined (skipped) or spooled (taken). A shard ends at
a sample or byte limit or at the end of a plan generation. So its bytes depend on the plan, the samples and the limits.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from shards import index
from shards.lease import Lease
from shards.plan import Plan
from shards.records import RECORD_VERSION, commit_path, read_commit, read_commits
from shards.store import StorageError, Store
from shards.writer import END, fail_path, json_bytes, sha256, tar_entries, work_path


@dataclass(frozen=True)
class ShardLimits:
    """A shard ends before it would exceed either; one sample larger than `bytes` is a shard of its own."""

    samples: int = 64
    bytes: int = 1 << 30


@dataclass
class Cursor:
    """The next undecided place: shard number, plan generation and row."""

    number: int = 0
    generation: int = 0
    row: int = 0


class Assembler:
    """Turns decided units into committed shards. Only the lease's owner calls it."""

    def __init__(self, store: Store, plan: Plan, lease: Lease, name: str, limits: ShardLimits):
        self.store, self.plan, self.lease, self.name, self.limits = store, plan, lease, name, limits
        self.committed: set[str] = set()
        self.cursor = Cursor()
        for record in read_commits(store):
            self.committed.update(sample["unit"] for sample in record["samples"])
            self.cursor = Cursor(record["number"] + 1, record["generation"], record["rows"][1])
        self._known = {e.path[6:-4]: e.size for e in store.list("_work")}  # ident -> bytes of its tar
        self._failed = {e.path[6:-5] for e in store.list("_fail")}
        self._pending: list[tuple[int, str]] = []  # (row, ident) of the shard being filled
        self._pending_bytes = 0

    def advance(self) -> list[str]:
        """Commit every shard that can be; returns their names. Costs two look-ups when the next row is undecided."""
        done = []
        while self.cursor.generation < len(self.plan.generations):
            idents = self.plan.idents(self.cursor.generation)
            if self.cursor.row == len(idents):
                if self._pending:
                    done.append(self._commit())
                self.cursor = Cursor(self.cursor.number, self.cursor.generation + 1, 0)
                continue
            ident = idents[self.cursor.row]
            size = self._size(ident)
            if size is None:
                break
            if size >= 0:
                if self._pending and (self._pending_bytes + size + len(END) > self.limits.bytes):
                    done.append(self._commit())
                    continue
                self._pending.append((self.cursor.row, ident))
                self._pending_bytes += size
            self.cursor.row += 1
            if len(self._pending) == self.limits.samples:
                done.append(self._commit())
        return done

    def _size(self, ident: str) -> int | None:
        """Bytes the unit adds to a shard; -1 when it is skipped; None when it is undecided. Quarantine wins."""
        if ident in self.committed:
            return -1
        if ident in self._failed or (ident not in self._known and self.store.exists(fail_path(ident))):
            self._failed.add(ident)
            return -1
        if ident not in self._known:
            size = self.store.size(work_path(ident))
            if size is None:
                return None
            self._known[ident] = size
        return self._known[ident] - len(END)

    def _commit(self) -> str:
        """tar, record, clean-up, in this order, looking at the lease before each."""
        number, generation = self.cursor.number, self.cursor.generation
        shard = f"{self.name}-{number:06d}.tar"
        with self.store.scratch() as folder:
            path = folder / shard
            record = self._assemble(path, [ident for _, ident in self._pending])
            record |= {
                "version": RECORD_VERSION,
                "number": number,
                "shard": shard,
                "generation": generation,
                "rows": [self._pending[0][0], self._pending[-1][0] + 1],
            }
            self._put_tar(shard, path)
            self.lease.check()
            if not self.store.put_new(commit_path(number), json_bytes(record)):
                record = self._follow(number, shard)
                self.cursor.generation, self.cursor.row = record["generation"], record["rows"][1]
        self.lease.check()
        for sample in record["samples"]:
            self.store.delete(work_path(sample["unit"]))
            self._known.pop(sample["unit"], None)
            self.committed.add(sample["unit"])
        self.cursor.number += 1
        self._pending, self._pending_bytes = [], 0
        return shard

    def _assemble(self, path: Path, idents: list[str]) -> dict:
        """Write the spooled samples one after the other into a local tar; returns the record's data fields."""
        digest, samples, offset = hashlib.sha256(), [], 0
        with path.open("wb") as out:

            def write(data: bytes) -> None:
                out.write(data)
                digest.update(data)

            for ident in idents:
                try:
                    data = self.store.read(work_path(ident))
                    samples.append(describe_sample(ident, data, offset))
                except FileNotFoundError as error:
                    self.lease.check()  # a driver that took over has committed and removed it
                    raise StorageError(f"{self.store.url}/{work_path(ident)}: vanished; start again") from error
                except ValueError as error:
                    raise StorageError(
                        f"{self.store.url}/{work_path(ident)}: {error}; delete this object and start again"
                    ) from error
                write(data[: -len(END)])
                offset += len(data) - len(END)
            write(END)
        return {"samples": samples, "sha256": digest.hexdigest(), "bytes": offset + len(END)}

    def _put_tar(self, shard: str, path: Path) -> None:
        """An uncommitted tar of other bytes is a dead driver's leftover: invisible, so it may be replaced."""
        self.lease.check()
        if not self.store.put_new(shard, path):
            self.lease.check()
            self.store.delete(shard)
            if not self.store.put_new(shard, path):
                raise StorageError(f"{self.store.url}/{shard}: another driver keeps writing it; stop that one")

    def _follow(self, number: int, shard: str) -> dict:
        """Another driver's record got in between: it is the truth, so the tar is made to match it."""
        record = read_commit(self.store, number)
        if record["sha256"] != self.store.sha256(shard):
            with self.store.scratch() as folder:
                path = folder / shard
                made = self._assemble(path, [sample["unit"] for sample in record["samples"]])
                if made["sha256"] != record["sha256"]:
                    raise StorageError(
                        f"{self.store.url}/{shard}: does not match {commit_path(number)} and cannot be made again; "
                        f"run `python -m shards verify {self.store.url}`"
                    )
                self.store.delete(shard)
                self.store.put_new(shard, path)
        return record


def describe_sample(ident: str, data: bytes, offset: int) -> dict:
    """A sample's entry in a commit record, from its one-sample tar that will lie at `offset` of the shard."""
    keys, members = set(), {}
    for entry in tar_entries(data):
        key, _, name = entry.name.partition(".")
        keys.add(key)
        content = data[entry.offset : entry.offset + entry.size]
        members[name] = {"offset": offset + entry.offset, "bytes": entry.size, "sha256": sha256(content)}
        if name == "meta.json":
            meta = json.loads(content)
    if len(keys) != 1 or "meta.json" not in members:
        raise ValueError(f"expected one sample with meta.json, found keys {sorted(keys)} and members {sorted(members)}")
    key = keys.pop()
    return {
        "key": key,
        "unit": ident,
        "offset": offset,
        "bytes": len(data) - len(END),
        "members": members,
        "row": asdict(index.row_of(meta)),
    }
