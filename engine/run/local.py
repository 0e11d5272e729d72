"""The local runner: one unit after another in this process."""

from collections.abc import Callable, Iterable, Iterator

from engine.config import UnrollOptions
from engine.ingest.decoder import DecodeProcess
from engine.perception import Models
from engine.run.work import Outcome, load_models, process_unit, settle, step
from shards.run import Spool, Unit


def run_local(
    units: Iterable[Unit], options: UnrollOptions, config: str, spool: Spool, stopping: Callable[[], bool]
) -> Iterator[Outcome]:
    """Do the units in order and spool each; stops before the next one when `stopping()`."""
    models = load_models(options)
    with DecodeProcess(options.decode) as process:
        for unit in units:
            if stopping():
                return
            yield _do(unit, models, options, config, process, spool)


def _do(
    unit: Unit, models: Models, options: UnrollOptions, config: str, process: DecodeProcess, spool: Spool
) -> Outcome:
    attempt, done = 0, None
    while done is None or (done.failure is not None and not done.failure.final and attempt < options.runner.attempts):
        attempt += 1
        done = step("decode", lambda watch: process_unit(unit, models, options, config, process, watch))
    size = settle(spool, unit, done.value, done.failure, attempt)
    return Outcome(unit, size, done.failure, attempt, done.stages)
