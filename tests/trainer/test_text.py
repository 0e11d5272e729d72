"""umT5 in both layouts: the official file against its formulas written out again, and transformers' folder."""

import math

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn.functional import embedding, gelu, softmax
from transformers import PreTrainedTokenizerFast

from trainer.model.encoders import EncoderOptions, WanText, load_encoders
from trainer.model.umt5 import load_text_encoder
from trainer.model.wan import CheckpointError

WORDS = ["<pad>", "</s>", "<unk>", "a", "person", "walks", "&"]
WIDTH, HEADS, HEAD, HIDDEN, LAYERS, BUCKETS = 24, 3, 10, 40, 2, 8  # HEADS * HEAD differs from WIDTH on purpose
CPU = torch.device("cpu")


def official_state() -> dict[str, torch.Tensor]:
    """Random weights under the names of wan/modules/t5.py's T5Encoder, shared_pos=False."""
    g = torch.Generator().manual_seed(0)

    def weight(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=g) / math.sqrt(shape[-1])).bfloat16()

    state = {"token_embedding.weight": weight(len(WORDS), WIDTH), "norm.weight": weight(WIDTH)}
    for i in range(LAYERS):
        block = {f"attn.{n}": (HEADS * HEAD, WIDTH) for n in "qkv"} | {"attn.o": (WIDTH, HEADS * HEAD)}
        block |= {"norm1": (WIDTH,), "norm2": (WIDTH,), "pos_embedding.embedding": (BUCKETS, HEADS)}
        block |= {"ffn.gate.0": (HIDDEN, WIDTH), "ffn.fc1": (HIDDEN, WIDTH), "ffn.fc2": (WIDTH, HIDDEN)}
        state |= {f"blocks.{i}.{name}.weight": weight(*shape) for name, shape in block.items()}
    return state


def formulas(state: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """T5's encoder [tokens, WIDTH] by its published formulas, float32, one sentence, written out with plain loops."""
    w = {name: value.float() for name, value in state.items()}

    def norm(x, name):
        return w[name] * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def bucket(distance: int) -> int:
        """Half of them for keys after the query; in each half one a distance, then logarithmic up to 128."""
        half, exact = BUCKETS // 2, BUCKETS // 4
        d = abs(distance)
        steps = d if d < exact else exact + int(math.log(d / exact) / math.log(128 / exact) * (half - exact))
        return (half if distance > 0 else 0) + min(steps, half - 1)

    x, n = embedding(ids, w["token_embedding.weight"]), len(ids)
    places = torch.tensor([[bucket(key - query) for key in range(n)] for query in range(n)])
    for i in range(LAYERS):
        b = f"blocks.{i}."
        y = norm(x, f"{b}norm1.weight")
        q, k, v = ((y @ w[f"{b}attn.{name}.weight"].T).view(n, HEADS, HEAD) for name in "qkv")
        bias = w[f"{b}pos_embedding.embedding.weight"][places]  # [query, key, head]
        weights = softmax(torch.einsum("qhc,khc->qkh", q, k) + bias, dim=1)  # T5 does not scale
        attended = torch.einsum("qkh,khc->qhc", weights, v).reshape(n, -1)
        x = x + attended @ w[f"{b}attn.o.weight"].T
        y = norm(x, f"{b}norm2.weight")
        gate = gelu(y @ w[f"{b}ffn.gate.0.weight"].T, approximate="tanh")
        x = x + (gate * (y @ w[f"{b}ffn.fc1.weight"].T)) @ w[f"{b}ffn.fc2.weight"].T
    return norm(x, "norm.weight")


def write_tokenizer(folder) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)


@pytest.fixture
def official(tmp_path):
    """A folder as Wan-AI/Wan2.1-T2V-1.3B lays it out."""
    write_tokenizer(tmp_path / "google" / "umt5-xxl")
    state = official_state()
    torch.save(state, tmp_path / "models_t5_umt5-xxl-enc-bf16.pth")
    return tmp_path, state


@torch.no_grad()
def test_official_file_gives_the_published_formulas(official):
    folder, state = official
    encoder, _ = load_text_encoder(str(folder))
    assert {p.dtype for p in encoder.parameters()} == {torch.bfloat16}
    ids = torch.randint(0, len(WORDS), (40,), generator=torch.Generator().manual_seed(1))  # reaches every bucket
    got = encoder.float()(ids[None]).last_hidden_state[0]
    expected = formulas(state, ids)
    assert float((got - expected).norm() / expected.norm()) < 1e-5


@torch.no_grad()
def test_both_layouts_give_the_same_embedding(official, tmp_path):
    folder, _ = official
    encoder, _ = load_text_encoder(str(folder))
    encoder.save_pretrained(tmp_path / "diffusers" / "text_encoder")
    write_tokenizer(tmp_path / "diffusers" / "tokenizer")
    texts = [
        load_encoders(EncoderOptions(video="space_to_depth", text_weights=str(at)), CPU).text
        for at in (folder, tmp_path / "diffusers")
    ]
    first, second = (text.encode("a person walks") for text in texts)
    assert torch.equal(first, second)
    assert first.shape == (4, WIDTH)  # three words and </s>
    assert first.dtype == torch.float32


def test_text_is_cleaned_cut_and_never_empty(official):
    encoder, tokenizer = load_text_encoder(str(official[0]))
    text = WanText(encoder, tokenizer, 3, CPU)
    assert torch.equal(text.encode("  a \n person&nbsp; "), text.encode("a person"))
    assert torch.equal(text.encode("a &amp;amp; a"), text.encode("a & a"))
    assert len(text.encode("a person walks a person")) == 3
    assert len(text.encode("")) == 1


@pytest.mark.fault
def test_wrong_text_weights_are_named(official):
    folder, state = official
    path = folder / "models_t5_umt5-xxl-enc-bf16.pth"
    gone = "blocks.1.ffn.fc1.weight"
    torch.save({name: value for name, value in state.items() if name != gone}, path)
    with pytest.raises(CheckpointError, match=r"missing 1 \(encoder.block.1.layer.1.DenseReluDense.wi_1.weight"):
        load_text_encoder(str(folder))
    torch.save(state | {"decoder.norm.weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"unexpected 1 \(decoder.norm.weight"):
        load_text_encoder(str(folder))
    torch.save(state | {gone: torch.zeros(HIDDEN, WIDTH + 1)}, path)
    with pytest.raises(CheckpointError, match=r"wi_1"):
        load_text_encoder(str(folder))
    torch.save({"visual.weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="no umT5 encoder"):
        load_text_encoder(str(folder))
    path.unlink()
    with pytest.raises(CheckpointError, match="holds no umT5"):
        load_text_encoder(str(folder))
