"""Codecs: what goes in comes out, and equal values give equal bytes whatever the heap held before."""

import hashlib
import io
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, scalar_dtypes
from shard_samples import members, values

from shards import codec

KEY = "0123456789ab-0000"


@settings(deadline=None, max_examples=40)
@given(
    st.dictionaries(st.sampled_from("abcd"), arrays(scalar_dtypes(), array_shapes(max_dims=3, max_side=5, min_side=0)))
)
def test_npz_round_trip(value):
    data = codec.encode("camera.npz", value)
    assert data == codec.encode("camera.npz", dict(reversed(value.items())))
    with np.load(io.BytesIO(data), allow_pickle=False) as other:  # numpy's own reader
        assert set(other.files) == set(value)
    decoded = codec.decode("camera.npz", data)
    for name, array in value.items():
        assert decoded[name].dtype == array.dtype
        np.testing.assert_array_equal(decoded[name], array)
    assert {n: (a.dtype, a.shape) for n, a in value.items()} == codec.array_headers("camera.npz", data)


@settings(deadline=None, max_examples=20)
@given(arrays(np.uint16, st.tuples(st.integers(1, 4), st.integers(2, 20), st.integers(2, 20))))
def test_depth_is_lossless(code):
    data = codec.encode("condition_anchor_depth.mkv", code, fps=16)
    np.testing.assert_array_equal(codec.decode("condition_anchor_depth.mkv", data), code)
    assert data == codec.encode("condition_anchor_depth.mkv", code, fps=16)


@settings(deadline=None, max_examples=20)
@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(4))))
def test_rgba_round_trip(image):
    np.testing.assert_array_equal(codec.decode("identity_00.png", codec.encode("identity_00.png", image)), image)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)
    )
)
def test_json_and_text_round_trip(value):
    try:
        data = codec.encode("meta.json", value)
    except UnicodeEncodeError:  # lone surrogates have no utf-8
        return
    assert codec.decode("meta.json", data) == value


def test_json_refuses_nan():
    with pytest.raises(ValueError, match=r"meta\.json"):
        codec.encode("meta.json", {"x": float("nan")})


def smooth_clip(frames: int = 9, height: int = 48, width: int = 64) -> np.ndarray:
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    waves = [128 + 60 * np.sin((x + 2 * t) / 11), 128 + 60 * np.cos((y - t) / 9), 128 + 50 * np.sin((x + y) / 15)]
    return np.stack(waves, -1).astype(np.uint8)


def test_video_is_close_unbiased_and_of_the_stated_rate():
    clip = smooth_clip()
    data = codec.encode("target.mp4", clip, fps=23.976)
    error = codec.decode("target.mp4", data).astype(float) - clip
    assert 10 * np.log10(255**2 / (error**2).mean()) > 33  # chroma is stored at half size
    assert np.abs(error.mean((0, 1, 2))).max() < 1  # a wrong matrix or range shifts colours by several levels
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        assert float(stream.average_rate) == pytest.approx(23.976, abs=1e-3)
        assert stream.codec_context.color_range == 1  # limited, as tagged
        assert data.index(b"moov") < data.index(b"mdat")  # players can stream it


def test_single_frame_video():
    assert codec.decode("target.mp4", codec.encode("target.mp4", smooth_clip(1), fps=16)).shape == (1, 48, 64, 3)


def print_hashes() -> None:
    clip = smooth_clip(41)
    depth = codec.encode("condition_anchor_depth.mkv", clip[..., 0].astype(np.uint16) * 99, fps=16)
    out = codec.encode("target.mp4", clip, fps=16), depth, codec.encode("masks.npz", {"a": clip})
    print([hashlib.sha256(data).hexdigest() for data in out])


def test_bytes_do_not_depend_on_the_heap():
    """Some x264 builds read uninitialised memory unless told to be CPU-independent: fill the heap two ways."""
    script = "import sys; sys.path.insert(0, sys.argv[1]); from test_codec import print_hashes; print_hashes()"
    found = set()
    for perturb in ("1", "165"):
        env = os.environ | {"MALLOC_PERTURB_": perturb}
        folder = str(Path(__file__).parent)
        run = subprocess.run(
            [sys.executable, "-c", script, folder], env=env, capture_output=True, text=True, check=True
        )
        found.add(run.stdout)
    assert len(found) == 1


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("target.mp4", np.zeros((5, 15, 16, 3), np.uint8), "even sizes, found 15x16"),
        ("target.mp4", np.zeros((5, 16, 16, 3), np.float32), "expected uint8"),
        ("target.mp4", np.zeros((0, 16, 16, 3), np.uint8), "expected uint8"),
        ("condition_anchor_depth.mkv", np.zeros((5, 16, 16), np.float32), "expected uint16"),
        ("identity_00.png", np.zeros((5, 5, 3), np.uint8), r"\[h,w,4\]"),
        ("camera.npz", {"a": np.array([object()])}, "pickled"),
        ("surprise.bin", b"", "no member of schema"),
    ],
)
def test_wrong_values_are_refused_by_name(name, value, message):
    with pytest.raises(ValueError, match=message) as error:
        codec.encode(name, value, fps=16)
    assert name in str(error.value)


def test_fps_must_be_positive():
    with pytest.raises(ValueError, match="fps"):
        codec.encode("target.mp4", smooth_clip(), fps=0)


@pytest.mark.parametrize("name", [n for n in values(KEY) if not n.endswith((".txt", ".mkv"))])
def test_damaged_bytes_are_a_value_error_that_names_the_member(name):
    data = members(KEY)[name]
    with pytest.raises(ValueError, match=name):
        codec.decode(name, data[: len(data) // 3])
