"""Jobs: what is sent, what is refused before anything is sent, a real job on a real cluster, logs without it."""

import json
import re
import shlex
import socket
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from unroll_inputs import WORDS, unroll, write_input

from engine.config import load
from engine.run import logs, submit
from engine.run.drive import drive
from shards.config import ConfigError
from shards.run import status

PLACES = ["input=s3://bucket/in", "output=s3://bucket/out"]


def request(*names: str, code: bool = True) -> dict:
    words = [*PLACES, *WORDS]
    return submit.job_request(load([*words, "runner=ray"]), words, list(names), code=code)


def test_the_entrypoint_is_the_verb_with_the_same_words():
    sent = request()
    python, flag, module, *words = shlex.split(sent["entrypoint"])
    assert (python, flag, module) == ("python", "-m", "engine.unroll")
    options = load(words)
    assert (options.input, options.output) == ("s3://bucket/in", "s3://bucket/out")
    assert (options.runner.kind, options.runner.ray.address) == ("ray", "auto")
    assert sent["metadata"]["output"] == "s3://bucket/out"
    assert all(isinstance(value, str) for value in sent["metadata"].values())
    assert len(sent["metadata"]["configuration"]) == 16


def test_no_secret_leaves_unasked(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio:9000")
    monkeypatch.setenv("MINE", "1")
    sent = request("MINE")
    assert sent["runtime_env"]["env_vars"] == {
        "PYTHONUNBUFFERED": "1", "AWS_ENDPOINT_URL": "http://minio:9000", "MINE": "1",
    }  # fmt: skip
    assert "secret" not in json.dumps(sent)
    with pytest.raises(ConfigError, match="NOT_THERE: this variable is not set"):
        request("NOT_THERE")


def test_code_travels_or_not():
    assert (Path(request()["runtime_env"]["working_dir"]) / "engine" / "unroll.py").exists()
    assert "working_dir" not in request(code=False)["runtime_env"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["head:8265", *PLACES], "the dashboard's address was expected"),
        (["http://h:8265", "input=videos/", PLACES[1]], "every node must reach it"),
        (["http://h:8265", *PLACES, "clip.fpz=3"], "did you mean clip.fps"),
    ],
)
def test_what_cannot_work_is_refused_here(arguments, message, capsys):
    assert submit.main(arguments) == 3
    assert message in capsys.readouterr().err


def test_a_cluster_that_is_not_there(capsys):
    assert submit.main([f"http://127.0.0.1:{_free_port()}", *PLACES]) == 3
    error = capsys.readouterr().err
    assert "does not take jobs" in error
    assert "RAY_AUTH_TOKEN" in error


@pytest.mark.slow
def test_logs_tell_what_happened(tmp_path, capsys):
    source = write_input(tmp_path / "in", 2)
    (source / "v000" / "depth.npz").unlink()
    out = tmp_path / "out"
    assert unroll(source, out).returncode == 2
    assert logs.main([str(out)]) == 0
    text = capsys.readouterr().out
    assert "perception_failed" in text
    assert "Traceback" in text
    assert "v001.mp4" not in text
    (done,) = (clip for clip in logs.clips(logs.open_store(out), unit="") if clip["shard"] is None)
    assert done["failures"][0]["attempts"] == 2
    assert logs.main([str(out), "--key", "", "--unit", done["unit"][:10], "--json"]) == 0
    clip = json.loads(capsys.readouterr().out)
    assert clip["key"] == done["key"]
    assert {"stage", "seconds", "queue", "bytes", "peak_mb"} <= set(clip["events"][-1])
    assert logs.main([str(out), "--key", "nothing"]) == 1
    assert "no planned clip" in capsys.readouterr().err


@pytest.mark.slow
def test_a_job_on_a_cluster_with_a_token(tmp_path, capsys, monkeypatch):
    """Submitted over HTTP, run with the code that was sent, followed to its end; no token, no job."""
    from engine.run.cluster import prepare_local

    source, out = write_input(tmp_path / "in", 2), tmp_path / "out"
    (source / "text.mp4").write_text("no video")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{Path('/usr/bin')}:{Path('/bin')}")
    prepare_local()
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 2, "object_store_memory": 150 << 20, "include_dashboard": True, "dashboard_host": "127.0.0.1"}
    head |= {"dashboard_port": _free_port(), "dashboard_agent_listen_port": _free_port()}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        url = f"http://{cluster.webui_url}"
        words = [f"input=file://{source}", f"output=file://{out}", *WORDS]
        code = submit.main([url, *words, "--wait"])
        text, errors = capsys.readouterr()
        assert code == 2, errors + text  # one is quarantined
        assert "2 committed, 1 quarantined" in text
        assert "busy workers on average" in text
        job = submit.connect(url).list_jobs()[0]
        assert job.metadata["output"] == f"file://{out}"
        with pytest.raises(urllib.error.HTTPError) as refused:  # without the token
            urllib.request.urlopen(f"{url}/api/jobs/", timeout=10)
        assert refused.value.code in (401, 403)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="warning")
        assert drive(load([*words, f"output={tmp_path / 'again'}", "runner=ray", "limit=1"])) == 2
        node = ray.nodes()[0]
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        _scrape(url, r'ray_metaworld_units_total\{.*status="done".*\} [12]')  # of this driver or of the job's
        _scrape(url, r'ray_metaworld_stage_seconds_bucket\{.*stage="decode"')
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert status(str(out)).committed == 2
    assert logs.main([f"file://{out}"]) == 0
    assert "not_a_video" in capsys.readouterr().out


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _scrape(url: str, pattern: str) -> None:
    """Wait until Prometheus would read `pattern`: workers report to their node every few seconds."""
    deadline = time.monotonic() + 60
    while True:
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        if re.search(pattern, text):
            return
        assert time.monotonic() < deadline, "\n".join(line for line in text.splitlines() if "metaworld" in line)
        time.sleep(1)
