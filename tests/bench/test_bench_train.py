"""The bench's GPU part, on the CPU at a small width: the very code that runs when a GPU comes."""

import pytest
import torch

from tests.bench import bench_train
from trainer.launch import distributed

SMALL = [
    "model.wan.num_attention_heads=2", "model.wan.attention_head_dim=24", "model.wan.ffn_dim=64",
    "model.wan.freq_dim=32", "model.wan.text_dim=8", "data.clip.frames=5", "data.clip.height=32",
    "data.clip.width=48", "data.text_length=8",
]  # fmt: skip
CPU = torch.device("cpu")


def test_backends_are_compared_and_what_cannot_run_says_why(capsys):
    with distributed():
        rows = bench_train.compare_backends(["native", "_flash_3"], CPU, 80, 1, *SMALL, layers=2)
    assert [(row["stage"], row["backend"]) for row in rows] == [(s, b) for s in (1, 2) for b in ("native", "_flash_3")]
    for ran, failed in (rows[:2], rows[2:]):
        assert ran["layers"] == 2
        assert ran["tokens"] == (2 + 1) * 2 * 3
        assert ran["step_s"] > 0
        assert ran["loss"] == pytest.approx(2, rel=0.5)  # noise minus clean, both of unit variance, little learnt yet
        assert "parallel.attention=_flash_3" in failed["error"]
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_layers_shrink_until_they_fit(monkeypatch):
    tried = []

    def step(options, device, repeats):
        tried.append(options.model.wan.num_layers)
        if tried[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"layers": tried[-1]}

    monkeypatch.setattr(bench_train, "training_step", step)
    rows = bench_train.compare_backends(["native"], CPU, 80, 1, *SMALL, layers=5)
    assert [row["layers"] for row in rows] == [3, 3]
    assert tried == [5, 4, 3, 5, 4, 3]


@pytest.mark.slow
def test_as_many_14b_blocks_as_the_arithmetic_allows():
    """16 bytes a parameter (351 M a block) beside the activations of 34,320 tokens."""
    assert 5 <= bench_train.layers_that_fit(1, 80.0) <= 9
    assert bench_train.layers_that_fit(2, 80.0) < bench_train.layers_that_fit(1, 80.0)
    assert bench_train.layers_that_fit(1, 10.0) == 0
