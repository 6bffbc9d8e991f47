"""What `python -m launch submit` writes, and what it refuses before submitting anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from launch.__main__ import main as launch_main
from launch.job_log import record_job
from launch.script import SCRIPTS, fill_in, warning_s
from launch.site import ROOT, Site, load_site
from mmsa.config import load_config
from mmsa.errors import UserError

NO_SLURM = "there is no SLURM on this machine"


@pytest.fixture(autouse=True)
def in_the_root_without_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert launch_main(["submit", *words]) == 2
    return capsys.readouterr().err


def test_a_dry_run_shows_script_and_configuration_and_writes_nothing(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = ["--nodes", "2", "--gpus-per-node", "4", "--time", "4:00:00", "--partition", "gpu"]
    site = tmp_path / "site.yaml"
    site.write_text("setup: [module load cuda]\ncache: /shared/cache\nnodes: 7\nqos: 'a b'\n")
    words = ["train", "--dry-run", "--site", str(site), *shape, "--chain", "train,evaluate"]
    assert launch_main(["submit", *words, "--engine", "zero2", "--", *settings]) == 0
    said = capsys.readouterr().out
    assert "there is no SLURM on this machine: the partition was not checked" in said
    assert "16 = micro-batch 2 x accumulation 1 x world 8; 25 samples = 1 steps" in said
    folder = tmp_path / "run" / "slurm"
    pieces = dict(piece.split("\n", maxsplit=1) for piece in said.split("\n==> ")[1:])
    assert list(pieces) == [
        f"{folder}/{name}" for name in ("train.yaml", "train.sbatch", "evaluate.sbatch")
    ]
    resolved = yaml.safe_load(pieces[f"{folder}/train.yaml"])
    assert resolved["launch"] == {"engine": "zero2", "world_size": 8}
    script = pieces[f"{folder}/train.sbatch"].splitlines()
    for line in (
        "#SBATCH --nodes=2",
        "#SBATCH --gpus-per-node=4",
        "#SBATCH --cpus-per-task=32",
        "#SBATCH --mem=128G",
        "#SBATCH --partition=gpu",
        "#SBATCH --time=4:00:00",
        '#SBATCH --qos="a b"',
        f"#SBATCH --output={folder}/train-%j.log",
        "#SBATCH --signal=B:USR1@300",
        "ENGINE=zero2",
        "module load cuda",
        "export HF_HOME=/shared/cache/huggingface",
        f"set -- --config {folder}/train.yaml",
    ):
        assert script.count(line) == 1, line
    assert f"set -- {tmp_path / 'run'} --split test" in pieces[f"{folder}/evaluate.sbatch"]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["--nodes", "2", "--gpus-per-node", "3"],
            "train.global_batch_size=16 does not divide by 6 ranks x micro-batch 2 = 12; use 12 or",
        ),
        (["data.shards=/nowhere"], "/nowhere"),
        (["train.epoch=3"], "unknown key train.epoch; did you mean train.epochs?"),
        (["model.fusion.name=sum"], "sum"),
        (["launch.world_size=4"], "launch.world_size=4, but the job has 1 node(s) x 1 CPU"),
        (["--engine", "zero2", "launch.engine=ddp"], "but the job uses zero2; give --engine"),
        (["--engine", "fsdp"], "engine: Input should be 'ddp', 'zero1', 'zero2' or 'zero3'"),
        (["--time", "soon"], "--time soon: expected MINUTES, HH:MM:SS"),
        (["--sbatch", "exclusive"], "--sbatch exclusive: expected KEY=VALUE"),
        (["--chain", "pack,train"], "expected submit train --chain train,evaluate"),
    ],
)
def test_refused(
    words: list[str],
    expected: str,
    settings: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    overrides = [word for word in words if "." in word.partition("=")[0]]
    options = [word for word in words if word not in overrides]
    found = refused(capsys, "train", "--dry-run", *options, "--", *settings, *overrides)
    assert expected in found
    assert not (tmp_path / "run").exists()


def test_imports_are_passed_on_to_the_jobs(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--dry-run", "--chain", "train,evaluate", "--cpu-processes", "2", "--"]
    assert launch_main(["submit", *words, *settings, "--import", "json"]) == 0
    said = capsys.readouterr().out
    assert f"set -- --config {tmp_path / 'run'}/slurm/train.yaml --import json\n" in said
    assert f"set -- {tmp_path / 'run'} --split test --import json\n" in said
    seeds = ["seeds", "--seeds", "0-1", "--dry-run", "--cpu-processes", "2", "--"]
    assert launch_main(["submit", *seeds, "--import", "json", *settings]) == 0
    assert "set -- --import json\n" in capsys.readouterr().out
    assert "--import no.such: importing it raised" in refused(
        capsys, *words, *settings, "--import=no.such"
    )
    pack = ["pack", "--dry-run", "--parts", "2", "--", "synthetic", str(tmp_path), "out"]
    assert launch_main(["submit", *pack, "--import", "json"]) == 0
    assert f"set -- synthetic {tmp_path} out --import json\n" in capsys.readouterr().out


def test_missing_weights_are_reported(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "site.yaml"
    site.write_text(f"cache: {tmp_path / 'cache'}\n")
    encoder = ["model.image_encoder.name=resnet18", "model.image_encoder.config=null"]
    encoder += ["model.image_encoder.weights=pretrained"]
    words = ["train", "--dry-run", "--site", str(site), "--", *settings, *encoder]
    assert launch_main(["submit", *words]) == 0
    said = capsys.readouterr().out
    assert "MISSING  image encoder: resnet18\n" in said
    assert "with python -m launch prefetch launch/runs/demo.yaml data.shards=" in said
    assert "MISSING  text encoder" not in said


def test_missing_slurm_is_reported(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, "train", "--", *settings)
    assert NO_SLURM in said
    assert "python -m launch run -n N CONFIG" in said
    for words in (["seeds", "--seeds", "0-1"], ["pack"], ["evaluate"]):
        assert NO_SLURM in refused(capsys, *words, "--", *settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", [["--config"], []])
def test_a_configuration_as_train_py_takes_it(
    option: list[str], settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = settings[0] if option else f"--config={settings[0]}"
    words = ["train", "--dry-run", "--", *option, file, *settings[1:]]
    assert launch_main(["submit", *words]) == 0
    assert f"set -- --config {tmp_path}/run/slurm/train.yaml\n" in capsys.readouterr().out


@pytest.mark.usefixtures("slurm")
def test_a_dry_run_without_a_controller(
    settings: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/usr/bin")
    conf = tmp_path / "slurm.conf"  # of a controller that does not run
    conf.write_text("ClusterName=x\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort=9\n")
    monkeypatch.setenv("SLURM_CONF", str(conf))
    record_job(tmp_path / "run" / "slurm", "17", kind="train", log="")
    assert launch_main(["submit", "train", "--dry-run", "--", *settings]) == 0
    said = capsys.readouterr().out
    assert "the partition was not checked: SLURM's `sinfo` failed: slurm_load_part" in said
    assert (
        f"whether {tmp_path}/run has a job in the queue was not checked: SLURM's `squeue`" in said
    )
    assert "nothing was submitted (--dry-run)" in said
    assert "error: SLURM's `sinfo` failed: slurm_load" in refused(capsys, "train", "--", *settings)


def test_a_run_directory_of_another_configuration_is_refused(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(load_config(settings[0], settings[1:]).to_yaml())
    # Shape and launch may change, the run's own settings may not.
    dry = ["train", "--dry-run", "--nodes", "2"]
    assert launch_main(["submit", *dry, "--", *settings]) == 0
    assert f"{run_dir} will resume from its newest checkpoint" in capsys.readouterr().out
    found = refused(capsys, *dry, "--", *settings, "optim.text_lr=0.5")
    assert "another configuration (optim.text_lr: 0.001 -> 0.5)" in found
    (run_dir / "status.json").write_text('{"state": "done"}')
    assert f"{run_dir} is finished; there is nothing to" in refused(capsys, *dry, "--", *settings)
    (run_dir / "config.yaml").rename(run_dir / "thesis.tex")
    assert "contains files of something else" in refused(capsys, *dry, "--", *settings)


def test_evaluation_and_packing_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = str(tmp_path / "nowhere")
    assert nowhere in refused(capsys, "evaluate", "--dry-run", "--", nowhere)
    pack = ["pack", "--dry-run", "--parts", "2", "--"]
    assert "expected SOURCE RAW OUT" in refused(capsys, *pack, "mvsa-single", nowhere)
    assert f"{nowhere} does not exist" in refused(capsys, *pack, "mvsa-single", nowhere, "out")
    assert "mvsa-singel" in refused(capsys, *pack, "mvsa-singel", nowhere, "out")
    no_config = ["train", "--dry-run", "--", "data.shards=x", "run.dir=y"]
    assert "expected a configuration file first after --" in refused(capsys, *no_config)
    with pytest.raises(SystemExit):  # argparse's own, with exit code 2
        launch_main(["submit", "evaluate", "--dry-run", "--", nowhere, "--split", "tset"])
    assert "invalid choice: 'tset'" in capsys.readouterr().err
    existing = [str(tmp_path), str(tmp_path)]
    assert "already exists" in refused(capsys, *pack, "mvsa-single", *existing)
    assert "nothing to submit" in refused(capsys, "pack", "--dry-run")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--seeds", "0-"], "--seeds 0-: expected numbers, such as 0-4 or 1,7,9"),
        (["--seeds", "1,1"], "at least one number, each once"),
        ([], "give either --seeds 0-4 or --configs FILE"),
        (["--configs", "a/x.yaml", "b/x.yaml"], "two have the same name"),
    ],
)
def test_seeds_are_refused(
    words: list[str], expected: str, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refused(capsys, "seeds", "--dry-run", *words, "--", *settings)


def test_configurations_are_an_array_of_runs(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = ["launch/runs/demo.yaml", "launch/runs/notebook.yaml"]
    words = ["seeds", "--dry-run", "--configs", *configs, "--at-once", "1", "--", *settings[1:]]
    assert launch_main(["submit", *words]) == 0
    said = capsys.readouterr().out
    base = tmp_path / "run"
    listed = [f"{base}/{name}/slurm/train.yaml" for name in ("demo", "notebook")]
    assert f"==> {base}/slurm/configurations.txt\n" + "\n".join(listed) + "\n" in said
    assert "#SBATCH --array=1-2%1\n" in said
    # The first configuration as a whole, of the other one what differs.
    assert said.count("keep_checkpoints:") == 1
    pieces = dict(piece.split("\n", maxsplit=1) for piece in said.split("\n==> ")[1:])
    differing = pieces[listed[1]].splitlines()
    assert differing[:2] == [f"(as {listed[0]}, but for)", f"run.dir: {base}/notebook"]
    assert any(line.startswith("model.text_encoder.name: ") for line in differing)


def test_five_seeds_differ_in_seed_and_directory(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch_main(["submit", "seeds", "--dry-run", "--seeds", "0-4", "--", *settings]) == 0
    said = capsys.readouterr().out
    base = tmp_path / "run"
    pieces = dict(piece.split("\n", maxsplit=1) for piece in said.split("\n==> ")[1:])
    first = f"{base}/seed-0/slurm/train.yaml"
    assert yaml.safe_load(pieces[first])["run"]["dir"] == f"{base}/seed-0"
    for seed in range(1, 5):
        assert pieces[f"{base}/seed-{seed}/slurm/train.yaml"].splitlines() == [
            f"(as {first}, but for)",
            f"run.dir: {base}/seed-{seed}",
            f"run.seed: {seed}",
        ]


def test_from_another_directory(
    settings: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert f"cd {ROOT}" in refused(capsys, "train", "--dry-run", "--", *settings)


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("5", 75), ("04:00:00", 300), ("1-0", 300), ("0:40", 10), ("20:00", 300), ("2-12:00:00", 300)],
)
def test_the_warning_leaves_a_short_job_time(time: str, seconds: int) -> None:
    assert warning_s(time) == seconds


def test_the_sites_file(tmp_path: Path) -> None:
    assert load_site(None) == Site()  # the repository's file sets nothing
    file = tmp_path / "site.yaml"
    file.write_text("partition: gpu\ntime: 4:00:00\nsbatch: {constraint: h100, exclusive: true}\n")
    site = load_site(file, partition="big")
    assert (site.partition, site.time) == ("big", "04:00:00")
    text = fill_in("train", site, ["--config", "a b.yaml"], options={})
    assert "#SBATCH --constraint=h100\n#SBATCH --exclusive\n" in text
    assert "set -- --config 'a b.yaml'\n" in text
    file.write_text("partitoin: gpu\nnodes: 0\n")
    with pytest.raises(UserError, match="2 problems") as error:
        load_site(file)
    assert "partitoin" in str(error.value)
    file.write_text("partition: gpu\nnodes: 2\npartition: big\n")
    with pytest.raises(UserError, match="the key 'partition' appears twice"):
        load_site(file)
    # Every key is in the repository's site file and on the page.
    page = (ROOT / "docs" / "slurm.md").read_text()
    assert [key for key in Site.model_fields if f"`{key}`" not in page] == []
    example = (ROOT / "launch" / "site.yaml").read_text()
    assert [key for key in Site.model_fields if f"\n# {key}:" not in example] == ["nodes"]


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.iterdir()))
def test_the_scripts_are_bash(script: str) -> None:
    subprocess.run(["/bin/bash", "-n", str(SCRIPTS / script)], check=True)


def test_help_answers_without_torch() -> None:
    code = (
        "import sys; from launch.__main__ import build_parser; build_parser(); "
        "print({'torch', 'transformers', 'numpy', 'mmsa.config'} & set(sys.modules) or 'none')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "none\n"
