"""Values reach a job as they were given, whatever characters they hold."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import packed_set

from launch.__main__ import main as launch_main
from launch.job_log import runs_of_array
from launch.script import fill_in, log_path, log_pattern
from launch.site import ROOT, Site


@pytest.fixture
def run_settings(tmp_path: Path) -> list[str]:
    """Settings of a run on 25 samples."""
    (tmp_path / "shards").mkdir()
    packed_set(tmp_path / "shards")
    shards, run = f"data.shards={tmp_path / 'shards'}", f"run.dir={tmp_path / 'run'}"
    sizes = ["train.global_batch_size=16", "train.micro_batch_size=2"]
    return ["launch/runs/demo.yaml", shards, run, *sizes]


ODD = "a1 '\"\\$`%#!*?;&|<>()[]{}~=,\té😀"
WORDS = st.text(ODD + "\n", max_size=12)  # in bash
VALUES = st.text(ODD, min_size=1, max_size=12)  # in a line of #SBATCH


def sbatch_reads(line: str) -> str:
    """The value of an #SBATCH line as sbatch reads it (get_argument in its source)."""
    value, quote, characters = "", "", iter(line.partition("=")[2])
    for one in characters:
        if one == "\\":
            value += next(characters)
        elif quote:
            quote, value = ("", value) if one == quote else (quote, value + one)
        elif one in "'\"":
            quote = one
        elif one.isspace() or one == "#":
            break
        else:
            value += one
    assert not quote, line
    return value


def options_of(script: str) -> dict[str, str]:
    """The #SBATCH options up to the first line that is not a comment, as sbatch finds them."""
    header = re.match(r"(?:(?:#.*|\s*)\n)*", script)
    assert header
    lines = re.findall(r"^#SBATCH --([\w-]+.*)$", header[0], re.M)
    return {line.partition("=")[0]: sbatch_reads(line) for line in lines}


def sourced(script: str, directory: Path, *variables: str) -> list[str]:
    """These variables and then the arguments, after the script's part before its commands."""
    setting = re.search(r"^# ---- arguments\n", script, re.M)
    assert setting
    arguments = script[setting.end() :].partition("\n. launch/slurm/functions.sh")[0]
    shown = " ".join(f'"${name}"' for name in variables)
    (directory / "part.sh").write_text(
        f"{script[: setting.start()]}\n{arguments}\nprintf '%s\\0' {shown} \"$@\"\n"
    )
    subprocess.run(["/bin/bash", "-n", "part.sh"], cwd=directory, check=True)
    done = subprocess.run(
        ["/bin/bash", "part.sh"], cwd=directory, check=True, capture_output=True, text=True
    )
    assert done.stderr == ""
    return done.stdout.split("\0")[:-1]


@settings(max_examples=25, deadline=None)
@given(VALUES, VALUES, WORDS, WORDS, st.lists(WORDS, max_size=3))
def test_a_script_holds_exactly_the_values(
    tmp_path_factory: pytest.TempPathFactory,
    partition: str,
    comment: str,
    container: str,
    cache: str,
    arguments: list[str],
) -> None:
    site = Site(
        partition=partition, sbatch={"comment": comment}, container=container, cache=f"/{cache}"
    )
    script = fill_in("train", site, arguments, options={"output": "x"})
    found = options_of(script)
    assert (found["partition"], found["comment"], found["output"]) == (partition, comment, "x")
    assert found["chdir"] == str(ROOT)
    directory = tmp_path_factory.mktemp("job")
    values = sourced(script, directory, "CONTAINER", "HF_HOME", "TORCH_HOME")
    assert values == [container, f"/{cache}/huggingface", f"/{cache}/torch", *arguments]


@settings(max_examples=50, deadline=None)
@given(st.text(ODD.replace("\\", ""), min_size=1, max_size=12).map(lambda name: f"/runs/{name}"))
def test_a_log_lies_in_the_folder_of_its_run(folder: str) -> None:
    pattern = log_pattern(Path(folder), "train-%A_%a.log")
    assert log_path(pattern, A="17", a="3") == f"{Path(folder)}/train-17_3.log"
    assert log_path(pattern, A="17") == f"{Path(folder)}/train-17_%a.log"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--partition", "gpu\n#SBATCH --exclusive"], "--partition 'gpu\\n#SBATCH --exclusive': a"),
        (["--sbatch", "comment=a\rb"], "--comment 'a\\rb': a line of #SBATCH cannot contain a"),
        (["--sbatch", "x\n#SBATCH --y=1"], "'x\\n#SBATCH --y' is not the name of an option of"),
        (["--sbatch", "comment=\udcff"], "would contain '\\udcff' in"),
        (["run.dir=runs/a\nb"], "a line of #SBATCH cannot contain a line break"),
        (["run.dir=runs/a\\b"], "SLURM has no way to write a log to a path with a backslash"),
    ],
)
def test_what_no_script_can_hold_is_refused(
    words: list[str],
    expected: str,
    run_settings: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    overrides = [f"run.dir={json.dumps(word[8:])}" for word in words if word[:8] == "run.dir="]
    options = [] if overrides else words
    words = ["train", "--dry-run", *options, "--", *run_settings, *overrides]
    assert launch_main(["submit", *words]) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert said.count("\n") == 1


def test_the_list_of_an_array_keeps_odd_names(tmp_path: Path) -> None:
    runs = [tmp_path / name for name in ("a\u2028b", "c d", "e\x0cf")]
    (tmp_path / "slurm").mkdir()
    listed = "".join(f"{run}/slurm/train.yaml\n" for run in runs)
    (tmp_path / "slurm" / "configurations.txt").write_text(listed)
    assert runs_of_array(tmp_path) == runs


@pytest.mark.parametrize(
    ("site", "expected"),
    [
        ("", "4 8 SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"),
        ("OMP_NUM_THREADS=3", "3 8 SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"),
        ("SRUN_CPUS_PER_TASK=6", "3 6 SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"),
        ("export TORCHELASTIC_SIGNALS_TO_HANDLE=SIGTERM,SIGUSR1", "4 8 SIGTERM,SIGUSR1"),
        ("export PET_SIGNALS_TO_HANDLE=SIGTERM", "4 8 SIGTERM,SIGUSR1"),
    ],
)
@pytest.mark.parametrize("kind", ["train", "evaluate", "seeds"])
def test_what_the_site_sets_stays(kind: str, site: str, expected: str) -> None:
    script = fill_in(kind, Site(setup=(site,)), [], options={})
    part = script.partition("# ---- arguments\n")[0]
    if kind == "seeds":  # which ends with train.sbatch, site block included
        part += "SEEDS=yes\n"
        part += fill_in("train", Site(), [], options={}).partition("# ---- arguments\n")[0]
    part += '. launch/slurm/functions.sh\necho "$OMP_NUM_THREADS $SRUN_CPUS_PER_TASK '
    part += '$PET_SIGNALS_TO_HANDLE"\n[ "$PET_SIGNALS_TO_HANDLE" = '
    part += '"$TORCHELASTIC_SIGNALS_TO_HANDLE" ]\n'
    of_the_job = {"SLURM_JOB_NUM_NODES": "1", "SLURM_GPUS_ON_NODE": "2", "SLURM_CPUS_PER_TASK": "8"}
    done = subprocess.run(
        ["/bin/bash", "-c", part],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", **of_the_job},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1] == expected
    assert ("is without SIGUSR1" in done.stdout) == site.endswith("=SIGTERM")
