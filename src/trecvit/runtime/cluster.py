"""The Ray cluster that work is given to: the one at RAY_ADDRESS, or else one on this machine until the work is done."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trecvit.errors import ConfigError, MissingPackageError

try:
    import ray
except ImportError as error:
    raise MissingPackageError("ray", needed_for="--ray", extra="ray") from error

__all__ = ["cluster", "ray", "room"]


@contextmanager
def cluster() -> Iterator[None]:
    """Connect this process to Ray, quietly; a connection that exists is used and kept.

    Raises:
        ConfigError: There is no cluster at RAY_ADDRESS, or none could be started.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it reports to Ray's authors otherwise
    os.environ.setdefault("RAY_worker_niceness", "0")  # 15 otherwise: any other program would go before the models
    on_main_thread = threading.current_thread() is threading.main_thread()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    address = os.environ.get("RAY_ADDRESS", "local")
    try:
        with _no_log():
            ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL)
    except ConnectionError as error:
        raise ConfigError(
            f"--ray: expected a Ray cluster at RAY_ADDRESS={address}, got no connection; start one there "
            "(ray start --head), or unset RAY_ADDRESS for one on this machine"
        ) from error
    except Exception as error:  # Ray's own are of no narrower class
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--ray: expected to start or join a Ray cluster ({address}), got: {reason}") from error
    # Ray prints the deaths of processes on stdout, also without `log_to_driver`; the callers handle and report them.
    ray._private.worker._worker_logs_enabled = False
    if on_main_thread:  # Ray's own handler exits with code 15
        signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    finally:
        ray.shutdown()


def room(resource: str) -> float:
    """Return how many of a resource, "CPU" or "GPU", the cluster has."""
    resources: dict[str, float] = ray.cluster_resources()
    return resources.get(resource, 0.0)


@contextmanager
def _no_log() -> Iterator[None]:
    """Keep the log of Ray's C++ code off stderr, where it reports conditions that are normal here.

    RAY_BACKEND_LOG_LEVEL silences it, but is itself reported on stderr as the code starts. A user's level is kept.
    """
    if "RAY_BACKEND_LOG_LEVEL" in os.environ:
        yield
        return
    os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
    stderr = os.dup(2)
    with Path(os.devnull).open("w", encoding="utf-8") as null:
        os.dup2(null.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        del os.environ["RAY_BACKEND_LOG_LEVEL"]
