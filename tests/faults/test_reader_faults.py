"""Readers killed in the middle of an epoch, on 1, 2, then 4 ranks with 0 and 2 workers: no item lost or doubled."""

import json
import signal
from pathlib import Path

import pytest
from shard_samples import tiny, unit
from test_kill import processes

from shards.reader import Loader, SampleStream, open_dataset
from shards.run import Run, ShardLimits

pytestmark = [pytest.mark.fault, pytest.mark.slow]
COUNT, BATCH = 11, 2


def read(output: str, state: str, rank: int, world: int, workers: int, steps: int, answers) -> None:
    """One rank: `steps` steps from the saved state on, each with its state told; then it waits to be killed."""
    stream = SampleStream(open_dataset(output), batch=BATCH, rank=rank, world=world, members=["meta.json"])
    loader = Loader(stream, workers=workers)
    if Path(state).exists():
        loader.load_state_dict(json.loads(Path(state).read_text()))
    for step, batch in enumerate(loader, 1):
        answers.put((rank, [item["__key__"] for item in batch], loader.state_dict()))
        if step == steps:
            break
    for _ in loader:  # in the middle of the next step
        signal.pause()


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_mid_epoch_while_the_world_grows(tmp_path, workers):
    """One shard, so that ranks outnumber shards; three epochs go by."""
    output, state, seen = tmp_path / "out", tmp_path / "state", []
    with Run.open(str(output), config={}, limits=ShardLimits(samples=64)) as run:
        run.extend(unit(i) for i in range(COUNT))
        for todo in run.todo():
            run.spool.put(todo, tiny(todo.key, int(todo.key[:12], 16)))
        assert run.finish().shards == 1
    for world, steps in ((1, 3), (2, 2), (4, 2)):
        answers = [processes.Queue() for _ in range(world)]
        ranks = [
            processes.Process(target=read, args=(str(output), str(state), r, world, workers, steps, answers[r]))
            for r in range(world)
        ]
        for process in ranks:
            process.start()
        for _ in range(steps):
            step = [queue.get(timeout=240) for queue in answers]
            assert [rank for rank, _, _ in step] == list(range(world))
            assert all(len(keys) == BATCH for _, keys, _ in step)
            assert all(found == step[0][2] for _, _, found in step)
            seen += [key for _, keys, _ in step for key in keys]
        state.write_text(json.dumps(step[0][2]))
        for process in ranks:
            process.kill()
            process.join()
    stream = SampleStream(open_dataset(output))
    assert seen == [stream.keys(n)[0] for n in range((3 + 2 * 2 + 2 * 4) * BATCH)]
