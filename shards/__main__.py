"""`python -m shards info|ls|verify|export|contact-sheet|reshard|gc`: look after an output (a folder or any fsspec URL).

Exit code 0 when all is well, 1 when something is wrong (a message says what and what to do).
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from shards import index, schema
from shards.commit import ShardLimits
from shards.dataset import BadSample, open_dataset
from shards.lease import LeaseHeld, LeaseLost
from shards.run import RunMismatch, failures, status
from shards.store import StorageError, open_store

DEFAULT_OUTPUT = "out/"
FAILURES = (StorageError, FileNotFoundError, ValueError, KeyError, BadSample, LeaseHeld, LeaseLost, RunMismatch)


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    try:
        return args.command(args)
    except BrokenPipeError:  # `... | head`
        return 0
    except FAILURES as error:
        print(f"shards: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="python -m shards", description="Look after an output of shards.")
    commands = root.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function, help: str, json_flag: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(command=function)
        if json_flag:
            sub.add_argument("--json", action="store_true", help="print JSON for programs")
        return sub

    def output(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("output", nargs="?", default=DEFAULT_OUTPUT, help="folder or URL (default: out/)")

    output(command("info", _info, "counts, sizes, configuration, quarantines by reason"))
    output(command("ls", _ls, "one line per sample (--json: an array of flat objects with the quality columns)"))
    sub = command("verify", _verify, "recompute every hash, offset, key and schema rule")
    output(sub)
    sub.add_argument("--repair-index", action="store_true", help="first rebuild _index/ from the commit records")
    sub.add_argument("--no-schema", action="store_true", help="hashes, offsets and keys only")
    sub = command(
        "export", _export, "unpack one sample, with pictures and clouds that people can open", json_flag=False
    )
    sub.add_argument("arguments", nargs="+", metavar="[OUTPUT] KEY DIR")
    sub = command("contact-sheet", _contact_sheet, "draw samples as one picture each", json_flag=False)
    sub.add_argument("arguments", nargs="*", metavar="[OUTPUT] [KEY ...]", help="no KEY: the first --limit samples")
    sub.add_argument("--to", type=Path, default=Path("contact-sheets"), help="folder (default: contact-sheets/)")
    sub.add_argument("--limit", type=int, default=16, help="samples drawn when no KEY is given")
    sub = command("reshard", _reshard, "copy all samples into a new output with other shard sizes or another order")
    sub.add_argument("source")
    sub.add_argument("target")
    sub.add_argument("--name", default="metaworld", help="first part of the tars' names")
    sub.add_argument("--samples", type=int, default=ShardLimits.samples, help="samples a shard holds at most")
    sub.add_argument("--bytes", type=int, default=ShardLimits.bytes, help="bytes a shard holds at most")
    sub.add_argument("--order", choices=("commit", "key", "shuffle"), default="commit")
    sub.add_argument("--seed", type=int, default=0, help="of --order shuffle")
    sub = command("gc", _gc, "remove work files and uncommitted tars that nobody needs")
    output(sub)
    sub.add_argument("--dry-run", action="store_true", help="only say what would go")
    return root


def _info(args: argparse.Namespace) -> int:
    store = open_store(args.output)
    run = json.loads(store.read("_run.json"))
    now, table = status(store), index.load(store)[0]
    frames, fps, heights, widths = (table[name].to_pylist() for name in ("frames", "fps", "height", "width"))
    facts = {
        "url": store.url,
        "name": run["name"],
        "fingerprint": run["fingerprint"],
        "limits": run["limits"],
        "units": {k: getattr(now, k) for k in ("planned", "committed", "quarantined", "spooled", "todo")},
        "quarantined_by_reason": dict(Counter(record["reason"] for record in failures(store))),
        "shards": now.shards,
        "bytes": now.bytes,
        "samples": len(table),
        "seconds": round(sum(f / rate for f, rate in zip(frames, fps, strict=True)), 3),
        "subjects": sum(table["subjects"].to_pylist()),
        "camera_kinds": dict(sorted(Counter(table["camera_kind"].to_pylist()).items())),
        "verdicts": dict(sorted(Counter(table["verdict"].to_pylist()).items())),
        "sizes": dict(Counter(f"{h}x{w}" for h, w in zip(heights, widths, strict=True))),
        "pairs": len(set(table["pair_id"].to_pylist()) - {None}),
        "driver": "at work" if now.lease and now.lease["alive"] else "none",
    }
    if args.json:
        print(json.dumps(facts, indent=1))
    else:
        for name, value in facts.items():
            shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
            print(f"{name.replace('_', ' '):>22}  {shown if shown != '' else '-'}")
    return 0


def _ls(args: argparse.Namespace) -> int:
    rows = open_dataset(args.output).table.drop_columns(["members"]).to_pylist()
    if args.json:
        print("[" + ",\n ".join(json.dumps(row) for row in rows) + "]")
        return 0
    print(f"{'key':<26} {'shard':<24} {'T':>4} {'size':>9} {'N':>2} {'camera':<9} {'verdict':<9} {'MB':>7}  source")
    for row in rows:
        size = f"{row['height']}x{row['width']}"
        span = f"{row['uri']} {row['start_s']:.2f}-{row['end_s']:.2f} s"
        print(
            f"{row['key']:<26} {row['shard']:<24} {row['frames']:>4} {size:>9} {row['subjects']:>2} "
            f"{row['camera_kind']:<9} {row['verdict']:<9} {row['bytes'] / 1e6:>7.1f}  {span}"
        )
    return 0


def _verify(args: argparse.Namespace) -> int:
    from shards.verify import verify

    store = open_store(args.output)
    if not store.exists("_run.json") and not any(True for _ in store.list("_commits")):
        raise FileNotFoundError(f"{store.url}: no shards here (no _run.json and no _commits/)")
    if args.repair_index:
        index.rebuild(store)
    report = verify(store, schema=not args.no_schema)
    if args.json:
        print(json.dumps(report.to_json(), indent=1))
    else:
        for kind, entries in (("problem", report.problems), ("note", report.notes)):
            for entry in entries:
                print(f"{kind}: {entry['object']}: {entry['problem']}")
        verdict = "verified" if report.ok else f"{len(report.problems)} problems"
        print(f"{verdict}: {report.samples} samples in {report.shards} shards, {report.bytes / 1e6:.1f} MB")
    return 0 if report.ok else 1


def _export(args: argparse.Namespace) -> int:
    from shards.export import export

    if len(args.arguments) not in (2, 3):
        raise ValueError("expected [OUTPUT] KEY DIR")
    output, key, folder = ([DEFAULT_OUTPUT, *args.arguments])[-3:]
    for path in export(open_dataset(output)[key], Path(folder)):
        print(path)
    return 0


def _contact_sheet(args: argparse.Namespace) -> int:
    from shards.contact_sheet import contact_sheet

    keys = list(args.arguments)
    output = DEFAULT_OUTPUT if not keys or schema.KEY.match(keys[0]) else keys.pop(0)
    dataset = open_dataset(output)
    args.to.mkdir(parents=True, exist_ok=True)
    for key in keys or dataset.order[: args.limit]:
        path = args.to / f"{key}.png"
        contact_sheet(dataset[key]).save(path)
        print(path)
    return 0


def _reshard(args: argparse.Namespace) -> int:
    from shards.maintain import reshard

    limits = ShardLimits(samples=args.samples, bytes=args.bytes)
    done = reshard(args.source, args.target, limits=limits, name=args.name, order=args.order, seed=args.seed)
    if args.json:
        print(json.dumps({"samples": done.committed, "shards": done.shards, "bytes": done.bytes}))
    else:
        print(f"{done.committed} samples in {done.shards} shards, {done.bytes / 1e6:.1f} MB, at {args.target}")
    return 0


def _gc(args: argparse.Namespace) -> int:
    from shards.maintain import gc

    garbage = gc(args.output, dry_run=args.dry_run)
    if args.json:
        print(json.dumps({"work": garbage.work, "tars": garbage.tars, "removed": not args.dry_run}))
    else:
        for path in garbage.work + garbage.tars:
            print(f"{'would remove' if args.dry_run else 'removed'} {path}")
        print(f"{len(garbage.work)} work files, {len(garbage.tars)} uncommitted tars")
    return 0


if __name__ == "__main__":
    sys.exit(main())
