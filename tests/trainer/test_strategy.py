"""What learns, at which rate, and the weight average; the configuration refuses what contradicts itself."""

import pytest
import torch
from trainer_ranks import options

from shards.config import ConfigError
from trainer.config import CONF, load, page
from trainer.launch import distributed
from trainer.model.parallelize import ParallelError, ParallelOptions, make_grid
from trainer.model.sawg import SawgOptions, WanOptions, WorldGenerator, is_new, is_wsa
from trainer.model.wsa import WsaOptions
from trainer.state import Ema
from trainer.strategy import OptimizerOptions, Torch, freeze, parameter_groups, warm

WAN = WanOptions(
    num_layers=2, num_attention_heads=2, attention_head_dim=24, ffn_dim=64, in_channels=4, text_dim=16, freq_dim=32
)


def model(wsa: bool = True) -> WorldGenerator:
    return WorldGenerator(WAN, SawgOptions(), WsaOptions(enabled=wsa))


@pytest.mark.parametrize(
    ("trainable", "learns"), [("all", lambda n: True), ("new", is_new), ("wsa", is_wsa)], ids=["all", "new", "wsa"]
)
def test_what_learns(trainable, learns):
    m = model()
    freeze(m, trainable)
    assert {n for n, p in m.named_parameters() if p.requires_grad} == {n for n, _ in m.named_parameters() if learns(n)}


def test_nothing_to_learn_is_refused():
    with pytest.raises(ValueError, match="nothing to train"):
        freeze(model(wsa=False), "wsa")


def test_new_modules_have_their_own_rate_and_vectors_do_not_decay():
    m, o = model(), OptimizerOptions(lr=1e-5, lr_new=1e-4, weight_decay=0.1)
    names = {id(p): n for n, p in m.named_parameters()}
    seen = []
    for group in parameter_groups(m, o):
        for p in group["params"]:
            seen.append(names[id(p)])
            assert group["base_lr"] == (1e-4 if is_new(seen[-1]) else 1e-5)
            assert group["weight_decay"] == (0.1 if p.ndim >= 2 and "scale_shift" not in seen[-1] else 0)
    assert sorted(seen) == sorted(names.values())


def test_warm_up_then_constant():
    groups = [{"base_lr": 2.0}, {"base_lr": 1.0}]
    rates = []
    for step in range(6):
        warm(groups, step, 4)
        rates.append([g["lr"] for g in groups])
    assert rates == [[0.5, 0.25], [1.0, 0.5], [1.5, 0.75], [2.0, 1.0], [2.0, 1.0], [2.0, 1.0]]


def test_gradient_norm_is_reported_before_clipping_and_clipped():
    torch.manual_seed(0)
    m = model(wsa=False)
    strategy = Torch(m, OptimizerOptions(clip=0.01, lr=1e-3, lr_new=1e-3, warmup=1, weight_decay=0))
    x = torch.randn(1, 4, 2, 4, 4)
    strategy.backward(m(x, torch.ones(1), torch.randn(1, 3, 16), torch.randn(1, 8, 2, 4, 4), x[:, :, :0]).sum(), True)
    grads = [p.grad.clone() for p in m.parameters() if p.grad is not None]
    norm = torch.stack([g.norm() for g in grads]).norm()
    assert strategy.step(0) == pytest.approx(float(norm), rel=1e-5)
    assert norm > 0.01


def test_average_follows_the_weights_and_swaps():
    m = torch.nn.Linear(2, 1)
    ema = Ema(m, 0.5)
    start = m.weight.detach().clone()
    with torch.no_grad():
        m.weight += 1
    ema.update(100)  # the ramp is past 0.5
    torch.testing.assert_close(ema.shadow["weight"], start + 0.5)
    ema.swap()
    torch.testing.assert_close(m.weight.detach(), start + 0.5)
    ema.swap()
    torch.testing.assert_close(m.weight.detach(), start + 1)


def test_contradictions_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # no wandb here
    for words, message in (
        (["parallel.checkpointing=some"], r"parallel\.checkpointing=some: choose one of none, selective, full"),
        (["optimizer.learning_rate=1"], "unknown key 'optimizer.learning_rate'"),
        (["modle=tiny"], r"unknown key 'modle'; did you mean model\?"),
        (["model=tinny"], r"model=tinny: choose one of .*; did you mean tiny\?"),
        (["parallel=deepspeed_zero2", "loop.ema=0.9"], r"set loop\.ema=0"),
        (["data.clip.frames=8"], r"data\.clip\.frames=8: 1 \+ 4k"),
        (["data.clip.height=18"], r"data\.clip\.height=18: a multiple of 4 pixels"),
        (["loop.wandb=mine"], "pip install wandb"),
    ):
        with pytest.raises(ConfigError, match=message):
            options("x", tmp_path, *words)
    with pytest.raises(ConfigError, match=r"shards=\.\.\. is missing: folder or URL"):
        load("train", [])
    with distributed():
        with pytest.raises(ParallelError, match="branch x context = 2"):
            make_grid(ParallelOptions(strategy="fsdp", branch=True), 2, "cpu")
        with pytest.raises(ParallelError, match=r"data\.branches >= 2"):
            make_grid(ParallelOptions(strategy="fsdp", branch=True), 1, "cpu")


@pytest.mark.parametrize("model_name", ["tiny", "wan_1_3b", "phantom_wan_14b"])
@pytest.mark.parametrize("root", ["train", "encode", "sample"])
def test_every_configuration_composes(root, model_name):
    overrides = [f"model={model_name}", "shards=x", *(["latents=y"] if root == "encode" else [])]
    experiments = ["stage1", "stage2", "without_wsa", "without_depth", "without_anchor", "without_holistic"]
    experiments = [[f"experiment={e}"] for e in [*experiments, "without_zero_init"]] if root == "train" else [[]]
    for extra in experiments:
        assert load(root, [*overrides, *extra]).model.name == model_name


def test_published_sizes():
    """1.419 B and 14.288 B parameters: the sizes of Wan2.1's two text-to-video models."""
    for name, billions in (("wan_1_3b", 1.419), ("phantom_wan_14b", 14.288)):
        o = load("train", [f"model={name}", "shards=x"]).model
        with torch.device("meta"):
            m = WorldGenerator(o.wan, o.sawg, o.wsa)
        base = sum(p.numel() for n, p in m.named_parameters() if not is_new(n))
        assert base / 1e9 == pytest.approx(billions, abs=0.001)


def test_page_of_options_is_in_sync():
    """`python -m trainer.config > docs/training_options.md`"""
    assert (CONF.parent / "docs" / "training_options.md").read_text() == page()
