"""Checkpoints with random weights in the official file formats, so that speed and loading can be tried without a hub.

    python -m engine.perception.random_weights ROOT [key=value ...]      full-size architectures
    python -m engine.perception.random_weights ROOT --small              shrunken ones

What comes out of such networks means nothing. The lock file records them as random, and a run takes them only with
weights.random=true.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from engine.perception.catalogue import CATALOGUE
from engine.perception.weights import LOCK, RANDOM, sha256


def write(root: Path, names: list[str], small: bool, seed: int = 0) -> None:
    """Write every file of the named catalogue entries and the lock file. `small` shrinks what has a configuration."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    lock = {}
    for name in names:
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(seed)
        if name.startswith("moge"):
            _moge(folder, name.split("-")[2], small)
        elif name.startswith("sam2"):
            _sam2(folder, name.removeprefix("sam2.1-hiera-"))
        elif name.startswith("depth-anything"):
            _depth_anything(folder, name.removeprefix("depth-anything-v2-"), small)
        elif name.startswith("grounding-dino"):
            _grounding_dino(folder, name, small)
        else:
            _fixed_names(folder, name, small)
        for file in CATALOGUE[name].files:
            path = folder / file.name
            lock[f"{name}/{file.name}"] = {
                "repository": RANDOM,
                "revision": RANDOM,
                "bytes": path.stat().st_size,
                "sha256": sha256(path),
            }
    (root / LOCK).write_text(json.dumps(lock, indent=1, sort_keys=True) + "\n")


def moge_config(size: str, small: bool = False) -> dict[str, Any]:
    """`model_config` of a MoGe-2 checkpoint.

    vitl is microsoft/MoGe configs/train/v2.json. vits and vitb take two feature levels and one neck block per level:
    with these the architectures have the published files' sizes.
    """
    width = {"vits": 384, "vitb": 768, "vitl": 1024}[size]
    levels, neck_blocks = ([5, 11, 17, 23], 2) if size == "vitl" else ([5, 11], 1)
    dims = [32, 32, 16, 16, 8] if small else [width, 256, 128, 64, 32]
    resamplers = ["conv_transpose"] * 3 + ["bilinear"]
    common = {"res_block_in_norm": "none", "res_block_hidden_norm": "none", "resamplers": resamplers}

    def head(channels: int) -> dict[str, Any]:
        out = [None, None, None, None, channels]
        return {"dim_in": dims, "dim_out": out, "dim_res_blocks": dims, "num_res_blocks": [0, 1, 1, 1, 0], **common}

    blocks = [0, neck_blocks, neck_blocks, neck_blocks, 0]
    first = [dims[0] + 2, 2, 2, 2, 2]  # image coordinates go in at every level
    return {
        "encoder": {"backbone": f"dinov2_{size}14", "intermediate_layers": levels, "dim_out": dims[0]},
        "neck": {"dim_in": first, "dim_out": None, "dim_res_blocks": dims, "num_res_blocks": blocks, **common},
        "points_head": head(3),
        "normal_head": head(3),
        "mask_head": head(1),
        "scale_head": {"dims": [width, width, width, 1]},
        "remap_output": "exp",
        "num_tokens_range": [1200, 3600],
    }


def _moge(folder: Path, size: str, small: bool) -> None:
    import torch
    from moge.model.v2 import MoGeModel

    config = moge_config(size, small)
    state = MoGeModel(**config).state_dict()
    # x and y follow the image coordinates, z falls towards the bottom and most pixels are valid: a noisy pinhole
    # camera over a floor, so that what comes after the network has the work it has in production
    for layer in (
        "neck.input_blocks.4.weight",
        "points_head.input_blocks.4.weight",
        "points_head.output_blocks.4.weight",
    ):
        state[layer][:2] *= 0.1
        state[layer][0, 0] = state[layer][1, 1] = 1
    state["points_head.output_blocks.4.weight"][2, 1] = -1
    state["mask_head.output_blocks.4.bias"] += 2
    torch.save({"model_config": config, "model": state}, folder / "model.pt")


