"""Every command that README, docs and headers of files print is run.

With --dry-run where it would start or submit something.

What would train, evaluate or download is parsed and checked as far as it reads files: options,
settings, batch arithmetic. The placeholders of the pages (CONFIG, OUT, RAW, runs/first, ...) become
files of a small set.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from packed import packed_set, picture

import evaluate
import train
from launch import checks, run
from launch.__main__ import COMMANDS, build_parser
from launch.__main__ import main as launch_main
from launch.site import ROOT
from mmsa.__main__ import build_parser as mmsa_parser
from mmsa.config import load_config
from mmsa.data.plan import batch_plan
from mmsa.errors import UserError
from mmsa.evaluation.arguments import build_parser as evaluation_parser
from mmsa.evaluation.arguments import check_arguments
from mmsa.process.arguments import training_parser
from mmsa.training.setup import training_checks
from shards.__main__ import build_parser as shards_parser
from shards.__main__ import main as shards_main

PAGES = [
    *(ROOT / "README.md", ROOT / "CONTRIBUTING.md"),
    *sorted((ROOT / "docs").glob("*.md")),
]
# Files whose comments show commands, and modules whose docstrings do.
COMMENTED = [
    ROOT / "accelerate_config.yaml",
    *sorted((ROOT / "launch").glob("*/*.yaml")),
    *sorted((ROOT / "launch").glob("slurm/*.sbatch")),
]
DOCSTRINGS = (("", train), ("", evaluate), ("python -m launch ", run))
PROGRAMS = ("python", "accelerate", "torchrun", "sbatch", "make", "pip", "nohup", "cat")


def texts() -> Iterator[str]:
    """Code blocks of the pages, comments of the configuration files and scripts, docstrings."""
    for page in PAGES:
        for kind, block in re.findall(r"^ *```(\w*)\n(.*?)^ *```", page.read_text(), re.M | re.S):
            if kind in ("", "bash", "sh"):
                yield block
    for file in COMMENTED:
        yield "\n".join(re.findall(r"^# {3,}(.*)$", file.read_text(), re.M))
    for prefix, module in DOCSTRINGS:
        assert module.__doc__
        indented = re.findall(r"^ {4,}(.*)$", module.__doc__, re.M)
        yield re.sub(r"^(?=run )", prefix, "\n".join(indented), flags=re.M)


def printed() -> list[str]:
    """Every command, once, without its comment."""
    lines = [line for text in texts() for line in text.replace("\\\n", " ").splitlines()]
    commands = [line for line in lines if re.match(rf" *({'|'.join(PROGRAMS)}) ", line)]
    return list(dict.fromkeys(shlex.join(shlex.split(one, comments=True)) for one in commands))


def mentioned() -> list[str]:
    """Every `python -m MODULE [WORD]` between single backticks."""
    pattern = r"`python -m ([\w.]+)(?: ([a-z]+))?[^`]*`"
    pages = [re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.M | re.S) for page in PAGES]
    found = [" ".join(one).strip() for page in pages for one in re.findall(pattern, page)]
    return list(dict.fromkeys(found))


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the placeholders stand for."""
    stage = tmp_path_factory.mktemp("stage")
    packed_set_at = stage / "shards"
    packed_set_at.mkdir()
    packed_set(packed_set_at, (50, 50))
    (stage / "a.yaml").write_text((ROOT / "launch/runs/demo.yaml").read_text())
    (stage / "b.yaml").write_text((stage / "a.yaml").read_text() + "\n")
    (stage / "my_parts.py").touch()
    assert shards_main(["synthetic", str(stage / "raw"), "--samples", "20", "--quiet"]) == 0
    rows = ["text,image,label"]
    for number in range(12):
        (stage / f"{number}.jpg").write_bytes(picture(number))
        rows.append(f"post {number},{number}.jpg,{('negative', 'positive')[number % 2]}")
    (stage / "posts.csv").write_text("\n".join(rows))
    run = stage / "runs" / "status"
    run.mkdir(parents=True)
    (run / "status.json").write_text(json.dumps({"state": "done", "step": 3, "exit_code": 0}))
    return stage


