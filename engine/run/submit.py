"""`python -m engine.run.submit CLUSTER input=... output=... [key=value ...]`: a run as a job of a Ray cluster.

CLUSTER is the address of the dashboard (http://head:8265). The words are those of `engine.unroll`; they are checked
here, before anything is sent. The token of a cluster with authentication comes from RAY_AUTH_TOKEN (or
RAY_AUTH_TOKEN_PATH) with RAY_AUTH_MODE=token. Credentials of the buckets are never sent: nodes have their own (roles,
service accounts, secrets in their environment).

  --env NAME    hand on this variable of mine (more than once); AWS_ENDPOINT_URL and the regions are always handed on
  --wait        follow the job's log and end with its exit code
  --no-code     the cluster's image already holds this version of the code: upload nothing
"""

import argparse
import json
import os
import re
import shlex
import sys
import time
from importlib import metadata
from typing import Any

from engine.config import ROOT, UnrollOptions, fingerprint, fingerprint_id, load
from shards.config import ConfigError

HANDED_ON = ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "HF_HUB_OFFLINE")
# a job needs the three packages, conf/ and the installed version's metadata; Ray refuses uploads above 500 MiB
LEFT_OUT = (".git", ".venv", "/tests", "/docs", "/samples", "/out", "/bench", "__pycache__", ".*_cache", "*.tar")
ENDS = {"SUCCEEDED": 0, "FAILED": 1, "STOPPED": 130}
POLL_S = 2.0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cluster", help="address of the cluster's dashboard: http://head:8265")
    parser.add_argument("words", nargs="+", metavar="key=value", help="of engine.unroll; input= and output= are needed")
    parser.add_argument("--env", action="append", default=[], metavar="NAME")
    parser.add_argument("--wait", action="store_true")
    parser.add_argument("--no-code", action="store_true")
    args = parser.parse_args(arguments)
    try:
        words = [w for w in args.words if not w.startswith(("runner=", "runner.ray.address="))]
        options = load([*words, "runner=ray", "runner.ray.address=auto"])
        _check_places(options)
        request = job_request(options, words, args.env, code=not args.no_code)
        client = connect(args.cluster)
        job = client.submit_job(**request)
    except (ConfigError, ConnectionError, RuntimeError) as error:
        print(f"submit: {error}", file=sys.stderr)
        return 3
    where = f"--address {args.cluster} {job}"
    print(f"job {job} on {args.cluster}")
    print(f"  follow  ray job logs --follow {where}")
    print(f"  stop    ray job stop {where}   (nothing that is spooled is lost; submit again to go on)")
    print(f"  without the cluster  make status OUTPUT={options.output}, make logs OUTPUT={options.output}")
    return follow(client, job) if args.wait else 0


def job_request(options: UnrollOptions, words: list[str], names: list[str], *, code: bool) -> dict[str, Any]:
    """The arguments of `JobSubmissionClient.submit_job`. ConfigError for a variable that is not set."""
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise ConfigError(f"--env {missing[0]}: this variable is not set here")
    variables = {name: os.environ[name] for name in (*HANDED_ON, *names) if name in os.environ}
    runtime: dict[str, Any] = {"env_vars": {"PYTHONUNBUFFERED": "1", **variables}}
    if code:
        runtime |= {"working_dir": str(ROOT), "excludes": list(LEFT_OUT)}
    entry = ["python", "-m", "engine.unroll", *words, "runner=ray", "runner.ray.address=auto"]
    return {
        "entrypoint": shlex.join(entry),
        "runtime_env": runtime,
        "metadata": {
            "name": "metaworld-unroll",
            "input": options.input,
            "output": options.output,
            "configuration": fingerprint_id(fingerprint(options)),
            "version": metadata.version("metaworld"),
            "words": json.dumps(words),
        },
        "entrypoint_num_cpus": 0,  # the driver waits most of the time
    }


def connect(address: str) -> Any:
    """A client of the cluster's job server. ConnectionError says what was tried."""
    if not re.match(r"https?://", address):
        raise ConfigError(f"cluster {address!r}: the dashboard's address was expected, like http://head:8265")
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        token = "set" if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH") else "not set"
        raise ConnectionError(
            f"{address} does not take jobs: {error}; is the dashboard up and reachable (a tunnel: ray dashboard "
            f"cluster.yaml, kubectl port-forward)? RAY_AUTH_TOKEN is {token} here"
        ) from error


def follow(client: Any, job: str) -> int:
    """Print the job's log until it ends; its exit code."""
    shown = 0
    while True:
        state = client.get_job_status(job).value
        log = client.get_job_logs(job)
        sys.stdout.write(log[shown:])
        sys.stdout.flush()
        shown = len(log)
        if state in ENDS:
            code = getattr(client.get_job_info(job), "driver_exit_code", None)
            return ENDS[state] if code is None else int(code)
        time.sleep(POLL_S)


def _check_places(options: UnrollOptions) -> None:
    for name, place in (("input", options.input), ("output", options.output)):
        if "://" not in place:
            raise ConfigError(
                f"{name}={place}: every node must reach it: a URL was expected, like s3://bucket/{name} "
                "(file:///shared/... for a file system that all nodes mount)"
            )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
