"""Checkpoints in every form: strict keys, clear errors, export and back, the official VAE."""

import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import save_file

from trainer.export import export
from trainer.launch import distributed
from trainer.model.sawg import SawgOptions, WanOptions, WorldGenerator, is_new, is_wsa
from trainer.model.wan import CheckpointError, init_new, load_vae, load_weights, locate
from trainer.model.wsa import WsaOptions
from trainer.state import Ema
from trainer.strategy import OptimizerOptions, Torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "parity"))
import wan_formulas

SIZE = {"layers": 2, "heads": 2, "head_dim": 24, "ffn": 64, "channels": 4, "text": 16, "freq": 32}
WAN = WanOptions(
    num_layers=2, num_attention_heads=2, attention_head_dim=24, ffn_dim=64, in_channels=4, text_dim=16, freq_dim=32
)


def model(wsa: bool) -> WorldGenerator:
    return WorldGenerator(WAN, SawgOptions(), WsaOptions(enabled=wsa))


@pytest.fixture
def official(tmp_path) -> tuple[dict, Path]:
    state = wan_formulas.random_checkpoint(**SIZE)
    torch.save(state, tmp_path / "wan.pth")
    return state, tmp_path / "wan.pth"


@pytest.mark.parametrize("wsa", [False, True])
def test_missing_are_exactly_the_new_modules(official, wsa):
    target = model(wsa)
    missing = load_weights(target, official[1])
    assert missing == sorted(name for name, _ in target.named_parameters() if is_new(name))
    assert torch.equal(target.wan.blocks[1].ffn.net[2].weight, official[0]["blocks.1.ffn.2.weight"])
    assert torch.equal(target.wan.blocks[1].norm2.weight, official[0]["blocks.1.norm3.weight"])


def test_half_precision_files_become_float32_masters(official, tmp_path):
    save_file({k: v.bfloat16() for k, v in official[0].items()}, tmp_path / "wan.safetensors")
    target = model(False)
    load_weights(target, tmp_path / "wan.safetensors")
    assert {p.dtype for p in target.parameters()} == {torch.float32}


def test_wrong_keys_and_shapes_are_named(official, tmp_path):
    state, path = official
    torch.save({k: v for k, v in state.items() if k != "blocks.1.self_attn.q.weight"}, path)
    with pytest.raises(CheckpointError, match=r"missing 1 \(wan.blocks.1.attn1.to_q.weight"):
        load_weights(model(False), path)
    torch.save({**state, "blocks.2.ffn.0.bias": torch.zeros(64)}, path)
    with pytest.raises(CheckpointError, match=r"unexpected 1 \(wan.blocks.2.ffn.net.0.proj.bias"):
        load_weights(model(False), path)
    torch.save({**state, "head.head.bias": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match=r"head.head.bias has shape \(3,\).*\(16,\)"):
        load_weights(model(False), path)


@pytest.mark.fault
def test_absent_truncated_and_incomplete_files(official, tmp_path):
    state, path = official
    with pytest.raises(CheckpointError, match=r"no weights at .*gone\.pth"):
        locate(str(tmp_path / "gone.pth"))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="truncated"):
        load_weights(model(False), path)
    save_file(state, tmp_path / "whole.safetensors")
    data = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        load_weights(model(False), tmp_path / "cut.safetensors")
    folder = tmp_path / "sharded"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "one.safetensors"}}')
    with pytest.raises(CheckpointError, match=r"absent: \['one.safetensors'\]"):
        load_weights(model(False), folder)


