"""Reading commit records, `_commits/000123.json`. What they hold is said in shards/commit.py."""

import json
from collections.abc import Iterator

from shards.store import Store

RECORD_VERSION = 1


def commit_path(number: int) -> str:
    return f"_commits/{number:06d}.json"


def commit_numbers(store: Store) -> list[int]:
    """Numbers of all commit records, ascending."""
    return sorted(int(e.path[-11:-5]) for e in store.list("_commits") if e.path.endswith(".json"))


def read_commit(store: Store, number: int) -> dict:
    """One commit record; ValueError when it is damaged."""
    try:
        record = json.loads(store.read(commit_path(number)))
        if record["version"] != RECORD_VERSION or record["number"] != number:
            raise ValueError(f"version {record['version']}, number {record['number']}")
        return record
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{store.url}/{commit_path(number)}: damaged commit record: {error}") from error


def read_commits(store: Store) -> Iterator[dict]:
    """Every commit record in order, one in memory at a time."""
    for number in commit_numbers(store):
        yield read_commit(store, number)
