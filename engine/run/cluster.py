"""The connection to a Ray cluster: one of this machine that ends with the run, or one that is there."""

import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from engine.config import UnrollOptions


class ClusterLost(RuntimeError):
    """The cluster is gone; what is spooled and committed is not."""


def prepare_local() -> None:
    """Set the environment of a cluster on this machine, before `ray` is imported.

    A token of this process's own: nobody else on the machine can hand work to the cluster.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"] == "token":
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # num_gpus=0 leaves CUDA_VISIBLE_DEVICES alone
    # Ray ends workers beyond the number of CPUs after a second without work, and a step's worker takes seconds to start
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")


@contextmanager
def cluster(options: UnrollOptions) -> Iterator[Any]:
    """The `ray` module, connected: to a new cluster of this machine, or to the one at runner.ray.address."""
    ray_options = options.runner.ray
    if ray_options.address == "local":
        prepare_local()
    import ray

    if ray.is_initialized():  # a cluster that the caller made
        yield ray
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    if ray_options.address == "local":
        context = ray.init(
            address="local",
            num_cpus=ray_options.cpus or None,
            include_dashboard=ray_options.dashboard,
            dashboard_host="127.0.0.1",
            object_store_memory=_store_bytes(options),
            log_to_driver=False,
            logging_level="warning",
            _node_ip_address="127.0.0.1",
        )
    else:
        try:
            _knock(ray_options.address)
            context = ray.init(address=ray_options.address, log_to_driver=False, logging_level="warning")
        except (OSError, RuntimeError) as error:
            raise ClusterLost(f"no cluster at runner.ray.address={ray_options.address}: {error}") from error
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():  # a node that Ray starts here takes SIGTERM for itself
            signal.signal(number, handler)
    if context.dashboard_url:
        print(f"dashboard: http://{context.dashboard_url}", flush=True)
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """OSError when nobody listens at host:port: Ray itself would try for ten minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _store_bytes(options: UnrollOptions) -> int | None:
    return int(options.runner.ray.store_gb * 2**30) or None
