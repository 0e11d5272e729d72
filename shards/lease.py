"""One driver at a time: a lease with epochs and fencing, on nothing but put-if-absent.

    _lease/000007.json   ticket of epoch 7. Who creates it (put-if-absent) owns the output until ticket 8 exists
    _lease.json          owner, epoch, heartbeat: whether the owner is alive

A take-over creates the next ticket, which fences the old owner whatever it believes: `check` looks for it before
every step that counts. Heartbeats are for liveness only; no correctness hangs on clocks.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid

from shards.store import Store
from shards.writer import json_bytes

HEARTBEAT = "_lease.json"
TTL_S = 30.0  # seconds without a heartbeat after which an owner on another machine counts as dead


class LeaseHeld(RuntimeError):
    """Another driver is alive on this output."""


class LeaseLost(RuntimeError):
    """Another driver took over; this one must stop."""


class Lease:
    """`acquire`, `check` before each step, `release`. A thread keeps the heartbeat."""

    def __init__(self, store: Store, *, ttl_s: float = TTL_S):
        self.store, self.ttl_s = store, ttl_s
        self.owner = uuid.uuid4().hex
        self.epoch = -1
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, *, wait_s: float = 0) -> None:
        """Become the owner. LeaseHeld when the present owner still lives after `wait_s` seconds."""
        deadline = time.monotonic() + wait_s
        while True:
            latest = max((int(e.path[-11:-5]) for e in self.store.list("_lease")), default=-1)
            holder = _holder(self.store, latest)
            if holder is None or _is_free(holder):
                self.epoch = latest + 1
                if self.store.put_new(_ticket(self.epoch), self._record()):
                    break
            elif time.monotonic() >= deadline:
                raise LeaseHeld(_describe(self.store, holder))
            else:
                time.sleep(min(1.0, self.ttl_s / 10))
        self._beat()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise LeaseLost when a later ticket exists. One look-up."""
        if self.epoch < 0 or self._stop.is_set():
            raise LeaseLost(f"{self.store.url}: this driver does not hold the lease")
        if self.store.exists(_ticket(self.epoch + 1)):
            raise LeaseLost(
                f"{self.store.url}: another driver took the lease over (epoch {self.epoch + 1}) because this one gave "
                f"no heartbeat for {self.ttl_s:.0f} s; this driver stops, nothing is lost"
            )

    def release(self) -> None:
        """Stop the heartbeat and say that the output is free. Does nothing when the lease is lost or not held."""
        self._halt()
        with contextlib.suppress(OSError):  # a full disk or a silent store: the lease then ends by itself
            if self.epoch >= 0 and not self.store.exists(_ticket(self.epoch + 1)):
                self.store.put(HEARTBEAT, self._record(released=True))
        self.epoch = -1

    def _halt(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join(timeout=5)

    def _keep(self) -> None:
        while not self._stop.wait(self.ttl_s / 3):
            try:
                self.check()
                self._beat()
            except LeaseLost:
                return
            except OSError:  # the next beat may get through; `check` in the driver reports for good
                continue

    def _beat(self) -> None:
        self.store.put(HEARTBEAT, self._record())

    def _record(self, released: bool = False) -> bytes:
        record = {
            "owner": self.owner,
            "epoch": self.epoch,
            "heartbeat": time.time(),
            "ttl_s": self.ttl_s,
            "released": released,
            "process": _this_process(),
        }
        return json_bytes(record)


def read_lease(store: Store) -> dict | None:
    """The record of the present or last owner with `alive` added; None when nobody ever held the lease."""
    latest = max((int(e.path[-11:-5]) for e in store.list("_lease")), default=-1)
    holder = _holder(store, latest)
    return holder and {**holder, "alive": not _is_free(holder)}


def _holder(store: Store, latest: int) -> dict | None:
    """The owner's newest record: its heartbeat, or its ticket when it died before the first heartbeat."""
    if latest < 0:
        return None
    ticket = json.loads(store.read(_ticket(latest)))
    try:
        beat = json.loads(store.read(HEARTBEAT))
    except (FileNotFoundError, ValueError):
        return ticket
    return beat if beat.get("owner") == ticket["owner"] else ticket


def _is_free(holder: dict) -> bool:
    """Released, its process is gone (seen from the same machine), or silent for two ttl."""
    if holder["released"] or time.time() - holder["heartbeat"] > 2 * holder["ttl_s"]:
        return True
    there, here = holder["process"], _this_process()
    same_machine = {k: there[k] for k in ("host", "boot", "pid_space")} == {
        k: here[k] for k in ("host", "boot", "pid_space")
    }
    return same_machine and _started(there["pid"]) != there["started"]


def _this_process() -> dict:
    return {
        "host": socket.gethostname(),
        "boot": _line("/proc/sys/kernel/random/boot_id"),
        "pid_space": _link("/proc/self/ns/pid"),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }


def _started(pid: int) -> str:
    """The process's start time (tells a reused pid apart), "" when it is gone or a zombie of the process table."""
    fields = _line(f"/proc/{pid}/stat").rpartition(")")[2].split()  # the name in () may hold spaces
    if not fields:
        return "" if os.path.isdir("/proc/self") else "unknown"
    return "" if fields[0] in "ZX" else fields[19]


def _line(path: str) -> str:
    try:
        with open(path) as file:
            return file.readline().strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _describe(store: Store, holder: dict) -> str:
    process, silent = holder["process"], time.time() - holder["heartbeat"]
    return (
        f"{store.url}: another driver is at work (host {process['host']}, pid {process['pid']}, last heartbeat "
        f"{silent:.0f} s ago); wait for it, or stop it; its lease ends {2 * holder['ttl_s']:.0f} s after its last "
        "heartbeat"
    )


def _ticket(epoch: int) -> str:
    return f"_lease/{epoch:06d}.json"