@pytest.fixture
def filled(stage: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """A command's words, with files in place of placeholders, on a machine without SLURM or GPU."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(stage))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    # A subprocess that looks for pretrained weights: tests/launch/test_submit.py runs it.
    monkeypatch.setattr(checks, "missing_for_jobs", lambda *_: [])
    places = {
        r"data\.shards=(OUT_DIR|OUT|data/[\w-]+)": f"data.shards={stage / 'shards'}",
        r"run\.dir=(RUN|runs/[\w-]+)": rf"run.dir={stage}/new/\1",
        r"'(runs/fold-)\*(/run(?:-\*)?)?'": r"\g<1>1\2 \g<1>2\2",
        r"\bSTUDY\.yaml\b": "launch/studies/demo.yaml",
        r"\bCONFIG\b": "launch/runs/full_finetune.yaml",
        r"\bRAW\b": str(stage / "raw"),
        r"(?<![\w/])(posts\.csv|[ab]\.yaml)": rf"{stage}/\1",
        r"data/posts$": str(stage / "packed"),
        r"\bOTHER\.csv OTHER\b": f"{stage}/posts.csv {stage}/other",
        r"status runs/first": f"status {stage}/runs/status",
        r"\bname=product\b": "name=concat",
        r"\bmy-format\b": "mvsa-single",
        # The rest of a command that is as everywhere.
        r" \.\.\.": f" data.shards={stage}/shards run.dir={stage}/new/rest "
        "train.micro_batch_size=4",
    }

    def fill(command: str) -> list[str]:
        for placeholder, value in places.items():
            command = re.sub(placeholder, value, command)
        return shlex.split(command)

    return fill


def check_training(words: list[str], processes: int) -> None:
    arguments = training_parser(None).parse_args(words)
    config = load_config(arguments.config, arguments.overrides, checks=training_checks())
    batch_plan(
        100_000,
        global_batch_size=config.train.global_batch_size,
        micro_batch_size=config.train.micro_batch_size,
        world_size=processes,
        drop_last=True,
    )
    assert config.launch.world_size in ("any", processes)


def check_evaluation(words: list[str]) -> None:
    check_arguments(evaluation_parser().parse_intermixed_args(words))


def check_accelerate(words: list[str]) -> None:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    assert words[0] == "launch"
    arguments = _validate_launch_command(launch_command_parser().parse_args(words[1:]))[0]
    assert arguments.multi_gpu or arguments.use_deepspeed  # else it starts one process
    if arguments.training_script == "train.py":
        check_training(arguments.training_script_args, arguments.num_processes)
    elif arguments.module:
        assert arguments.training_script == "mmsa"
        mmsa_parser().parse_args(arguments.training_script_args)
    else:
        assert arguments.training_script == "evaluate.py"
        check_evaluation(arguments.training_script_args)


def check_sbatch(words: list[str]) -> None:
    at = next(at for at, word in enumerate(words) if word.endswith(".sbatch"))
    script, passed = ROOT / words[at], words[at + 1 :]
    assert script.is_file()
    shape = dict(re.findall(r"--(nodes|gpus-per-node)[ =](\d+)", " ".join(words[:at])))
    processes = int(shape.get("nodes", 1)) * int(shape.get("gpus-per-node", 1))
    if script.name in ("train.sbatch", "seeds.sbatch"):
        check_training(passed, processes)
    elif script.name == "evaluate.sbatch":
        check_evaluation(passed)
    elif script.name == "doctor.sbatch":
        check_doctor(passed)
    elif script.name == "study.sbatch":
        build_parser().parse_args(["study", *passed[: passed.index("--")]])
    else:
        shards_parser().parse_args([script.stem, *passed])


def check_shards(words: list[str]) -> None:
    shards_parser().parse_args(words)
    if words[:2] == ["pack", "table"]:  # the first command that people type
        assert shards_main([*words, "--quiet"]) == 0


def check_doctor(words: list[str]) -> None:
    """Options of `launch doctor`, then perhaps a configuration: it would take minutes."""
    at = words.index("--") if "--" in words else len(words)
    build_parser().parse_args(["doctor", *words[:at]])
    if words[at + 1 :]:
        load_config(words[at + 1], words[at + 2 :], checks=training_checks())


def check_launch(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command = words[0]
    if command == "prefetch":  # downloads
        arguments = build_parser().parse_args(words)
        load_config(arguments.config, arguments.overrides)
    elif command == "doctor":
        check_doctor(words[1:])
    elif command == "run" and "evaluate.py" in words:  # has to find a run
        check_evaluation(words[words.index("evaluate.py") + 1 :])
        build_parser().parse_args(words[: words.index("evaluate.py") + 1])
    elif {"--status", "--final"} & set(words):  # of a study that has been trained
        build_parser().parse_args(words)
    else:
        starts = command in ("run", "submit", "study")
        capsys.readouterr()
        assert launch_main([command, *["--dry-run"] * starts, *words[1:]]) == 0
        said = capsys.readouterr().out
        if command == "folds":
            for line in said.splitlines():
                check(line.split(), capsys)
        elif starts:
            assert re.search(r"nothing was (started|submitted) \(--dry-run\)", said)


def check(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Run a command, or parse it: fails for one that this does not know."""
    if words[:3] == ["python", "-m", "launch"]:
        check_launch(words[3:], capsys)
    elif words[:3] == ["python", "-m", "shards"]:
        check_shards(words[3:])
    elif words[:2] == ["python", "train.py"]:
        check_training(words[2:], 1)
    elif words[:2] == ["python", "evaluate.py"]:
        check_evaluation(words[2:])
    elif words[:3] == ["python", "-m", "mmsa"]:
        mmsa_parser().parse_args(words[3:])
    elif words[:2] == [
        "python",
        "-m",
    ]:  # of a module of mmsa or benchmarks: parsed where it is tested
        assert importlib.util.find_spec(words[2])
    elif words[0] == "accelerate":
        check_accelerate(words[1:])
    elif words[0] == "sbatch":
        check_sbatch(words[1:])
    elif words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert [word for word in words[1:] if word not in targets] == []
    else:
        assert words[0] == "cat", words


@pytest.mark.parametrize("command", printed())
def test_a_printed_command_runs(
    command: str, filled: Callable[[str], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    check(filled(command), capsys)


def test_commands_are_found() -> None:
    commands = printed()
    for beginning, at_least in {
        "python -m launch run": 6,
        "python -m launch submit": 6,
        "python evaluate.py": 6,
        "python -m shards": 5,
        "accelerate launch": 9,
        "sbatch": 5,
        "make": 6,
    }.items():
        assert sum(line.startswith(beginning) for line in commands) >= at_least, beginning


@pytest.mark.parametrize("command", mentioned())
def test_a_mentioned_command_exists(command: str) -> None:
    module, _, word = command.partition(" ")
    assert importlib.util.find_spec(module)
    if word and module == "launch":
        assert word in COMMANDS
    elif word and module == "shards":
        choices = next(filter(None, (one.choices for one in shards_parser()._actions)))
        assert word in choices


@pytest.mark.parametrize(
    "command",
    [
        # As README and docs/slurm.md had it: 32 does not divide by 8 ranks x 8.
        "python -m launch submit train --nodes 2 --gpus-per-node 4 -- "
        "launch/runs/full_finetune.yaml data.shards=OUT run.dir=runs/first",
        "python -m launch run -n 3 launch/runs/full_finetune.yaml data.shards=OUT run.dir=runs/x",
        "python -m launch run -n 2 launch/runs/none.yaml data.shards=OUT run.dir=runs/x",
        "python -m launch submti train",
        "python evaluate.py runs/first --splitt val",
        "python train.py launch/runs/demo.yaml --config",
        "accelerate launch --num_processes 2 train.py --config launch/runs/demo.yaml",
        "sbatch --nodes 2 --gpus-per-node 4 launch/slurm/train.sbatch "
        "--config launch/runs/full_finetune.yaml data.shards=OUT run.dir=runs/first",
        "make nothing",
        "bash -c true",
    ],
)
def test_a_wrong_command_would_be_found(
    command: str, filled: Callable[[str], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((AssertionError, SystemExit, UserError)):
        check(filled(command), capsys)
