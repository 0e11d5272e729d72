"""The plan: an append-only list of units in immutable generations (`_plan/g0000.parquet`, `_plan/g0001.parquet`, ...).

A shard never crosses a generation, so its bytes do not depend on when later videos arrived.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import pyarrow as pa

from shards import parquet, schema
from shards.store import StorageError, Store

COLUMNS = pa.schema(
    [
        ("unit", pa.string()),
        ("key", pa.string()),
        ("uri", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("payload", pa.string()),
        ("attempt", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Unit:
    """One window of one video: the smallest thing that is done, retried or given up. It yields exactly one sample.

    unit     sha256 hex of whatever identifies the work (uri, etag, size, span)
    key      the sample's key (`shards.schema.KEY`)
    uri      where the video is
    start_s, end_s  its span in the source, seconds
    payload  opaque to shards (JSON of the maker: etag, crop, pair, ...)
    attempt  0, or the number of the retry that `Run.retry_failed` planned
    """

    unit: str
    key: str
    uri: str
    start_s: float
    end_s: float
    payload: str = "{}"
    attempt: int = 0

    @property
    def ident(self) -> str:
        """Name of this attempt in `_work/` and `_fail/`."""
        return ident(self.unit, self.attempt)


def ident(unit: str, attempt: int) -> str:
    return unit if attempt == 0 else f"{unit}-r{attempt}"


class Plan:
    """All generations of an output, read once and extended by `extend` (under the lease)."""

    def __init__(self, store: Store):
        self.store = store
        names = sorted(entry.path for entry in store.list("_plan") if entry.path.endswith(".parquet"))
        expected = [_path(i) for i in range(len(names))]
        if names != expected:
            raise StorageError(
                f"{store.url}/_plan: expected generations g0000 to g{len(names) - 1:04d} without gaps, found {names}; "
                "restore the missing file from a backup or start a new output"
            )
        self.generations: list[pa.Table] = [parquet.read(store.read(name)) for name in names]
        self._idents = [self._names(table) for table in self.generations]

    def __len__(self) -> int:
        return sum(len(table) for table in self.generations)

    def idents(self, generation: int) -> list[str]:
        """Names of the attempts of one generation, in plan order."""
        return self._idents[generation]

    def all_idents(self) -> Iterator[str]:
        for names in self._idents:
            yield from names

    def latest(self) -> set[str]:
        """The last attempt of every unit."""
        tables = zip(self.generations, self._idents, strict=True)
        return set(
            {u: name for t, names in tables for u, name in zip(t["unit"].to_pylist(), names, strict=True)}.values()
        )

    def units(self, wanted: set[str] | None = None) -> Iterator[Unit]:
        """The units in plan order, all or those whose ident is wanted; rows are made only for these."""
        for table, names in zip(self.generations, self._idents, strict=True):
            rows = [i for i, name in enumerate(names) if wanted is None or name in wanted]
            for start in range(0, len(rows), 1024):
                for row in table.take(rows[start : start + 1024]).to_pylist():
                    yield Unit(**row)

    def extend(self, units: Iterable[Unit]) -> int:
        """Append the units whose ident and key are not planned yet as a new generation; returns how many.

        The same content under a second URI has the same key: its first unit stands for it.
        """
        idents = set(self.all_idents())
        keys = {key for table in self.generations for key in table["key"].to_pylist()}
        new = []
        for unit in units:
            if not schema.KEY.match(unit.key):
                raise ValueError(f"unit {unit.unit}: key {unit.key!r} is not of the form {schema.KEY.pattern}")
            if unit.ident in idents or (unit.attempt == 0 and unit.key in keys):
                continue
            idents.add(unit.ident)
            keys.add(unit.key)
            new.append(unit)
        if new:
            self._append(new)
        return len(new)

    def retry(self, failed: set[str]) -> int:
        """Plan a new attempt, in a new generation, of every failed attempt that has none yet; returns how many."""
        idents = set(self.all_idents())
        again = (replace(unit, attempt=unit.attempt + 1) for unit in self.units(failed))
        new = [unit for unit in again if unit.ident not in idents]
        if new:
            self._append(new)
        return len(new)

    def _append(self, units: list[Unit]) -> None:
        table = pa.table({name: [getattr(unit, name) for unit in units] for name in COLUMNS.names}, schema=COLUMNS)
        path = _path(len(self.generations))
        if not self.store.put_new(path, parquet.write([table], COLUMNS)):
            raise StorageError(f"{self.store.url}/{path}: another driver planned at the same time; start again")
        self.generations.append(table)
        self._idents.append(self._names(table))

    @staticmethod
    def _names(table: pa.Table) -> list[str]:
        units, attempts = table["unit"].to_pylist(), table["attempt"].to_pylist()
        return [ident(unit, attempt) for unit, attempt in zip(units, attempts, strict=True)]


def _path(generation: int) -> str:
    return f"_plan/g{generation:04d}.parquet"
