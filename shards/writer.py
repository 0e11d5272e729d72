"""Samples as tar bytes, and the spool where workers leave them."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from shards import schema
from shards.plan import Unit
from shards.store import Store, open_store

BLOCK = 512
END = bytes(2 * BLOCK)  # a tar ends with two zero blocks


@dataclass(frozen=True)
class TarEntry:
    """A file of a tar: `header` is where its header starts, `offset` where its `size` bytes start."""

    name: str
    header: int
    offset: int
    size: int


def tar_sample(key: str, members: Mapping[str, bytes]) -> bytes:
    """The sample as a tar of `<key>.<member>`: sorted members, mtime 0, no owner, so equal members give equal bytes."""
    if not schema.KEY.match(key):
        raise ValueError(f"key {key!r} is not of the form {schema.KEY.pattern}")
    parts = []
    for name in sorted(members):
        info = tarfile.TarInfo(f"{key}.{name}")
        info.size = len(members[name])
        parts += [info.tobuf(tarfile.USTAR_FORMAT), members[name], bytes(-info.size % BLOCK)]
    return b"".join([*parts, END])


def tar_entries(data: bytes) -> Iterator[TarEntry]:
    """The regular files of a tar in memory. Raises ValueError when the tar is damaged."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for info in archive:
                if not info.isreg():
                    raise ValueError(f"tar entry {info.name!r} is no regular file")
                if info.offset_data + info.size > len(data):
                    raise ValueError(f"tar entry {info.name!r} is cut short")
                yield TarEntry(info.name, info.offset, info.offset_data, info.size)
    except tarfile.TarError as error:
        raise ValueError(f"damaged tar: {error}") from error


def untar_sample(data: bytes) -> tuple[str, dict[str, bytes]]:
    """(key, members) of a one-sample tar."""
    keys, members = set(), {}
    for entry in tar_entries(data):
        key, _, name = entry.name.partition(".")
        keys.add(key)
        members[name] = data[entry.offset : entry.offset + entry.size]
    if len(keys) != 1:
        raise ValueError(f"expected the tar of one sample, found the keys {sorted(keys)}")
    return keys.pop(), members


class Spool:
    """Where workers leave what became of a unit. Needs no lease and no plan; picklable; the first answer wins."""

    def __init__(self, store: Store):
        self.store = store

    @classmethod
    def at(cls, url: str) -> "Spool":
        return cls(open_store(url))

    def put(self, unit: Unit, members: Mapping[str, bytes]) -> bool:
        """Leave the finished sample in `_work/`. False: other bytes were there first and stand; drop ours."""
        return self.store.put_new(work_path(unit.ident), tar_sample(unit.key, members))

    def quarantine(
        self, unit: Unit, *, stage: str, reason: str, message: str = "", traceback: str = "", attempts: int = 1
    ) -> bool:
        """Give the unit up, with the stage, a reason from the caller's documented list, and the traceback."""
        record = {
            "unit": unit.unit,
            "attempt": unit.attempt,
            "key": unit.key,
            "uri": unit.uri,
            "start_s": unit.start_s,
            "end_s": unit.end_s,
            "stage": stage,
            "reason": reason,
            "message": message,
            "traceback": traceback,
            "attempts": attempts,
        }
        return self.store.put_new(fail_path(unit.ident), json_bytes(record))


def work_path(ident: str) -> str:
    return f"_work/{ident}.tar"


def fail_path(ident: str) -> str:
    return f"_fail/{ident}.json"


def json_bytes(value: object) -> bytes:
    """Canonical JSON: sorted keys, utf-8, no NaN, one newline at the end."""
    return (json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1) + "\n").encode()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