def _sam2(folder: Path, variant: str) -> None:
    import torch

    from engine.perception.sam2 import build_sam2

    state = build_sam2(variant).state_dict()
    torch.save({"model": state}, folder / f"sam2.1_hiera_{variant.replace('-', '_')}.pt")


def depth_anything_config(variant: str, small: bool) -> Any:
    """transformers' DepthAnythingConfig of a published variant."""
    from transformers import DepthAnythingConfig, Dinov2Config

    size = variant.split("-")[-1]
    hidden, heads, layers, taps, neck, fusion = {
        "small": (384, 6, 12, [3, 6, 9, 12], [48, 96, 192, 384], 64),
        "base": (768, 12, 12, [3, 6, 9, 12], [96, 192, 384, 768], 128),
        "large": (1024, 16, 24, [5, 12, 18, 24], [256, 512, 1024, 1024], 256),
    }[size]
    if small:
        hidden, heads, layers, taps, neck, fusion = 32, 2, 4, [1, 2, 3, 4], [8, 8, 16, 16], 8
    backbone = Dinov2Config(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_hidden_layers=layers,
        image_size=518,
        patch_size=14,
        out_indices=taps,
        apply_layernorm=True,
        reshape_hidden_states=False,
    )
    return DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=hidden,
        neck_hidden_sizes=neck,
        fusion_hidden_size=fusion,
        depth_estimation_type="metric" if variant.startswith("metric") else "relative",
        max_depth=(80 if "outdoor" in variant else 20) if variant.startswith("metric") else 1,
    )


def _depth_anything(folder: Path, variant: str, small: bool) -> None:
    from transformers import DepthAnythingForDepthEstimation

    config = depth_anything_config(variant, small)
    DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    _json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "DPTImageProcessor",
            "size": {"height": 518, "width": 518},
            "ensure_multiple_of": 14,
            "keep_aspect_ratio": True,
            "resample": 3,
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
        },
    )


WORDS = ["person", "bicycle", "motorcycle", "skateboard", "horse", "surfboard", "dog", "car", "man", "woman"]


def grounding_dino_config(name: str, small: bool) -> Any:
    """transformers' GroundingDinoConfig of a published variant."""
    from transformers import GroundingDinoConfig

    if small:
        return GroundingDinoConfig(
            backbone_config={
                "model_type": "swin",
                "embed_dim": 8,
                "depths": [1, 1, 1, 1],
                "num_heads": [1, 1, 2, 2],
                "window_size": 4,
                "out_indices": [2, 3, 4],
            },
            text_config={
                "model_type": "bert",
                "vocab_size": 64,
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 64,
                "max_position_embeddings": 256,
            },
            d_model=32,
            encoder_layers=1,
            decoder_layers=2,  # the box heads of layers 1.. are tied to layer 0
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            num_queries=20,
        )
    large = name.endswith("base")
    backbone = {
        "model_type": "swin",
        "embed_dim": 128 if large else 96,
        "depths": [2, 2, 18, 2] if large else [2, 2, 6, 2],
        "num_heads": [4, 8, 16, 32] if large else [3, 6, 12, 24],
        "window_size": 12 if large else 7,
        "out_indices": [2, 3, 4],
    }
    return GroundingDinoConfig(backbone_config=backbone, text_config={"model_type": "bert", "vocab_size": 30522})


def _grounding_dino(folder: Path, name: str, small: bool) -> None:
    from transformers import (
        BertTokenizerFast,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
    )

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *WORDS]
    config = grounding_dino_config(name, small)
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    side = {"shortest_edge": 64, "longest_edge": 112} if small else {"shortest_edge": 800, "longest_edge": 1333}
    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}, do_lower_case=True)
    GroundingDinoProcessor(GroundingDinoImageProcessor(size=side), tokenizer).save_pretrained(folder)
    _complete(folder, ("preprocessor_config.json", "special_tokens_map.json"))


