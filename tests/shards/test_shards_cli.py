"""The command line as a process: what is printed, exit codes, interruption."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from raw import digests, raw_tree

from mmsa.data.manifest import load_manifest
from mmsa.errors import UserError
from shards.__main__ import main
from shards.packing.pack import pack
from shards.packing.settings import PackSettings

ROOT = Path(__file__).parents[2]


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "shards", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs tests in the background has its children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_the_table(small_raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "o u t")
    arguments = ["pack", "mvsa-single", str(small_raw), out, "--protocol", "random"]
    assert main(arguments) == 0
    packed = capsys.readouterr().out
    assert main(["info", out]) == 0
    rows = [line.split() for line in packed.splitlines()]
    for row in (["read", "22"], ["kept", "20"], ["dropped:", "labels", "conflict", "2"]):
        assert row in rows
    assert ["train", "5", "3", "8", "16", "1", "0.1"] in rows
    assert ["all", "6", "4", "10", "20"] in rows
    assert "rejected.jsonl" in packed
    assert f"next: python -m shards info '{out}'\n" in packed
    assert f"launch run -n 1 launch/runs/full_finetune.yaml 'data.shards={out}' run.dir=" in packed
    shown = capsys.readouterr().out
    head, _, tail = shown.partition("duplicates ")
    assert head.strip() in packed
    assert "text length" in tail
    assert "protocol  random, seed 0, ratios 8:1:1, hash " in shown
    assert shown.splitlines()[-1].startswith("next: python -m launch run ")
    # The settings and the versions of libraries are in the manifest, and take 280 characters.
    assert load_manifest(out).packing["simplejpeg"]
    for printed in (packed, shown):
        assert "simplejpeg" not in printed
        commands = ("next: ", "then: ", "packed into ")
        lines = [line for line in printed.splitlines() if not line.startswith(commands)]
        assert max(map(len, lines)) <= 120


def test_errors_are_one_message_and_code_2(tmp_path: Path) -> None:
    process = start("pack", "mvsa-single", str(tmp_path / "absent"), str(tmp_path / "out"))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert main(["pack", "mvsa-triple", str(tmp_path), str(tmp_path / "out")]) == 2
    assert main(["info", str(tmp_path)]) == 2


def test_nobody_reads_what_is_printed() -> None:
    """As behind `| head`, when head has gone."""
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run(
        [sys.executable, "-m", "shards", "protocols"],
        cwd=ROOT,
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=60,
    )
    os.close(writing)
    assert (process.returncode, process.stderr) == (128 + signal.SIGPIPE, b"")


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys, shards.__main__ as m\n"
        "try: m.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'webdataset', 'numpy', 'PIL', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "synthetic" in done.stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_packing_leaves_nothing_that_looks_whole(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    raw = raw_tree(tmp_path / "raw", ["neutral,neutral"] * 4000)
    # One worker: with two, both chunks may be done when the first is seen.
    arguments = ["pack", "mvsa-single", str(raw), str(tmp_path / "out"), "--quiet"]
    arguments += ["--workers", "1"]
    process = start(*arguments)
    while process.poll() is None and not list(tmp_path.glob(".out.packing/chunks/*.json")):
        time.sleep(0.002)
    os.kill(process.pid, number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == code
    assert ("by the same command with --resume" in said) is (number == signal.SIGINT)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.packing", "raw"]
    assert main(arguments) == 2  # never silently anew
    assert main([*arguments, "--resume"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw"]


@pytest.mark.parametrize(("command", "said"), [("verify", False), ("push", True)])
def test_an_interruption_says_only_what_is_true(
    command: str,
    said: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"shards.{command}.{command}", interrupted)
    assert (
        main([command, str(tmp_path), *(["s3://bucket/set"] if command == "push" else [])]) == 130
    )
    whole = "; nothing incomplete was left under its final name"
    assert capsys.readouterr().err == f"interrupted{whole if said else ''}\n"


def test_a_killed_packing_is_gone_on_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = raw_tree(tmp_path / "raw", ["neutral,neutral", "positive,positive"] * 1000)
    pack = ["pack", "mvsa-single", str(raw)]
    assert main([*pack, str(tmp_path / "whole"), "--quiet", "--workers", "1"]) == 0
    arguments = [*pack, str(tmp_path / "out"), "--quiet", "--workers", "2"]
    process = start(*arguments)
    chunks = tmp_path / ".out.packing" / "chunks"
    while process.poll() is None and not list(chunks.glob("*.json")):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (tmp_path / "out").exists()
    done = {path: path.stat().st_mtime_ns for path in chunks.glob("chunk-*.bin")}
    damaged = sorted(chunks.glob("chunk-*.bin"))[0]
    # One chunk that is not what it was: it must be made again, the others used.
    damaged.write_bytes(b"X" + damaged.read_bytes()[1:])
    assert main(arguments) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*arguments, "--resume", "--image-quality", "80"]) == 2
    assert f"{tmp_path}/out: image_quality: 90 -> 80. Use the" in capsys.readouterr().err
    assert main([*arguments, "--resume", "--labels", "agree"]) == 2
    assert f"{tmp_path}/out: labels: fused -> agree. Use the" in capsys.readouterr().err
    assert done
    assert main([*arguments, "--resume"]) == 0
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw", "whole"]


def test_two_packings_do_not_share_a_place(tmp_path: Path) -> None:
    raw = raw_tree(tmp_path / "raw", ["neutral,neutral"] * 400)
    arguments = ["pack", "mvsa-single", str(raw), str(tmp_path / "out"), "--quiet"]
    process = start(*arguments)
    while process.poll() is None and not list(tmp_path.glob(".out.packing/chunks/*.json")):
        pass
    os.kill(process.pid, signal.SIGSTOP)
    try:
        for _ in range(2):
            with pytest.raises(UserError, match="another process is packing"):
                pack("mvsa-single", raw, tmp_path / "out", PackSettings(), resume=True, quiet=True)
            (tmp_path / ".out.packing" / "lock").unlink(
                missing_ok=True
            )  # which lets nobody in either
    finally:
        os.kill(process.pid, signal.SIGCONT)
        process.communicate(timeout=60)
    assert process.returncode == 0
