"""What a node is: versions, names, interfaces, limits, free ports. Imports no slow library."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import socket
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from launch.doctor.node import Request, this_node
from mmsa.foundation.code_version import code_version

# What must be the same on all nodes for ranks to compute and communicate alike.
_PACKAGES = ("torch", "torchvision", "accelerate", "transformers", "timm", "deepspeed", "numpy")
_NCCL_PACKAGES = ("nvidia-nccl-cu13", "nvidia-nccl-cu12", "nvidia-nccl-cu11")
_VARIABLES = ("NCCL_", "GLOO_", "TORCH_NCCL_", "MASTER_", "HF_HOME", "TORCH_HOME")


def run(request: Request) -> dict[str, Any]:
    """Facts alone; which of them are wrong is decided in findings/."""
    is_head = this_node(request) == request["nodes"][0]
    hostname = socket.gethostname()
    shm = shutil.disk_usage("/dev/shm")
    return {
        "hostname": hostname,
        "versions": versions(),
        "names": {name: addresses_of(name) for name in {*request["nodes"], hostname}},
        "interfaces": interfaces(),
        "infiniband": sorted(os.listdir("/sys/class/infiniband"))
        if os.path.isdir("/sys/class/infiniband")
        else [],
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(_VARIABLES)},
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "locked_memory": resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],  # -1: no limit
        "shm_bytes": shm.total,
        "shm_free_bytes": shm.free,
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "memory_free_bytes": psutil.virtual_memory().available,
        "load": os.getloadavg()[0],
        "port_problem": port_problem(request["port"]) if is_head and request["port"] else "",
        "free_ports": free_ports(3),
    }


def versions() -> dict[str, str]:
    """Name -> version, "none" for what is not installed; packages by their metadata."""
    found = {"python": platform.python_version(), "mmsa": code_version()}
    for package in _PACKAGES:
        found[package] = _version(package)
    nccl = (_version(name) for name in _NCCL_PACKAGES)
    found["nccl"] = next((one for one in nccl if one != "none"), "none")
    found["nvidia driver"] = "none"
    with suppress(OSError):
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
        number = re.search(r"\b(\d{3,}\.\d[\d.]*)\b", text)
        found["nvidia driver"] = number[1] if number else text.splitlines()[0]
    return found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def addresses_of(name: str) -> list[str]:
    """The addresses of a host, as this node resolves it; empty where it does not."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return list(dict.fromkeys(str(one[4][0]) for one in found))


def interfaces() -> dict[str, dict[str, Any]]:
    """Name -> its addresses, whether it is up, its speed in Mbit/s (0: unknown)."""
    states = psutil.net_if_stats()
    return {
        name: {
            "addresses": [
                one.address for one in addresses if one.family in (socket.AF_INET, socket.AF_INET6)
            ],
            "up": name in states and states[name].isup,
            "mbit_per_s": states[name].speed if name in states else 0,
        }
        for name, addresses in psutil.net_if_addrs().items()
    }


def port_problem(port: int) -> str:
    """Why the rendezvous could not listen at `port`; "" if it can."""
    with socket.socket() as one:
        try:
            one.bind(("", port))
        except OSError as error:
            return str(error.strerror)
    return ""


def free_ports(number: int) -> list[int]:
    """Different ports that were free when they were looked for."""
    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()
