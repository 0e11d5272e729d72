"""The GPU bench on the CPU with shrunken networks: every number it can measure here is there."""

import math

import pytest
import torch

from engine.perception.foundation import from_dotlist
from tests.bench.bench_gpu import SMALL, bench, main, show
from tests.bench.flops import count, depth_anything, moge


def test_the_bench_measures_every_model(weights_root):
    result = bench(weights_root, True, 2, 3, (72, 96), ["tracker.verify=false"])
    assert [row["model"] for row in result["models"]] == ["detector", "sam2", "moge", "depth_anything", "tracker (all)"]
    assert all(row["ms_per_frame"] > 0 for row in result["models"])
    assert result["models"][1]["parameters_m"] == pytest.approx(38.96, abs=0.1), "SAM 2.1 tiny as published"
    whole = result["end_to_end"]
    assert whole["frames_per_s"] == pytest.approx(whole["clips_per_hour"] * 3 / 3600)
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


def test_operations_are_counted_by_hand_where_that_is_easy():
    """A ViT block costs 24 d^2 n + 4 d n^2 operations over n tokens of width d (two for a multiply-add)."""
    layer = torch.nn.TransformerEncoderLayer(64, 4, 256, batch_first=True).to("meta").eval()
    found = count(lambda: layer(torch.zeros(1, 100, 64)))
    assert found == pytest.approx((24 * 64**2 * 100 + 4 * 64 * 100**2) / 1e12, rel=0.01)


def test_the_operations_of_full_size_networks():
    """MoGe-2 ViT-L's encoder alone is 24 blocks of width 1024 over 2000 tokens: most of the network, not all of it."""
    options = from_dotlist([])
    encoder = 24 * (24 * 1024**2 * 2000 + 4 * 1024 * 2000**2) / 1e12
    assert encoder < moge(options, (480, 832)) < 1.6 * encoder
    assert 0.15 < depth_anything(options, (480, 832)) < 0.4
