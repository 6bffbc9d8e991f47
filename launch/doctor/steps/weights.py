"""Whether this node has the weights and tokenizers of a configuration, without a network."""

from __future__ import annotations

import os
from typing import Any

from launch.doctor.node import Request


def run(request: Request) -> dict[str, Any]:
    """`missing` and `present`: "what: source" of the parts that a run would load."""
    from launch.script import caches
    from mmsa.extensions import import_extensions

    # Before the first import of either library, which reads these variables once.
    if request.get("cache"):
        os.environ.update(caches(request["cache"]))
    os.environ["HF_HUB_OFFLINE"] = "1"
    import_extensions(request.get("imports", []))
    from launch.prefetch import parts_of, problem_of
    from mmsa.config import load_config
    from mmsa.process.arguments import take_configuration

    missing: list[dict[str, str]] = []
    present: list[str] = []
    for name, source, fetch in parts_of(load_config(*take_configuration(None, request["words"]))):
        try:
            problem = problem_of(fetch)
        except Exception as error:  # of a library that reads a damaged file
            problem = f"{type(error).__name__}: {error}"
        if problem:
            missing.append({"what": name, "source": source, "problem": " ".join(problem.split())})
        else:
            present.append(f"{name}: {source}")
    return {"missing": missing, "present": present}
