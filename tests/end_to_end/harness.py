"""Run the project's own commands, in this process or under the real launcher."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from mmsa.data.audit_files import parts_of, read_part
from shards.__main__ import main as shards_main

if TYPE_CHECKING:
    from forked_launch import ForkedLaunch

ROOT = Path(__file__).resolve().parent.parent.parent
TIMEOUT_S = 180
EXECUTE_ALL = os.environ.get("MMSA_TEST_EXEC") == "1"  # no forked launches (fork_server.py)
LAUNCH = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
DEFAULT_LAUNCH = "accelerate_config.yaml"
LAUNCH_RUN = [sys.executable, "-m", "launch", "run", "-n", "2"]

# The smallest model that still has every part: BERT, BatchNorm, dropout, both encoders.
TINY = [
    "model.text_encoder.name=tiny",
    "model.text_encoder.weights=none",
    "model.text_encoder.tokenizer=words:500",
    "model.text_encoder.config={model_type: bert, hidden_size: 32, num_hidden_layers: 1, "
    "num_attention_heads: 2, intermediate_size: 64, max_position_embeddings: 64}",
    "model.image_encoder.name=hf:tiny",
    "model.image_encoder.weights=none",
    "model.image_encoder.config={model_type: resnet, embedding_size: 8, hidden_sizes: [8, 16], "
    "depths: [1, 1], layer_type: basic}",
    "model.image_encoder.image_size_px=32",
    "model.fusion.hidden=[16]",
    "data.num_workers=0",
    "data.max_tokens=32",
    "data.window_shards=2",
    "optim.text_lr=1e-3",
    "optim.image_lr=1e-3",
    "train.global_batch_size=16",
    "train.micro_batch_size=4",
    "train.mixed_precision=no",
    "eval.batch_size=16",
    "run.log_every_steps=1",
]


def launched(
    script: str,
    *arguments: str,
    processes: int = 2,
    config: str = DEFAULT_LAUNCH,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run a script under `accelerate launch` with one of the project's own configuration files.

    Its processes are forked (`fork_server.py`), or executed where `environment` is given.
    """
    if environment or EXECUTE_ALL:
        return _ended(
            start_launch(script, *arguments, processes=processes, config=config, **environment)
        )
    command = [*launch_command(processes, config)[len(LAUNCH) - 1 :], script, *arguments]
    return _ended(forked(command, config))


def forked(command: list[str], config: str, output: Path | None = None) -> ForkedLaunch:
    """Start `accelerate` with the words of `command`, forked; `config` is its launch file."""
    from forked_launch import ForkedLaunch  # this module is also imported from other folders

    return ForkedLaunch(
        command,
        cwd=ROOT,
        env=environment_of_launches(),
        deepspeed="DEEPSPEED" in (ROOT / config).read_text(),
        output=output,
    )


def run_by_launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m launch run -n 2`, until it has ended."""
    return _ended(_start([*LAUNCH_RUN, *arguments]))


def _ended(process: subprocess.Popen[str] | ForkedLaunch) -> subprocess.CompletedProcess[str]:
    try:
        stdout, stderr = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        end_group(process)
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def launch_command(processes: int, config: str) -> list[str]:
    """`accelerate launch` with one of the project's own configuration files, up to the script."""
    return [
        *[*LAUNCH, "--config_file", config, "--num_processes", str(processes)],
        *["--main_process_port", "0"],
    ]


def start_launch(
    script: str,
    *arguments: str,
    processes: int = 2,
    config: str = DEFAULT_LAUNCH,
    **environment: str,
) -> subprocess.Popen[str]:
    """Like `launched`, without waiting for the end. The launcher leads its own process group."""
    return _start([*launch_command(processes, config), script, *arguments], **environment)


def environment_of_launches() -> dict[str, str]:
    """One thread for each rank, and no download."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _start(command: list[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**environment_of_launches(), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def end_group(process: subprocess.Popen[str] | ForkedLaunch) -> None:
    """kill -9 the launcher and all its ranks at once, as a power cut would.

    The launcher starts each rank in its own session, so killing its group would not reach them.
    """
    launcher = psutil.Process(process.pid)
    members = [launcher, *launcher.children(recursive=True)]
    for member in members:
        member.suspend()
    for member in members:
        member.kill()
    process.communicate()
    psutil.wait_procs(members, timeout=10)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Wait until `path` exists while the launch still runs."""
    deadline = time.monotonic() + TIMEOUT_S
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def status(run_dir: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run_dir / "status.json").read_text())
    return content


def metric_lines(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] == kind]


def keys_by_step(run_dir: Path) -> dict[int, list[str]]:
    """Step -> sorted keys of all ranks, from the audit."""
    found: dict[int, list[str]] = {}
    for part in parts_of(run_dir):
        for step, keys in read_part(part.path(run_dir)):
            found[step] = sorted(found.get(step, []) + keys)
    return found


def pack_synthetic(directory: Path, *arguments: str, samples: int, ratios: str = "8:1:1") -> Path:
    raw, out = str(directory / "raw"), str(directory / "shards")
    made = shards_main(["synthetic", raw, "--samples", str(samples), "--quiet", *arguments])
    packed = shards_main(
        ["pack", "mvsa-single", raw, out, "--image-short-side", "64", "--ratios", ratios, "--quiet"]
    )
    assert (made, packed) == (0, 0)
    return Path(out)
