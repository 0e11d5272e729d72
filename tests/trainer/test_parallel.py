"""The same loss curve however the work is spread: 1 rank, FSDP2, HSDP, branches, contexts, DeepSpeed."""

import pytest
from trainer_ranks import train_alone, train_on_ranks
from trainer_worlds import write_shards

TOLERANCE = 1e-5  # relative, float32, 10 steps
# Averaged weights are evaluated in between: that may not disturb the curve (FSDP2's root stays gathered after it).
COMMON = ["data.held_out=0.3", "loop.ema=0.9", "loop.evaluate_every=3", "loop.held_out_batches=1"]
QUICK = {
    "fsdp": ["parallel=fsdp", "loop.accumulate=1", "parallel.checkpointing=full"],
    "branch": ["parallel=fsdp", "parallel.branch=true"],
    "context": ["parallel=fsdp", "parallel.context=2"],  # two frames of video, two references: a rank for each kind
}
SLOW = {
    "fsdp_keeping_all": ["parallel=fsdp", "loop.accumulate=1"],
    "fsdp_selective": ["parallel=fsdp", "loop.accumulate=1", "parallel.checkpointing=selective"],
    "hsdp": ["parallel=hsdp", "parallel.shard=1", "loop.accumulate=1"],
    "compiled": ["parallel=fsdp", "loop.accumulate=1", "parallel.compile=true", "parallel.compile_backend=aot_eager"],
    "zero2": ["parallel=deepspeed_zero2", "loop.accumulate=1", "loop.ema=0"],
    "zero3": ["parallel=deepspeed_zero3", "loop.accumulate=1", "loop.ema=0"],
}
FOUR = {  # on four ranks
    "hsdp": ["parallel=hsdp", "parallel.shard=2", "loop.accumulate=1", "loop.batch=1"],
    "branch_and_context": ["parallel=fsdp", "parallel.branch=true", "parallel.context=2", "loop.accumulate=4"],
    "branch_and_data": ["parallel=fsdp", "parallel.branch=true", "loop.accumulate=2"],
}


@pytest.fixture(scope="module")
def alone(shards, tmp_path_factory):
    curve = train_alone(shards, tmp_path_factory.mktemp("alone"), *COMMON)
    assert len(curve) == 10
    assert curve[-1] < curve[0]
    return curve


def same_curves(runs: dict, shards, alone, folder) -> None:
    runs = {name: [*COMMON, *words] for name, words in runs.items()}
    for name, curve in train_on_ranks(2, runs, shards, folder).items():
        assert curve == pytest.approx(alone, rel=TOLERANCE), name


def test_two_ranks_give_the_curve_of_one(shards, alone, tmp_path):
    same_curves(QUICK, shards, alone, tmp_path)


@pytest.mark.slow
def test_every_other_strategy_gives_the_curve_of_one(shards, alone, tmp_path):
    pytest.importorskip("deepspeed")
    same_curves(SLOW, shards, alone, tmp_path)


@pytest.mark.slow
def test_a_video_frame_beside_a_reference_on_a_context_rank(shards, tmp_path):
    """Three latent frames and one reference on two ranks: the second aligns frame 2 and leaves the reference out."""
    longer = write_shards(tmp_path / "longer", 2, pairs=True, T=9)
    words = ["data.clip.frames=9", "data.references=1", "loop.steps=4"]
    alone = train_alone(longer, tmp_path / "alone", *words)
    runs = {"context": [*words, "parallel=fsdp", "parallel.context=2"]}
    assert train_on_ranks(2, runs, longer, tmp_path)["context"] == pytest.approx(alone, rel=TOLERANCE)


@pytest.mark.slow
def test_four_ranks_in_two_dimensions(shards, tmp_path):
    """Sharded and replicated; branches of a sample and halves of its frames; branches and samples."""
    alone = train_alone(shards, tmp_path / "alone", *COMMON, "loop.accumulate=4")
    runs = {name: [*COMMON, *words] for name, words in FOUR.items()}
    for name, curve in train_on_ranks(4, runs, shards, tmp_path).items():
        assert curve == pytest.approx(alone, rel=TOLERANCE), name


@pytest.mark.slow
def test_deepspeed_resumes_from_its_own_checkpoint(shards, alone, tmp_path):
    pytest.importorskip("deepspeed")
    runs = {}
    for stage in (2, 3):
        settings = [*COMMON, f"parallel=deepspeed_zero{stage}", "loop.accumulate=1", "loop.ema=0"]
        runs[f"zero{stage}"] = [*settings, "loop.steps=4"]
        runs[f"zero{stage}_goes_on"] = [*settings, f"output={tmp_path}/zero{stage}"]  # ten steps, six of them left
    curves = train_on_ranks(2, runs, shards, tmp_path)
    assert curves["zero2"] == pytest.approx(alone, rel=TOLERANCE)
    assert curves["zero3"] == pytest.approx(alone, rel=TOLERANCE)
