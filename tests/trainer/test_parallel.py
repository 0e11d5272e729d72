"""The same loss curve however the work is spread: 1 rank, FSDP2, HSDP, branches, contexts, DeepSpeed."""

import pytest
from trainer_ranks import train_alone, train_on_ranks
from trainer_worlds import write_shards

TOLERANCE = 1e-5  # relative, float32, 10 steps
QUICK = {
    "fsdp": ["parallel=fsdp", "loop.accumulate=1", "parallel.checkpointing=full"],
    "branch": ["parallel=fsdp", "parallel.branch=true"],
    "context": ["parallel=fsdp", "parallel.context=2"],  # the second rank holds nothing but references
}
SLOW = {
    "fsdp_keeping_all": ["parallel=fsdp", "loop.accumulate=1"],
    "fsdp_selective": ["parallel=fsdp", "loop.accumulate=1", "parallel.checkpointing=selective"],
    "hsdp": ["parallel=hsdp", "parallel.shard=1", "loop.accumulate=1"],
    "compiled": ["parallel=fsdp", "loop.accumulate=1", "parallel.compile=true", "parallel.compile_backend=aot_eager"],
    "zero2": ["parallel=deepspeed_zero2", "loop.accumulate=1"],
    "zero3": ["parallel=deepspeed_zero3", "loop.accumulate=1"],
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), 3, pairs=True)


@pytest.fixture(scope="module")
def alone(shards, tmp_path_factory):
    curve = train_alone(shards, tmp_path_factory.mktemp("alone"))
    assert len(curve) == 10
    assert curve[-1] < curve[0]
    return curve


def same_curves(runs: dict, shards, alone, folder) -> None:
    for name, curve in train_on_ranks(2, runs, shards, folder).items():
        assert curve == pytest.approx(alone, rel=TOLERANCE), name


def test_two_ranks_give_the_curve_of_one(shards, alone, tmp_path):
    same_curves(QUICK, shards, alone, tmp_path)


@pytest.mark.slow
def test_every_other_strategy_gives_the_curve_of_one(shards, alone, tmp_path):
    pytest.importorskip("deepspeed")
    same_curves(SLOW, shards, alone, tmp_path)


@pytest.mark.slow
def test_deepspeed_resumes_from_its_own_checkpoint(shards, alone, tmp_path):
    pytest.importorskip("deepspeed")
    runs = {}
    for stage in (2, 3):
        settings = [f"parallel=deepspeed_zero{stage}", "loop.accumulate=1"]
        runs[f"zero{stage}"] = [*settings, "loop.steps=4"]
        runs[f"zero{stage}_goes_on"] = [*settings, f"output={tmp_path}/zero{stage}"]  # ten steps, six of them left
    curves = train_on_ranks(2, runs, shards, tmp_path)
    assert curves["zero2"] == pytest.approx(alone, rel=TOLERANCE)
    assert curves["zero3"] == pytest.approx(alone, rel=TOLERANCE)