@pytest.mark.parametrize(
    ("weights", "patterns", "place"),
    [
        ("hf://owner/repo/Phantom_Wan_14B*", ["Phantom_Wan_14B*", "Phantom_Wan_14B*/*"], ""),
        ("hf://owner/repo/Wan2.1_VAE.pth", ["Wan2.1_VAE.pth", "Wan2.1_VAE.pth/*"], "Wan2.1_VAE.pth"),
        ("hf://owner/repo", ["models_t5*.pth"], ""),
    ],
)
def test_only_what_is_needed_is_fetched_from_the_hub(monkeypatch, tmp_path, weights, patterns, place):
    asked = []

    def download(name, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert locate(weights, "abc", only=["models_t5*.pth"]) == tmp_path / place
    assert asked == [("owner/repo", "abc", patterns)]

    def offline(*arguments, **named):
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(CheckpointError, match=r"no route to host.*HF_ENDPOINT"):
        locate(weights)


@torch.no_grad()
def test_export_loads_here_and_in_diffusers(tmp_path):
    torch.manual_seed(0)
    trained = model(wsa=True)
    for parameter in trained.parameters():
        parameter.add_(0.01)
    with distributed():
        export(Torch(trained, OptimizerOptions()), None, tmp_path)
    again = model(wsa=True)
    assert load_weights(again, tmp_path) == []
    for name, parameter in trained.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name
    base = WanTransformer3DModel.from_pretrained(tmp_path / "transformer")
    assert torch.equal(base.blocks[0].attn1.to_q.weight, trained.wan.blocks[0].attn1.to_q.weight)
    stage1 = model(wsa=False)  # a stage-2 export serves a model without WSA
    assert load_weights(stage1, tmp_path) == []


@torch.no_grad()
def test_export_holds_the_averaged_weights_and_leaves_the_live_ones(tmp_path):
    trained = model(wsa=True)
    ema = Ema(trained, 0.5)
    average = {name: value.clone() for name, value in ema.shadow.items()}
    for parameter in trained.parameters():
        parameter.add_(0.01)
    live = {name: value.clone() for name, value in trained.named_parameters()}
    with distributed():
        export(Torch(trained, OptimizerOptions()), ema, tmp_path)
    again = model(wsa=True)
    load_weights(again, tmp_path)
    assert all(torch.equal(value, average[name]) for name, value in again.named_parameters())
    assert all(torch.equal(value, live[name]) for name, value in trained.named_parameters())


@torch.no_grad()
def test_stage_2_starts_from_a_stage_1_export(tmp_path):
    first = model(wsa=False)
    init_new(first, ["geometry.out.weight", "geometry.out.bias"])
    first.geometry.out.weight.add_(1)
    with distributed():
        export(Torch(first, OptimizerOptions()), None, tmp_path)
    second = model(wsa=True)
    missing = load_weights(second, tmp_path)
    init_new(second, missing)
    assert missing
    assert all(is_wsa(name) for name in missing)
    assert torch.equal(second.geometry.out.weight, first.geometry.out.weight)
    assert torch.equal(second.wan.blocks[0].wsa.attn.to_q.weight, first.wan.blocks[0].attn1.to_q.weight)


@pytest.mark.slow
def test_official_vae_file_loads_strictly(tmp_path):
    """Random weights under the official names (diffusers' conversion turned round), at the published size."""
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    torch.manual_seed(0)
    vae = AutoencoderKLWan()
    state = vae.state_dict()
    names = {new: old for old, new in _official_vae_names(convert_wan_vae_to_diffusers, set(state)).items()}
    torch.save({names[k]: v for k, v in state.items()}, tmp_path / "Wan2.1_VAE.pth")
    loaded = load_vae(str(tmp_path / "Wan2.1_VAE.pth"))
    assert all(torch.equal(state[k], v) for k, v in loaded.state_dict().items())
    torch.save({names[k]: v for k, v in list(state.items())[1:]}, tmp_path / "Wan2.1_VAE.pth")
    with pytest.raises(CheckpointError, match="missing 1"):
        load_vae(str(tmp_path / "Wan2.1_VAE.pth"))


def _official_vae_names(convert, wanted: set[str]) -> dict[str, str]:
    """Official name -> diffusers name: every name the official module tree can have, kept when it lands in `wanted`.

    Tree: github.com/Wan-Video/Wan2.1 wan/modules/vae.py (Encoder3d, Decoder3d: conv1, downsamples / upsamples, middle,
    head; ResidualBlock.residual 0, 2, 3, 6 and shortcut; Resample.resample.1 and time_conv; AttentionBlock).
    """
    candidates = ["conv1", "conv2"]
    for side, levels in (("encoder", "downsamples"), ("decoder", "upsamples")):
        candidates += [f"{side}.conv1", f"{side}.head.0", f"{side}.head.2"]
        blocks = [f"{side}.{levels}.{i}" for i in range(15)] + [f"{side}.middle.{i}" for i in range(3)]
        leaves = ("residual.0", "residual.2", "residual.3", "residual.6", "shortcut", "resample.1", "time_conv", "norm",
                  "to_qkv", "proj")  # fmt: skip
        candidates += [f"{block}.{leaf}" for block in blocks for leaf in leaves]
    names = [f"{c}.{kind}" for c in candidates for kind in ("weight", "bias", "gamma")]
    found = {}
    for name in names:
        for new in convert({name: 0}):
            if new in wanted and new not in found.values():
                found[name] = new
    assert set(found.values()) == wanted, sorted(wanted - set(found.values()))[:5]
    return found
