"""The GPU bench on the CPU with shrunken networks: every number it can measure here is there."""

import math

import pytest
import torch

from tests.bench.bench_gpu import SMALL, bench, main, show


def test_the_bench_measures_every_model(weights_root):
    result = bench(weights_root, True, 1, 5, (72, 96), ["tracker.verify=false"])
    assert [row["model"] for row in result["models"]] == ["detector", "sam2", "moge", "depth_anything", "tracker (all)"]
    assert all(row["ms_per_frame"] > 0 for row in result["models"])
    assert result["models"][1]["parameters_m"] == pytest.approx(38.96, abs=0.1), "SAM 2.1 tiny as published"
    whole = result["end_to_end"]
    assert whole["frames_per_s"] == pytest.approx(whole["clips_per_hour"] * 5 / 3600)
    assert "clips per hour" in show(result)
    if not torch.cuda.is_available():
        assert math.isnan(whole["busy_share"])
        assert "GPU busy - %" in show(result), "what was not measured is not a number"
    assert SMALL


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_what_to_run(capsys):
    assert main([]) == 0
    said = capsys.readouterr().out
    assert said.startswith("not run: no GPU here")
    assert "make bench-gpu" in said
    assert said.count("\n") == 1
