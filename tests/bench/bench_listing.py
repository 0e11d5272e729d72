"""A bucket of 100,000 videos: how long listing, planning, a dry run and the status take, and how much memory.

    python tests/bench/bench_listing.py [--videos 100000]

The bucket is an S3 server on loopback in another process; it makes the pages of the listing as they are asked for
(1000 keys each, as S3 does) and keeps what is written (moto). Half of the planned clips have a work file. Surveys,
which decode every video, are left out: their windows are given. Exit 1 above 60 s or 2 GB for any of the steps.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

BUCKET, PAGE = "listed", 1000
SECONDS, MEGABYTES = 60, 2000


class Listing:
    """WSGI application: moto, but for the generated keys under in/ and out/_work/."""

    def __init__(self, videos: int) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

        self._app, self.videos = DomainDispatcherApplication(create_backend_app), videos

    def __call__(self, environ: dict, start_response: Callable) -> Any:
        query = {k: v[0] for k, v in parse_qs(environ.get("QUERY_STRING", "")).items()}
        prefix = query.get("prefix", "")
        if environ["REQUEST_METHOD"] == "GET" and "list-type" in query and prefix in ("in/", "out/_work/"):
            body = self._page(prefix, query).encode()
            start_response("200 OK", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [body]
        return self._app(environ, start_response)

    def _page(self, prefix: str, query: dict[str, str]) -> str:
        videos = prefix == "in/"
        count = self.videos if videos else self.videos // 2
        start = int(query.get("continuation-token", 0))
        stop = min(count, start + min(PAGE, int(query.get("max-keys", PAGE))))
        names = (video_name(i) if videos else f"{unit_name(2 * i)}.tar" for i in range(start, stop))
        entries = "".join(
            f"<Contents><Key>{escape(prefix + name)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f'<ETag>"{i:032x}"</ETag><Size>{1000 + i % 977}</Size><StorageClass>STANDARD</StorageClass></Contents>'
            for i, name in enumerate(names, start)
        )
        more = f"<NextContinuationToken>{stop}</NextContinuationToken>" if stop < count else ""
        return (
            f"<ListBucketResult><Name>{BUCKET}</Name><Prefix>{prefix}</Prefix><KeyCount>{stop - start}</KeyCount>"
            f"<MaxKeys>{PAGE}</MaxKeys><IsTruncated>{str(bool(more)).lower()}</IsTruncated>{more}{entries}"
            "</ListBucketResult>"
        )


def video_name(i: int) -> str:
    return f"day {i // 1000:03d}/camera-{i:06d}.mp4"


def unit_name(i: int) -> str:
    return f"{i:064x}"


def serve(videos: int, port: Any) -> None:
    import logging

    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, Listing(videos), threaded=True)
    port.put(server.server_port)
    server.serve_forever()


def measure(name: str, action: Callable[[], Any]) -> tuple[Any, bool]:
    """(what the action gives, whether it stayed within the limits)."""
    cpu, wall = time.process_time(), time.perf_counter()
    found = action()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    fits = wall < SECONDS and peak < MEGABYTES
    print(
        f"{name:<8} {wall:6.1f} s wall, {cpu:6.1f} s CPU, peak memory so far {peak:.0f} MB{'' if fits else '  MISSED'}"
    )
    return found, fits


def steps(videos: int) -> bool:
    from dataclasses import replace

    from engine.config import load
    from engine.ingest.clip import Survey
    from engine.ingest.sources import list_sources
    from engine.ingest.windows import Window
    from engine.run.drive import drive
    from engine.run.plan import units_of
    from shards.run import Run, status
    from shards.store import open_store

    place, out = f"s3://{BUCKET}/in", f"s3://{BUCKET}/out"
    open_store(out).fs.mkdir(BUCKET)
    options = load([f"input={place}", f"output={out}", "dry_run=true"])
    sources, listed = measure("listing", lambda: list_sources(place))
    assert len(sources) == videos
    assert sources[1].uri == f"{place}/{video_name(1)}"

    def units():
        for i, source in enumerate(sources):
            (unit,) = units_of(source, Survey(f"{i:012x}", "decord", [Window(0.0, 81, 0, 150)]), options)
            yield replace(unit, unit=unit_name(i))

    def plan() -> int:
        with Run.open(out, config={}) as run:
            return run.extend(units())

    count, planned = measure("plan", plan)
    assert count == videos

    def dry_run() -> str:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            assert drive(options) == 0
        return said.getvalue()

    said, dry = measure("dry run", dry_run)
    assert f"{videos} videos, 0 not planned yet" in said

    now, asked = measure("status", lambda: status(out))
    assert (now.planned, now.spooled, now.todo) == (videos, videos // 2, videos - videos // 2)

    def todo() -> int:
        with Run.open(out, config={}) as run:
            return sum(1 for _ in run.todo())

    left, resumed = measure("todo", todo)
    assert left == now.todo
    return listed and planned and dry and asked and resumed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=100_000)
    args = parser.parse_args()
    processes = multiprocessing.get_context("spawn")
    port = processes.Queue()
    server = processes.Process(target=serve, args=(args.videos, port), daemon=True)
    server.start()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port.get(timeout=60)}", "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench", "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    try:
        print(f"{args.videos} videos in an S3 bucket, half of the clips with a work file", flush=True)
        return 0 if steps(args.videos) else 1
    finally:
        server.kill()


if __name__ == "__main__":
    sys.exit(main())
