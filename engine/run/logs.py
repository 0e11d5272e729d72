"""`python -m engine.run.logs OUTPUT [--key KEY] [--unit UNIT] [--json]`: what happened, from the output alone.

Without a choice: every quarantined clip with its reason, message and traceback. With a key or a unit (a prefix of it
will do): every event of that clip too, stage by stage, and where its sample is. Needs no cluster.
"""

import argparse
import json
import sys
from collections.abc import Iterator

from engine.run.progress import read_events
from shards.plan import Plan, Unit
from shards.records import read_commits
from shards.run import failures
from shards.store import StorageError, Store, open_store


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", nargs="?", default="out/")
    parser.add_argument("--key", default="", help="of a sample, or the first part of it")
    parser.add_argument("--unit", default="", help="of the plan, or the first part of it")
    parser.add_argument("--json", action="store_true", help="one JSON object per clip")
    args = parser.parse_args(arguments)
    try:
        store = open_store(args.output)
        found = list(clips(store, args.key, args.unit))
    except (StorageError, FileNotFoundError) as error:
        print(f"logs: {args.output}: {error}", file=sys.stderr)
        return 1
    if not found and (args.key or args.unit):
        print(f"logs: {args.output}: no planned clip has key {args.key!r} or unit {args.unit!r}", file=sys.stderr)
        return 1
    for clip in found:
        print(json.dumps(clip) if args.json else "\n".join(_lines(clip)))
    if not found:
        print("nothing is quarantined")
    return 0


def clips(store: Store, key: str = "", unit: str = "") -> Iterator[dict]:
    """Per clip in plan order: key, unit, uri, span, shard (or None), failures of all attempts, events.

    Clips whose key or unit begins as given; without either, those that are quarantined now.
    """
    failed: dict[str, list[dict]] = {}
    for failure in failures(store, retried=True):
        failed.setdefault(failure["unit"], []).append(failure)
    standing = {failure["unit"] for failure in failures(store)}
    chosen: dict[str, Unit] = {}
    for planned in Plan(store).units():
        asked = planned.key.startswith(key) and planned.unit.startswith(unit) if key or unit else None
        if asked or (asked is None and planned.unit in standing):
            chosen[planned.unit] = planned
    shards = {}
    if chosen:
        for record in read_commits(store):
            for sample in record["samples"]:
                shards[sample["unit"].partition("-r")[0]] = record["shard"]
    events: dict[str, list[dict]] = {}
    for event in read_events(store) if chosen else ():
        events.setdefault(event["unit"].partition("-r")[0], []).append(event)
    for ident, planned in chosen.items():
        yield {
            "key": planned.key,
            "unit": ident,
            "uri": planned.uri,
            "start_s": planned.start_s,
            "end_s": planned.end_s,
            "shard": shards.get(ident),
            "failures": sorted(failed.get(ident, ()), key=lambda f: f["attempt"]),
            "events": events.get(ident, []),
        }


def _lines(clip: dict) -> Iterator[str]:
    where = f"in {clip['shard']}" if clip["shard"] else "not in a shard"
    yield f"{clip['key']}  {clip['uri']}  {clip['start_s']:.2f} to {clip['end_s']:.2f} s  {where}"
    for event in clip["events"]:
        numbers = f"{event['seconds']:9.3f} s  {event.get('queue', 0.0):8.3f} s queued"
        size = f"{event.get('bytes', 0) / 1e6:9.2f} MB  {event.get('peak_mb', 0.0):7.0f} MiB peak"
        yield f"  {event['stage']:<12} {numbers}  {size}  {event.get('status', '')}".rstrip()
    for failure in clip["failures"]:
        yield f"  attempt {failure['attempt'] + 1}: {failure['reason']} in {failure['stage']}: {failure['message']}"
        yield from (f"    {line}" for line in failure["traceback"].splitlines())
    yield f"  unit {clip['unit']}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