def _fixed_names(folder: Path, name: str, small: bool) -> None:
    import transformers

    labels = dict(enumerate(["person", "bicycle", "car", "motorbike", "skateboard", "horse", "surfboard"]))
    if name.startswith("rtdetr"):
        shrink: dict[str, Any] = {
            "backbone_config": {
                "model_type": "rt_detr_resnet",
                "embedding_size": 8,
                "hidden_sizes": [8, 8, 16, 16],
                "depths": [1, 1, 1, 1],
                "layer_type": "basic",
                "out_features": ["stage2", "stage3", "stage4"],
            },
            "encoder_in_channels": [8, 16, 16],
            "encoder_hidden_dim": 16,
            "d_model": 16,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 16,
            "decoder_ffn_dim": 16,
            "decoder_layers": 2,
            "decoder_in_channels": [16, 16, 16],
            "num_queries": 10,
        }
        config = transformers.RTDetrConfig(id2label=labels, **(shrink if small else {}))
        transformers.RTDetrForObjectDetection(config).save_pretrained(folder)
        side = 64 if small else 640
        transformers.RTDetrImageProcessor(size={"height": side, "width": side}).save_pretrained(folder)
    else:
        side = 64 if small else 576
        transformers.RfDetrForObjectDetection(rf_detr_config(side, small, labels)).save_pretrained(folder)
        transformers.RfDetrImageProcessor(size={"height": side, "width": side}).save_pretrained(folder)
    _complete(folder, ("preprocessor_config.json",))


def rf_detr_config(side: int, small: bool, labels: dict[int, str]) -> Any:
    """transformers' RfDetrConfig of RF-DETR medium: the settings of roboflow/rf-detr's RFDETRMediumConfig (576 pixels,
    patches of 16 in 2 x 2 windows, 4 decoder layers, 91 classes), which make the published 33.7 M parameters."""
    from transformers import RfDetrConfig

    backbone = {"model_type": "rf_detr_dinov2", "patch_size": 16, "num_windows": 2, "num_register_tokens": 0}
    if small:
        backbone |= {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
        backbone |= {"image_size": side, "out_features": ["stage2", "stage4"]}
        return RfDetrConfig(
            backbone_config=backbone,
            d_model=16,
            decoder_layers=2,
            decoder_n_points=2,
            decoder_ffn_dim=32,
            decoder_self_attention_heads=2,
            decoder_cross_attention_heads=2,
            num_queries=10,
            group_detr=2,
            id2label=labels,
        )
    backbone |= {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}
    backbone |= {"image_size": side, "out_features": ["stage3", "stage6", "stage9", "stage12"]}
    names = {n: labels.get(n, f"coco {n}") for n in range(91)}
    return RfDetrConfig(backbone_config=backbone, decoder_layers=4, decoder_n_points=2, id2label=names)


def _complete(folder: Path, names: tuple[str, ...]) -> None:
    """Newer transformers write one processor_config.json; the published folders have the older separate files."""
    joint = folder / "processor_config.json"
    for name in names:
        if not (folder / name).is_file():
            content = json.loads(joint.read_text()) if joint.is_file() else {}
            _json(folder / name, content.get("image_processor", content) if name.startswith("pre") else {})
    joint.unlink(missing_ok=True)


def _json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def main(arguments: list[str] | None = None) -> int:
    from engine.perception.foundation import from_dotlist, weight_names

    parser = argparse.ArgumentParser(prog="python -m engine.perception.random_weights")
    parser.add_argument("root", type=Path)
    parser.add_argument("--small", action="store_true", help="shrunken architectures")
    parser.add_argument("options", nargs="*", help="key=value of the foundation perception")
    given = parser.parse_args(arguments)
    write(given.root, weight_names(from_dotlist(given.options)), given.small)
    return 0


if __name__ == "__main__":
    sys.exit(main())
