"""The same loss curve however the work is spread: 1 rank, FSDP2, HSDP, branches, contexts, DeepSpeed."""

import pytest
from trainer_ranks import train_alone, train_on_ranks
from trainer_worlds import write_shards

TOLERANCE = 1e-5  # relative, float32, 10 steps
RUNS = {
    "fsdp": ["parallel=fsdp", "loop.accumulate=1"],
    "fsdp_recompute": ["parallel=fsdp", "loop.accumulate=1", "parallel.checkpointing=full"],
    "fsdp_selective": ["parallel=fsdp", "loop.accumulate=1", "parallel.checkpointing=selective"],
    "hsdp": ["parallel=hsdp", "parallel.shard=1", "loop.accumulate=1"],
    "branch": ["parallel=fsdp", "parallel.branch=true"],
    "context": ["parallel=fsdp", "parallel.context=2"],
}
DEEPSPEED = {f"zero{stage}": [f"parallel=deepspeed_zero{stage}", "loop.accumulate=1"] for stage in (2, 3)}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), 3, pairs=True)


@pytest.fixture(scope="module")
def alone(shards, tmp_path_factory):
    curve = train_alone(shards, tmp_path_factory.mktemp("alone"))
    assert len(curve) == 10
    assert curve[-1] < curve[0]
    return curve


def test_two_ranks_give_the_curve_of_one(shards, alone, tmp_path):
    curves = train_on_ranks(2, RUNS, shards, tmp_path)
    for name, curve in curves.items():
        assert curve == pytest.approx(alone, rel=TOLERANCE), name


def test_deepspeed_gives_the_curve_of_one(shards, alone, tmp_path):
    pytest.importorskip("deepspeed")
    for name, curve in train_on_ranks(2, DEEPSPEED, shards, tmp_path).items():
        assert curve == pytest.approx(alone, rel=TOLERANCE), name
