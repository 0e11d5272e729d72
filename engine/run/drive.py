"""A run from start to end: plan, do, commit, report. The exit code says how it went."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType

from engine.config import UnrollOptions, fingerprint, fingerprint_id
from engine.ingest.reasons import IngestError
from engine.ingest.sources import Source, list_sources
from engine.perception.weights import WeightsError
from engine.run.cluster import ClusterLost
from engine.run.local import run_local
from engine.run.plan import Surveyor, extend_plan, parse, units_of
from engine.run.progress import Events, Progress, read_events
from engine.run.ray import run_ray
from engine.run.work import Failure, Outcome, SetupError, settle
from shards.config import ConfigError
from shards.lease import LeaseHeld, LeaseLost
from shards.plan import Plan
from shards.run import Run, RunMismatch, RunStatus, ShardLimits, Unit, status
from shards.store import StorageError, open_store

DONE, SOME_QUARANTINED, CONFIGURATION, STORAGE, CLUSTER = 0, 2, 3, 5, 6
SIGNALLED = 128


def drive(options: UnrollOptions) -> int:
    """Run the unroll verb; returns the exit code. Says what went wrong on standard error, without a traceback."""
    stop = Stop()
    try:
        with stop:
            code = _dry_run(options) if options.dry_run else _run(options, stop)
            return SIGNALLED + stop.signal if stop.signal else code
    except (ConfigError, RunMismatch, WeightsError, FileNotFoundError, SetupError) as error:
        print(f"configuration: {error}", file=sys.stderr)
        return CONFIGURATION
    except (StorageError, LeaseHeld, LeaseLost, OSError) as error:
        print(f"storage: {error}", file=sys.stderr)
        return STORAGE
    except KeyboardInterrupt:  # the second signal
        return SIGNALLED + stop.signal
    except ClusterLost as error:
        print(f"cluster: {error}", file=sys.stderr)
        return CLUSTER


class Stop:
    """SIGTERM and SIGINT ask the run to finish the clips in hand and stop; a second one ends it at once."""

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, object] = {}

    def __call__(self) -> bool:
        return self.signal != 0

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number
        print("stopping after the clips in hand; again to stop at once", file=sys.stderr, flush=True)


def _run(options: UnrollOptions, stop: Stop) -> int:
    sources = list_sources(options.input)
    config = fingerprint(options)
    limits = ShardLimits(options.shards.samples, options.shards.bytes)
    with Run.open(options.output, name=options.shards.name, config=config, limits=limits) as run:
        new = extend_plan(run, sources, options, lambda text: print(text, file=sys.stderr, flush=True), stop)
        if options.retry:
            new += run.retry_failed(None if options.retry == "failed" else set(options.retry.split(",")))
        with _progress(run) as (progress, events):
            while not stop() and (todo := list(run.todo())):
                for outcome in _outcomes(todo, run, options, fingerprint_id(config), stop, progress):
                    progress.update(outcome)
                    events.add(outcome)
                    run.commit_ready()
            if progress.seconds:
                progress.say(progress.utilisation())
        finished = run.finish()
        if options.report:
            from engine.run.report import write_report

            write_report(run.store)
    _say(options, finished, new)
    return SOME_QUARANTINED if finished.quarantined else DONE


@contextmanager
def _progress(run: Run) -> Iterator[tuple[Progress, Events]]:
    """Progress over what is to do; events are written whatever ends the run."""
    progress, events = Progress(run.status().todo), Events(run.store, run.lease.epoch)
    try:
        yield progress, events
    finally:
        progress.close()
        events.flush()


def _outcomes(
    todo: list[Unit], run: Run, options: UnrollOptions, config: str, stop: Stop, progress: Progress
) -> Iterator[Outcome]:
    """Decide every unit of `todo`: refused videos here, clips on the runner."""
    clips = []
    refused = [unit for unit in todo if parse(unit).refused]
    with Surveyor(options) as surveyor:
        for unit in refused:
            again = _look_again(unit, run, surveyor, progress) if unit.attempt else None
            if again is not None:
                clips.append(again)
            else:
                why = parse(unit).refused
                failure = Failure("survey", why["reason"], why["message"], "", True)
                settle(run.spool, unit, None, failure, unit.attempt + 1)
                yield Outcome(unit, 0, failure, unit.attempt + 1, {})
    known = {unit.ident for unit in refused}
    order = {unit.ident: i for i, unit in enumerate(todo)}
    clips = sorted([*clips, *(u for u in todo if u.ident not in known)], key=lambda u: order[u.ident])
    if clips and not stop():
        yield from _runner(options)(clips, options, config, run.spool, stop)


def _look_again(unit: Unit, run: Run, surveyor: Surveyor, progress: Progress) -> Unit | None:
    """On a retry: survey the video anew. Its first clip takes the refused unit's place, further ones are planned."""
    source: Source = parse(unit).source
    result = surveyor.survey(source)
    if isinstance(result, IngestError):
        return None
    first, *rest = units_of(source, result, surveyor.options)
    video = unit.key.split("-")[0]
    progress.grow(run.extend([replace(u, key=f"{video}-{u.key.split('-')[1]}") for u in rest]))
    return replace(unit, payload=first.payload, start_s=first.start_s, end_s=first.end_s)


def _runner(options: UnrollOptions):
    if options.runner.kind == "local":
        return run_local
    return run_ray


def _dry_run(options: UnrollOptions) -> int:
    """Say what there is to do, without a lease and without writing anything."""
    sources = list_sources(options.input)
    store = open_store(options.output)
    now = status(store)
    units = [unit for unit in Plan(store).units() if not unit.attempt]
    planned = {source.identity: source.size for source in (parse(unit).source for unit in units)}
    new = [source for source in sources if source.identity not in planned]
    size = sum(source.size for source in new)
    print(f"{len(sources)} videos, {len(new)} not planned yet ({size / 1e9:.2f} GB)")
    print(_counts(now))
    whole = [event["seconds"] for event in read_events(store) if event["stage"] == "unit" and event["bytes"]]
    if whole:
        mean = sum(whole) / len(whole)
        further = size * len(units) / max(sum(planned.values()), 1)  # as many clips per byte as before
        print(
            f"{mean:.1f} s per clip so far: about {mean * (now.todo + further) / 3600:.2f} worker hours for "
            f"{now.todo} planned clips and some {further:.0f} of the other videos"
        )
    return DONE


def _say(options: UnrollOptions, finished: RunStatus, new: int) -> None:
    print(f"{_counts(finished)}{'' if new else '; nothing new'}")
    print(f"shards: {options.output} ({finished.shards} tars, {finished.bytes / 1e6:.1f} MB)")
    if options.report and "://" not in options.output:
        print(f"report: {options.output.rstrip('/')}/report.html")
    if finished.quarantined:
        where = f"{options.output.rstrip('/')}/_fail"
        print(f"{finished.quarantined} quarantined: reasons in {where}; retry=failed tries them again")


def _counts(now: RunStatus) -> str:
    parts = [f"{now.planned} clips planned", f"{now.committed} committed", f"{now.quarantined} quarantined"]
    parts += [f"{now.spooled} spooled"] if now.spooled else []
    parts += [f"{now.todo} to do"] if now.todo else []
    return ", ".join(parts)
