"""The architectures that the loaders build have the names and the file sizes of the published checkpoints.

The sizes are facts about the published files, found apart from the code that builds the architectures: a layer too
many, too few or of another width would show.
"""

from pathlib import Path
from unittest import mock

import pytest
import torch

from engine.perception.catalogue import CATALOGUE
from engine.perception.random_weights import moge_config, rf_detr_config, write
from engine.perception.sam2 import YAML, build_sam2

KEYS = Path(__file__).resolve().parents[2] / "fixtures" / "state_keys"
HEADER = 450  # bytes of zip headers, names and alignment that torch.save spends on a tensor, at most


def listed(name: str) -> dict[str, tuple[int, ...]]:
    rows = [line.split() for line in (KEYS / f"{name}.txt").read_text().splitlines() if not line.startswith("#")]
    return {key: () if shape == "scalar" else tuple(map(int, shape.split("x"))) for key, shape in rows}


def moge_state(size: str) -> dict[str, torch.Tensor]:
    """The architecture without memory behind it."""
    from moge.model.v2 import MoGeModel

    linspace = torch.linspace  # its values are read while the network is built
    on_cpu = mock.patch.object(torch, "linspace", lambda *a, **k: linspace(*a, **{**k, "device": "cpu"}))
    with on_cpu, torch.device("meta"):
        return MoGeModel(**moge_config(size)).state_dict()


def assert_published(name: str, state: dict[str, torch.Tensor]) -> None:
    published = CATALOGUE[name].files[0].bytes
    assert published is not None
    tensors = sum(v.numel() * v.element_size() for v in state.values())
    assert tensors < published < tensors + HEADER * len(state)


@pytest.mark.parametrize("size", ["vitl", "vitb", "vits"])
def test_moge(size):
    state = moge_state(size)
    if size != "vitb":
        assert {k: tuple(v.shape) for k, v in state.items()} == listed(f"moge-2-{size}-normal")
    assert_published(f"moge-2-{size}-normal", state)


@pytest.mark.parametrize("variant", [pytest.param(v, marks=pytest.mark.slow if v == "large" else []) for v in YAML])
def test_sam2(variant):
    state = build_sam2(variant).state_dict()
    if variant == "tiny":
        assert {k: tuple(v.shape) for k, v in state.items()} == listed("sam2.1-hiera-tiny")
    assert_published(f"sam2.1-hiera-{variant}", state)


def test_depth_anything_to_the_byte(tmp_path):
    from safetensors import safe_open

    write(tmp_path, ["depth-anything-v2-small"], small=False)
    file = tmp_path / "depth-anything-v2-small" / "model.safetensors"
    assert file.stat().st_size == CATALOGUE["depth-anything-v2-small"].files[0].bytes
    with safe_open(file, "pt") as tensors:
        assert {k: tuple(tensors.get_slice(k).get_shape()) for k in tensors.keys()} == listed("depth-anything-v2-small")  # noqa: SIM118


def test_detectors_by_their_published_number_of_parameters():
    """Millions, as their model cards and papers say: RF-DETR medium 33.7, RT-DETR R50 42 and Grounding DINO tiny 172
    (some files hold a weight twice, so their sizes say less)."""
    import transformers as t

    with torch.device("meta"):
        networks = {
            33.7: t.RfDetrForObjectDetection(rf_detr_config(576, False, {0: "person"})),
            42: t.RTDetrForObjectDetection(t.RTDetrConfig()),
            172: t.GroundingDinoForObjectDetection(t.GroundingDinoConfig()),
        }
    for published, network in networks.items():
        millions = sum(p.numel() for p in network.parameters()) / 1e6
        assert abs(millions - published) < 0.025 * published


def test_a_changed_architecture_would_show():
    state = moge_state("vits")
    state.pop("neck.res_blocks.1.0.layers.2.weight")
    with pytest.raises(AssertionError):
        assert_published("moge-2-vits-normal", state)
