"""FLOPs by formula against torch's counter; the memory plan against the memory a tiny training takes."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from trainer.config import load
from trainer.meter import flops
from trainer.model.sawg import SawgOptions, WanOptions, WorldGenerator
from trainer.model.wsa import WsaOptions
from trainer.plan import memory, page

WAN = WanOptions(
    num_layers=3, num_attention_heads=2, attention_head_dim=24, ffn_dim=100, in_channels=4, text_dim=16, freq_dim=32
)


@pytest.mark.parametrize(("branches", "trainable"), [(1, "all"), (2, "all"), (2, "wsa")])
def test_formula_equals_the_counter(branches, trainable):
    sawg, wsa = SawgOptions(hidden=6), WsaOptions(enabled=True, every=2)
    model = WorldGenerator(WAN, sawg, wsa)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable == "all" or ".wsa." in name)
    rows, latent, references, text = 2 * branches, (3, 4, 6), 2, 7
    arguments = (
        torch.randn(rows, 4, *latent), torch.ones(rows), torch.randn(rows, text, 16), torch.randn(rows, 8, *latent),
        torch.randn(rows, 4, references, 4, 6), branches,
    )  # fmt: skip
    formula = flops(WAN, sawg, wsa, rows, latent, references, text, branches)
    with FlopCounterMode(display=False) as counter:
        out = model(*arguments)
    assert formula.forward == pytest.approx(counter.get_total_flops(), rel=1e-6)
    with FlopCounterMode(display=False) as counter:
        model(*arguments).square().mean().backward()
    # The first convolutions need no gradient of their input, and a frozen front none at all; attention's backward
    # makes the scores again (5 products for 2), which the counter counts and model FLOPs do not.
    again = 0.5 * (formula.attention + formula.wsa * 0.2)
    assert out.requires_grad
    assert formula.step(trainable) == pytest.approx(counter.get_total_flops(), abs=again + formula.rest, rel=0.02)


def test_arithmetic_of_the_14b():
    """The numbers of the Wan-14B at 81 x 480 x 832 with one reference; 6 N D would miss almost half."""
    cost = flops(WanOptions(), SawgOptions(), WsaOptions(), 1, (21, 60, 104), 1, 512, 1)
    assert cost.forward / 1e12 == pytest.approx(1802, rel=0.001)
    assert cost.attention / cost.forward == pytest.approx(0.54, abs=0.01)
    pair = flops(WanOptions(), SawgOptions(), WsaOptions(enabled=True), 2, (21, 60, 104), 1, 512, 2)
    assert pair.forward / 2 / cost.forward == pytest.approx(1.176, abs=0.002)


def plan(*overrides: str):
    return load("plan", overrides)


def test_plan_prints_both_clusters():
    text = page(plan("model=wan_1_3b"))
    assert "    8      80" in text
    assert "   32      96" in text
    assert "fits" in text


@pytest.mark.parametrize("checkpointing", ["none", "full"])
@pytest.mark.parametrize("experiment", ["stage1", "stage2"])
def test_plan_against_measured_memory(experiment, checkpointing):
    """Every tensor of a tiny step, counted as it is made and freed (torch's MemTracker), against the arithmetic."""
    from torch.distributed._tools.mem_tracker import MemTracker

    from trainer.model.parallelize import Grid, parallelize
    from trainer.strategy import Torch, freeze

    options = plan(
        "model=tiny", f"experiment={experiment}", "parallel=single", "parallel.precision=fp32", "loop.ema=0",
        f"parallel.checkpointing={checkpointing}", "optimizer.trainable=all", "model.wan.num_layers=2",
    )  # fmt: skip
    need = memory(options, ranks=1)
    torch.manual_seed(0)
    model = WorldGenerator(options.model.wan, options.model.sawg, options.model.wsa)
    freeze(model, "all")
    parallelize(model, options.parallel, Grid(None))
    strategy = Torch(model, options.optimizer)
    rows = options.data.branches
    latent, channels = (5, 12, 20), options.model.wan.in_channels
    batch = (
        torch.randn(rows, channels, *latent), torch.ones(rows), torch.randn(rows, 16, 64),
        torch.randn(rows, 2 * channels, *latent), torch.randn(rows, channels, 1, 12, 20), rows,
    )  # fmt: skip
    tracker = MemTracker()
    tracker.track_external(model, strategy.optimizer, *batch[:-1])
    with tracker:
        for step in range(2):  # the optimiser's moments are there in the second step
            if step:
                tracker.reset_mod_stats()
            strategy.backward(model(*batch).square().mean(), last=True)
            strategy.step(step)
    peak = sum(snapshot["Total"] for snapshot in tracker.get_tracker_snapshot("peak").values())
    assert need.total == pytest.approx(peak, rel=0.2)
