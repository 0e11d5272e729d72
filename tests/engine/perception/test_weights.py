"""Weights: fetched from a hub that breaks off, from a mirror, or put there by hand; verified; clear when wrong."""

import contextlib
import hashlib
import http.server
import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from engine.perception import weights
from engine.perception.catalogue import CATALOGUE, File, Weights
from engine.perception.weights import WeightsError, WeightsOptions, check, fetch, main, provenance, require, table

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BLOB = bytes(range(256)) * 100_000  # 26 MB: half is more than one 10 MB chunk of the client, so a part is kept
CONFIG = b'{"model_type": "tiny"}'
FILES = {"model.pt": BLOB, "config.json": CONFIG}


@pytest.fixture
def catalogue(monkeypatch):
    """One entry with a pinned checkpoint and an unpinned configuration file."""
    digest = hashlib.sha256(BLOB).hexdigest()
    entry = Weights("owner/tiny", COMMIT, "MIT", (File("model.pt", len(BLOB), digest), File("config.json")))
    monkeypatch.setattr(weights, "CATALOGUE", {"tiny": entry, "closed": replace(entry, licence="CC-BY-NC-4.0")})
    return entry


@pytest.fixture
def hub():
    """A local server with the hub's layout. It breaks the first download of model.pt off in the middle."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        broke_off, ranges = False, []

        def do_HEAD(self):
            self._answer(body=False)

        def do_GET(self):
            self._answer(body=True)

        def _answer(self, body):
            name = self.path.split("/")[-1]
            if not self.path.startswith("/owner/tiny/resolve/") or name not in FILES:
                self.send_error(404)
                return
            if self.path.split("/")[4] not in (COMMIT, "main"):
                self.send_response(404)
                self.send_header("X-Error-Code", "RevisionNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data, first = FILES[name], 0
            if "Range" in self.headers:
                first = int(self.headers["Range"].split("=")[1].split("-")[0])
                Handler.ranges.append((name, first))
            self.send_response(206 if first else 200)
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(data) - first))
            if first:
                self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            if not body:
                return
            if name == "model.pt" and not Handler.broke_off:
                Handler.broke_off = True
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            self.wfile.write(data[first:])

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", Handler
    server.shutdown()


def options(root, mirror="", **more) -> WeightsOptions:
    return WeightsOptions(root=str(root), mirror=str(mirror), **more)


def kinds(opts, **more):
    return {p.file: p.kind for p in check(opts, ["tiny"], **more)}


def by_hand(root: Path, files=FILES) -> Path:
    (root / "tiny").mkdir(parents=True)
    for name, data in files.items():
        (root / "tiny" / name).write_bytes(data)
    return root


def test_a_download_that_breaks_off_is_resumed_and_verified(catalogue, hub, tmp_path):
    url, handler = hub
    opts = options(tmp_path, url)
    assert kinds(opts) == {"tiny/model.pt": "missing", "tiny/config.json": "missing"}
    with contextlib.suppress(WeightsError):  # the client may resume by itself or give up; what it had is kept
        fetch(opts, ["tiny"], say=lambda _: None)
    fetch(opts, ["tiny"], say=lambda _: None)
    assert (tmp_path / "tiny" / "model.pt").read_bytes() == BLOB
    assert any(name == "model.pt" and first > 0 for name, first in handler.ranges), "nothing was resumed"
    assert kinds(opts) == {}
    assert provenance(opts, "tiny")["revision"] == COMMIT
    assert provenance(opts, "tiny")["sha256"] == hashlib.sha256(BLOB).hexdigest()


@pytest.fixture
def calm_hub(hub, monkeypatch):
    """The same server without the break, named by HF_ENDPOINT."""
    hub[1].broke_off = True
    monkeypatch.setenv("HF_ENDPOINT", hub[0])


def test_hf_endpoint_names_the_hub(catalogue, calm_hub, tmp_path):
    said = []
    fetch(options(tmp_path), ["tiny"], say=said.append)
    assert (tmp_path / "tiny" / "model.pt").read_bytes() == BLOB
    assert kinds(options(tmp_path)) == {}
    assert said[0] == "tiny/model.pt: missing; fetching"
    fetch(options(tmp_path), ["tiny"], say=said.append)
    assert not any("fetching" in line for line in said[-2:]), "what is there is not fetched again"


def test_a_revision_the_hub_does_not_have(catalogue, calm_hub, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "CATALOGUE", {"tiny": replace(catalogue, revision="f" * 40)})
    with pytest.raises(WeightsError, match=r"owner/tiny/model\.pt@f{40} could not be fetched .*RevisionNotFound"):
        fetch(options(tmp_path), ["tiny"], say=lambda _: None)


@pytest.mark.parametrize("served", [BLOB[:-7], BLOB[::-1]], ids=["truncated", "another file"])
def test_a_hub_that_serves_something_else_is_not_believed(catalogue, calm_hub, tmp_path, monkeypatch, served):
    monkeypatch.setitem(FILES, "model.pt", served)
    with pytest.raises(WeightsError, match=r"is not the pinned file .*it was removed"):
        fetch(options(tmp_path), ["tiny"], say=lambda _: None)
    assert not (tmp_path / "tiny" / "model.pt").exists()
    assert kinds(options(tmp_path))["tiny/model.pt"] == "missing"
    monkeypatch.setitem(FILES, "model.pt", BLOB)
    fetch(options(tmp_path), ["tiny"], say=lambda _: None)
    assert kinds(options(tmp_path)) == {}


def test_what_is_not_pinned_is_trusted_once_and_said_so(catalogue, calm_hub, tmp_path, monkeypatch):
    unknown = replace(catalogue, revision=None, files=(File("model.pt"), File("config.json")))
    monkeypatch.setattr(weights, "CATALOGUE", {"tiny": unknown})
    assert "owner/tiny@main  (no sha256 known: the first file fetched is trusted" in table(options(tmp_path), ["tiny"])
    fetch(options(tmp_path), ["tiny"], say=lambda _: None)
    assert provenance(options(tmp_path), "tiny")["revision"] == COMMIT
    (tmp_path / "tiny" / "model.pt").write_bytes(BLOB[::-1])
    assert kinds(options(tmp_path)) == {"tiny/model.pt": "sha256"}


def test_a_folder_is_a_mirror(catalogue, tmp_path):
    mirror = tmp_path / "mirror" / "owner" / "tiny"
    mirror.mkdir(parents=True)
    for name, data in FILES.items():
        (mirror / name).write_bytes(data)
    opts = options(tmp_path / "root", tmp_path / "mirror")
    fetch(opts, ["tiny"], say=lambda _: None)
    assert kinds(opts) == {}
    require(opts, ["tiny"])
    with pytest.raises(WeightsError, match=r"mirror .* has neither"):
        fetch(options(tmp_path / "other", tmp_path), ["tiny"], say=lambda _: None)


def test_files_put_there_by_hand_are_verified_and_recorded(catalogue, tmp_path):
    opts = options(by_hand(tmp_path))
    assert set(kinds(opts).values()) == {"unrecorded"}
    require(opts, ["tiny"])
    fetch(opts, ["tiny"], say=lambda _: None)
    assert kinds(opts) == {}


def test_a_wrong_truncated_or_changed_file_is_named(catalogue, tmp_path):
    opts = options(by_hand(tmp_path))
    fetch(opts, ["tiny"], say=lambda _: None)
    model, config = tmp_path / "tiny" / "model.pt", tmp_path / "tiny" / "config.json"
    config.write_bytes(CONFIG.replace(b"tiny", b"tinx"))  # trusted on first use, so equal from then on
    model.write_bytes(BLOB[:-1])
    assert kinds(opts) == {"tiny/model.pt": "size", "tiny/config.json": "sha256"}
    with pytest.raises(WeightsError, match=rf"model.pt: {len(BLOB)} bytes were expected, found {len(BLOB) - 1}"):
        require(opts, ["tiny"])
    model.write_bytes(BLOB[:-1] + b"\0")
    assert kinds(opts)["tiny/model.pt"] == "sha256"
    assert kinds(opts, hashes=False) == {}, "the check before a run reads no whole file"


def test_a_wrong_file_from_a_mirror_is_refused(catalogue, tmp_path):
    mirror = tmp_path / "mirror" / "owner" / "tiny"
    mirror.mkdir(parents=True)
    (mirror / "model.pt").write_bytes(BLOB[::-1])
    (mirror / "config.json").write_bytes(CONFIG)
    with pytest.raises(WeightsError, match=r"is not the pinned file.*it was removed"):
        fetch(options(tmp_path / "root", tmp_path / "mirror"), ["tiny"], say=lambda _: None)
    assert not (tmp_path / "root" / "tiny" / "model.pt").exists()


def test_another_revision_is_refused(catalogue, tmp_path, monkeypatch):
    opts = options(by_hand(tmp_path))
    fetch(opts, ["tiny"], say=lambda _: None)
    monkeypatch.setattr(weights, "CATALOGUE", {"tiny": replace(catalogue, revision="f" * 40)})
    with pytest.raises(WeightsError, match=r"revision ffffffffffff is pinned, 0123456789ab is on record"):
        require(opts, ["tiny"])


def test_random_weights_do_not_pass_for_published_ones(weights_root):
    with pytest.raises(WeightsError, match="random"):
        require(WeightsOptions(root=str(weights_root)), ["sam2.1-hiera-tiny"])


def test_noncommercial_licences_must_be_accepted(catalogue, tmp_path):
    with pytest.raises(WeightsError, match=r"CC-BY-NC-4.0.*accept_noncommercial=true"):
        fetch(options(by_hand(tmp_path)), ["closed"], say=lambda _: None)


def test_the_command(tmp_path, capsys):
    assert main(["--check", f"weights.root={tmp_path}"]) == 1
    said = capsys.readouterr().out
    assert "1324 MB" in said, "sizes are shown"
    assert "MIT" in said
    assert "missing or wrong; fetch with: make weights" in said
    assert main(["--check", "no.such.key=1"]) == 3
    assert main(["weights.mirror=/nowhere", f"weights.root={tmp_path}"]) == 1


def test_the_command_that_a_run_names_fetches_what_it_lacks(catalogue, calm_hub, tmp_path, capsys):
    with pytest.raises(WeightsError, match="Fetch them with: ") as caught:
        require(options(tmp_path), ["tiny"])
    words = str(caught.value).split('make weights OPTIONS="')[1].split('"')[0].split()
    assert words == ["tiny", f"weights.root={tmp_path}"]
    assert main(words) == 0
    require(options(tmp_path), ["tiny"])
    assert main(["tinny"]) == 3
    assert "no entry named 'tinny'" in capsys.readouterr().err


def test_pins_are_whole():
    for name, entry in CATALOGUE.items():
        assert entry.revision is None or len(entry.revision) == 40, name
        assert all(f.sha256 is None or len(f.sha256) == 64 for f in entry.files), name
        assert entry.licence in ("MIT", "Apache-2.0", "CC-BY-NC-4.0")
    for default in ("moge-2-vitl-normal", "sam2.1-hiera-large", "depth-anything-v2-small", "grounding-dino-tiny"):
        assert CATALOGUE[default].revision
        assert CATALOGUE[default].files[0].sha256
