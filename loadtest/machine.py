"""What the measuring machine is: facts a reader needs beside a number, read once."""

from __future__ import annotations

import os
import platform
import socket
import time
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("locust", "gevent", "httptools", "orjson", "numpy", "matplotlib")


def machine() -> dict[str, Any]:
    return {
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_bytes": _memory_bytes(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Installed versions of what the clock stands on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def clocks() -> dict[str, int]:
    """Monotonic and wall clock read together, so that samples of several machines can be merged."""
    return {"mono_ns": time.monotonic_ns(), "wall_ns": time.time_ns()}


def process(number: int) -> dict[str, Any]:
    return {"process": number, "host": socket.gethostname(), "pid": os.getpid(), "start": clocks(), "end": None}


def boot() -> str:
    """Which kernel's monotonic clock this is, whatever its machine or container is called; empty where nobody says."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
