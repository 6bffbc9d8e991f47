"""POST /train_model: a run of its own, one at a time, whose best export is taken into service."""

from __future__ import annotations

import asyncio
import importlib.util
import time
from pathlib import Path
from typing import Any

import pytest
from harness import TINY

from mmsa.config import load_config
from mmsa.errors import UserError
from tests.conftest import need
from tests.serve.tiny_export import tiny_export

TOKEN = "a-token-of-this-test"


def test_a_training_is_started_watched_and_taken_into_service(shards: Path, tmp_path: Path) -> None:
    need("serve", importlib.util.find_spec("fastapi") is not None)
    import httpx

    from mmsa.serve.app import create_app
    from mmsa.serve.counters import Counters
    from mmsa.serve.model import load_served
    from mmsa.serve.options import Options
    from mmsa.serve.problems import Problem
    from mmsa.serve.reload import watch
    from mmsa.serve.service import Service
    from mmsa.serve.training import Training
    from tests.serve.in_process import InProcess

    settings = [*TINY, f"data.shards={shards}", f"run.dir={tmp_path / 'run'}", "train.epochs=1"]
    configuration = tmp_path / "config.yaml"
    configuration.write_text(load_config(None, settings).to_yaml())
    export = tiny_export(tmp_path / "export")
    options = Options(training=configuration, token=TOKEN, threads=1, reload_s=0.05)
    with pytest.raises(UserError, match="give --token-file"):
        Training(options.model_copy(update={"token": None}))
    training, counters = Training(options), Counters()
    service = Service(load_served(export, options, "cpu"), options, counters)
    service.start()
    gate = create_app(service, options, counters, training)
    http = InProcess(httpx.ASGITransport(app=gate), gate, service)
    right = {"Authorization": f"Bearer {TOKEN}"}
    try:
        assert http.post("/train_model").status_code == 401
        assert http.get("/train_model", headers=right).json() == {"state": "none", "run": None}

        async def both() -> list[Any]:
            return await asyncio.gather(training.start(), training.start(), return_exceptions=True)

        begun, refused = asyncio.run(both())  # two clients at once
        assert begun["state"] == "running"
        assert begun["run"].startswith("run-")
        assert isinstance(refused, Problem)
        again = http.post("/train_model", headers=right)
        assert again.status_code == 409
        while (state := http.get("/train_model", headers=right).json())["state"] == "running":
            time.sleep(0.2)
        assert (state["state"], state["exit_code"], state["step"]) == ("done", 0, 10), state
        assert {"train", "validation"} <= set(state["last"])
        before = http.get("/model", headers=right).json()["digest"]

        async def watched() -> None:
            watching = asyncio.ensure_future(watch(service, export, options, training))
            while service.model.digest == before:
                await asyncio.sleep(0.02)
            watching.cancel()

        asyncio.run(asyncio.wait_for(watched(), 60))
        assert http.get("/model", headers=right).json()["facts"]["step"] == 10
    finally:
        training.close()
        service.close()
