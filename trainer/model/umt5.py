"""Wan's umT5 text encoder in its two forms: transformers' folders, and the official `models_t5_umt5-xxl-enc-bf16.pth`.

The official file holds the encoder of github.com/Wan-Video/Wan2.1 (wan/modules/t5.py, T5Encoder with a position bias in
every block), which is the umT5 of transformers under other names. diffusers has no converter for it.
"""

import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from trainer.model.wan import CheckpointError, load_strictly, locate, open_checkpoint

# The names inside a block, official -> transformers. `gate` goes through the GELU: it is wi_0.
BLOCK = {
    "norm1": "layer.0.layer_norm",
    "attn.q": "layer.0.SelfAttention.q",
    "attn.k": "layer.0.SelfAttention.k",
    "attn.v": "layer.0.SelfAttention.v",
    "attn.o": "layer.0.SelfAttention.o",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}
OFFICIAL = "models_t5*.pth"
OFFICIAL_TOKENIZER = "google/umt5-xxl"  # beside it in Wan-AI's repositories


def load_text_encoder(weights: str, revision: str | None = None) -> tuple[nn.Module, Callable]:
    """(UMT5EncoderModel in bfloat16, tokenizer) from a folder or hf:// repository.

    Either the diffusers layout (`text_encoder/` and `tokenizer/`) or Wan's own (`models_t5*.pth` and
    `google/umt5-xxl/`). Raises CheckpointError when it is neither, or when the weights do not fit.
    """
    from transformers import AutoTokenizer, UMT5EncoderModel

    path = locate(weights, revision, only=["text_encoder/*", "tokenizer/*", OFFICIAL, f"{OFFICIAL_TOKENIZER}/*"])
    official = sorted(path.glob(OFFICIAL))
    if (path / "text_encoder").is_dir() and (path / "tokenizer").is_dir():
        try:
            encoder, report = UMT5EncoderModel.from_pretrained(
                path / "text_encoder", dtype=torch.bfloat16, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path / 'text_encoder'} cannot be read ({error})") from error
        wrong = {name: sorted(report[name]) for name in ("missing_keys", "unexpected_keys") if report[name]}
        if wrong:
            raise CheckpointError(f"{path / 'text_encoder'} does not fit umT5: {wrong}")
        words = path / "tokenizer"
    elif len(official) == 1 and (path / OFFICIAL_TOKENIZER).is_dir():
        encoder, words = official_encoder(official[0]), path / OFFICIAL_TOKENIZER
    else:
        raise CheckpointError(
            f"{path} holds no umT5: expected text_encoder/ and tokenizer/ (diffusers), or one {OFFICIAL} and "
            f"{OFFICIAL_TOKENIZER}/ (Wan). Set model.encoders.text_weights"
        )
    return encoder.eval().requires_grad_(False), AutoTokenizer.from_pretrained(words)


def official_encoder(path: Path) -> nn.Module:
    """UMT5EncoderModel in bfloat16 from the official file; its sizes are read off the tensors. Strict."""
    from transformers import UMT5Config, UMT5EncoderModel

    with open_checkpoint(path) as checkpoint:
        state = {transformers_name(name): checkpoint.read(name).bfloat16() for name in checkpoint.names}
    try:
        first = "encoder.block.0.layer."
        buckets, heads = state[f"{first}0.SelfAttention.relative_attention_bias.weight"].shape
        vocabulary, width = state["shared.weight"].shape
        config = UMT5Config(
            vocab_size=vocabulary,
            d_model=width,
            d_kv=len(state[f"{first}0.SelfAttention.q.weight"]) // heads,
            d_ff=len(state[f"{first}1.DenseReluDense.wi_0.weight"]),
            num_layers=1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.block.")),
            num_heads=heads,
            relative_attention_num_buckets=buckets,
            relative_attention_max_distance=128,  # T5RelativeEmbedding's max_dist
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    except KeyError as error:
        raise CheckpointError(f"{path} is no umT5 encoder of Wan: it has no {error}") from error
    with torch.device("meta"):
        encoder = UMT5EncoderModel(config)
    load_strictly(encoder, state | {"encoder.embed_tokens.weight": state["shared.weight"]}, path)
    return encoder


def transformers_name(name: str) -> str:
    """transformers' name of an official parameter; an unknown name is kept and then refused as unexpected."""
    outside = {"token_embedding.weight": "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)\.weight", name)
    if block and block[2] in BLOCK:
        return f"encoder.block.{block[1]}.{BLOCK[block[2]]}.weight"
    return outside.get(name, name)
