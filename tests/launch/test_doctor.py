"""`python -m launch doctor`: its steps on this machine, and what it makes of their facts."""

from __future__ import annotations

import copy
import itertools
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from full_disk import fill
from hypothesis import given, settings
from hypothesis import strategies as some
from packed import packed_set

from launch.__main__ import main as launch_main
from launch.doctor.examination import Examiner
from launch.doctor.findings import forecast as forecasts
from launch.doctor.findings import of_devices, of_files, of_network, of_nodes
from launch.doctor.findings.finding import Finding, exit_code
from launch.doctor.node import Request, as_lines, read_answers
from launch.doctor.nodes import Answers, Nodes
from launch.doctor.report import Examination, show
from launch.doctor.steps import facts, forecast, storage, tcp
from launch.site import ROOT

long = some.text(max_size=20).map(lambda text: text * 100)
answers = some.dictionaries(some.text(max_size=5), long, max_size=3)


@settings(max_examples=25)
@given(answers, answers, some.randoms())
def test_answers_arrive_whole_however_their_lines_are_mixed(
    one: dict[str, str], other: dict[str, str], random: Any
) -> None:
    lines = [*as_lines("a", one), *as_lines("b", other), "what a library says"]
    random.shuffle(lines)
    assert all(len(line) < 1000 for line in lines)  # what srun forwards in one piece
    assert read_answers(lines) == {"a": one, "b": other}
    assert read_answers(as_lines("a", {"x": "y" * 2000})[1:]) == {}  # cut: no answer


def request(node: str, nodes: list[str], **more: Any) -> Request:
    base: Request = {"node": node, "nodes": nodes, "port": 0, "timeout_s": 20.0}
    return {**base, **more}  # type: ignore[typeddict-item]


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """The facts of this machine, as if two nodes had them."""
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    found = facts.run(request("a", ["a", "b"]))
    return {"a": found, "b": copy.deepcopy(found)}


def test_versions_that_differ(two: dict[str, dict[str, Any]]) -> None:
    assert of_nodes.versions(two) == []
    assert {"python", "mmsa", "torch", "nccl", "nvidia driver"} <= set(two["a"]["versions"])
    two["c"] = copy.deepcopy(two["a"])
    torch, two["b"]["versions"]["torch"] = two["a"]["versions"]["torch"], "1.0"
    (finding,) = of_nodes.versions(two)
    assert (finding.level, finding.nodes, finding.docs) == (
        "error",
        ("b",),
        "docs/doctor.md#versions",
    )
    assert finding.found == f"{torch} on a, c; 1.0 on b"


def test_names(two: dict[str, dict[str, Any]]) -> None:
    for one in two.values():
        one["names"] = {"a": ["10.0.0.1"], "b": ["10.0.0.2"]}
    assert of_network.names(two) == []
    two["a"]["names"]["a"] = ["127.0.1.1"]
    two["b"]["names"]["a"] = []
    loopback, unknown = of_network.names(two)
    assert (loopback.level, loopback.nodes, loopback.found) == (
        "warning",
        ("a",),
        "a is 127.0.1.1",
    )
    assert (unknown.level, unknown.nodes, unknown.what) == ("error", ("b",), "b cannot resolve a")
    # A node that is alone may call itself what it likes.
    assert of_network.names({"a": two["a"]}) == []


def test_limits_and_interfaces(two: dict[str, dict[str, Any]]) -> None:
    sound, poor = two["a"], two["b"]
    sound |= {"open_files": (1024, 4096), "infiniband": [], "shm_free_bytes": 2 << 30}
    sound["variables"] = {"NCCL_SOCKET_IFNAME": "l", "GLOO_SOCKET_IFNAME": "lo"}
    assert of_nodes.limits({"a": sound}) == []
    poor |= {"open_files": (1024, 1024), "infiniband": ["mlx5_0"], "locked_memory": 65536}
    poor |= {"shm_free_bytes": 64 << 20}
    poor["variables"] = {"NCCL_SOCKET_IFNAME": "=l", "GLOO_SOCKET_IFNAME": "none0"}
    found = [(finding.level, finding.what) for finding in of_nodes.limits({"b": poor})]
    assert found == [
        ("warning", "few files may be open"),
        ("warning", "memory that InfiniBand locks is limited"),
        ("warning", "little shared memory is free"),
        ("error", "NCCL_SOCKET_IFNAME==l names no interface that is up"),
        ("error", "GLOO_SOCKET_IFNAME=none0 names no interface that is up"),
    ]


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        found = facts.run(request("a", ["a"], port=port))
    (finding,) = of_network.port({"a": found}, "a", port)
    assert finding.found == "Address already in use"
    assert f"port {port} of a" in finding.what
    assert facts.port_problem(facts.free_ports(1)[0]) == ""


def test_pairs_of_nodes_connect_and_compare_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    names = ["localhost", "127.0.0.1"]
    ports = dict(zip(names, facts.free_ports(2), strict=True))
    found: dict[str, Any] = {}

    def node(name: str) -> None:
        found[name] = tcp.run(request(name, names, ports=ports))

    threads = [threading.Thread(target=node, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    there = found["localhost"]["peers"]["127.0.0.1"]
    assert there["local"] == "127.0.0.1"
    assert 0 < there["rtt_s"] < 10
    assert abs(there["offset_s"]) < there["rtt_s"]
    of_names = {name: {"names": {}} for name in names}
    assert of_network.connections(found, of_names) == []


def test_a_node_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    names = ["localhost", "127.0.0.1"]
    ports = dict(zip(names, facts.free_ports(2), strict=True))
    alone = tcp.run(request("localhost", names, ports=ports, timeout_s=0.5))
    found = {"localhost": alone, "127.0.0.1": {"peers": {}}}
    of_names = {"localhost": {"names": {"127.0.0.1": ["127.0.0.1"]}}}
    (finding,) = of_network.connections(found, of_names)
    assert (finding.level, finding.nodes) == ("error", ("localhost", "127.0.0.1"))
    assert finding.found.startswith(f"Connection refused (port {ports['127.0.0.1']}")


def test_the_clock_that_is_wrong_is_named_also_if_it_is_the_heads() -> None:
    def peers(**ahead: float) -> dict[str, Any]:
        return {"peers": {node: {"offset_s": offset} for node, offset in ahead.items()}}

    tcp_of = {"a": peers(b=30.0, c=30.1), "b": peers(a=-30.0, c=0.1), "c": peers(a=-30.1, b=-0.1)}
    (finding,) = of_network.connections(tcp_of, {})
    assert (finding.nodes, finding.found) == (("a",), "-30.0 s compared with the others")
    assert of_network.connections({"a": peers(b=0.5), "b": peers(a=-0.5)}, {}) == []


def test_a_full_disk(small_disk: Callable[[str], Path], tmp_path: Path) -> None:
    disk = small_disk("8m")
    fill(disk, leave_bytes=4096)
    node = request("a", ["a"], run_dir=str(disk / "runs" / "first"))
    found = storage.run(node)
    (finding,) = of_files.storage({"a": {**found, "temporary": {"free_bytes": 1e12}}})
    assert (finding.level, finding.check) == ("error", "disks")
    assert f"{disk}: No space left on device" in finding.found
    assert [path.name for path in disk.iterdir()] == ["filler"]
    there = storage.run(request("a", ["a"], run_dir=str(tmp_path / "new")))["run_dir"]
    assert there["write_bytes_per_s"] > 0
    assert list(tmp_path.glob("*doctor*")) == list(tmp_path.glob("new")) == []


def test_shards_that_cannot_be_read_or_differ(tmp_path: Path) -> None:
    def read(path: Path) -> dict[str, Any]:
        found = storage.run(request("a", ["a"], shards=str(path)))
        return {**found, "temporary": {"free_bytes": 1e12}}

    for name, sizes in (("one", (7, 5)), ("other", (7, 6))):
        (tmp_path / name).mkdir()
        packed_set(tmp_path / name, sizes)
    one, other, none = (read(tmp_path / name) for name in ("one", "other", "none"))
    assert one["shards"]["samples"] == 12
    tars = sum(path.stat().st_size for path in (tmp_path / "one").glob("*.tar"))
    assert one["shards"]["read_bytes"] == tars
    assert of_files.storage({"a": one, "b": one}) == []
    unreadable, different = of_files.storage({"a": one, "b": one, "c": other, "d": none})
    assert (unreadable.nodes, unreadable.what) == (("d",), "the shards cannot be read")
    assert (different.nodes, different.what) == (("c",), "nodes have different shards")


def test_stragglers() -> None:
    def node(flops: float, *gpus: float) -> dict[str, Any]:
        rows = [{"index": n, "bf16_flops_per_s": speed} for n, speed in enumerate(gpus)]
        return {"cpu_flops_per_s": flops, "gpus": rows, "nvidia_smi": []}

    assert of_devices.stragglers({"a": node(100e9), "b": node(95e9), "c": node(91e9)}) == []
    found = of_devices.stragglers(
        {"a": node(100e9, 9e14, 7e14), "b": node(100e9, 9e14, 9e14), "c": node(70e9)}
    )
    assert [(one.nodes, one.found) for one in found] == [
        (("c",), "70 GFLOP/s, 30 % under the median"),
        (("a",), "7e+05 GFLOP/s, 22 % under the median"),
    ]
    assert of_devices.stragglers({"a": node(1.0)}) == []


def test_what_is_wrong_with_gpus() -> None:
    used = {"index": "0", "memory.used": "5000", "memory.total": "80000"}
    used["ecc.errors.uncorrected.volatile.total"] = "2"
    hot = {"index": "0", "clocks_throttle_reasons.active": "0x0000000000000040"}
    hot["temperature.gpu"] = "91"
    gpu = {"index": 0, "bf16_flops_per_s": 1.0, "under_load": [hot]}
    found = of_devices.gpus({"a": {"gpus": [gpu], "nvidia_smi": [used]}}, expected=2)
    assert [(one.level, one.what, one.found) for one in found] == [
        (
            "error",
            "fewer GPUs than requested can be used",
            "1 by torch; the driver's tool says 1",
        ),
        ("warning", "GPU 0 lowers its clocks under load", "too hot, 91 C"),
        ("warning", "GPU 0 is in use", "5000 MiB of 80000 MiB"),
        ("error", "GPU 0 has memory errors that were not corrected", "2"),
    ]
    gpu["under_load"] = [{"index": "0", "clocks_throttle_reasons.active": "[N/A]"}]
    assert of_devices.gpus({"a": {"gpus": [gpu], "nvidia_smi": []}}, expected=1) == []


def test_weights_that_one_node_lacks() -> None:
    lacks = {"what": "tokenizer", "source": "bert", "problem": "not in the cache"}
    (finding,) = of_files.weights({"a": {"missing": []}, "b": {"missing": [lacks]}})
    assert (finding.nodes, finding.found) == (("b",), "tokenizer: bert")


OF_A_RUN = {
    "ranks": 4,
    "global_batch": 64,
    "num_steps": 100,
    "together_per_s": 40.0,
    "loader_per_s": 50.0,
    "workers": 2,
    "step_per_s": 100.0,
    "gradient_bytes": 400,
}


def test_the_forecast_of_a_run_that_waits_for_data() -> None:
    # 64 samples at 4 x 40 samples/s take 0.4 s, an all-reduce of 400 bytes 4 x 0.1 s.
    sizes = {"10": {"seconds": 9.0}, "100": {"seconds": 0.1}}
    one = forecasts.forecast({**OF_A_RUN, "real": {"samples_per_s": 100.0, "ranks": 4}}, sizes)
    assert one.expected_per_s == pytest.approx(80.0)
    assert one.expected_s == pytest.approx(80.0)
    assert one.communication_share == pytest.approx(0.5)
    assert one.workers_needed == 4  # of 25 samples/s each
    assert one.error == pytest.approx(-0.2)
    assert forecasts.in_words(one) == [
        "80 samples/s with 4 rank(s): 100 steps take 0:01:20, without validation and checkpoints",
        "steps alone 400 samples/s; the loader alone 200 with 2 worker(s) a rank",
        "data-bound: needs 4 workers a rank, has 2",
        "communication takes at most 50 % of a step",
        "the run in the run directory makes 100 samples/s: the forecast is 20 % below it",
    ]
    assert [finding.what for finding in forecasts.findings(one, "a")] == [
        "the run would be data-bound",
        "communication takes much of a step",
    ]
    # A run of another number of ranks says nothing, and one rank does not communicate.
    alone = forecasts.forecast(
        {**OF_A_RUN, "ranks": 1, "loader_per_s": 95.0, "real": {"samples_per_s": 1, "ranks": 4}},
        sizes,
    )
    assert (alone.workers_needed, alone.communication_s, alone.error) == (None, 0.0, None)


def test_the_largest_micro_batch_that_fits() -> None:
    assert forecast.largest(lambda rows: rows <= 50, 8) == 32
    assert forecast.largest(lambda rows: False, 8) == 0
    assert forecast.largest(lambda rows: True, 8, most=64) == 64


def test_what_a_run_has_logged(tmp_path: Path) -> None:
    assert forecast.real_run(tmp_path) == {}
    lines = [f'{{"kind": "train", "samples_per_s": {rate}}}\n' for rate in (1, 30, 10, 20)]
    (tmp_path / "metrics.jsonl").write_text("".join([*lines, '{"kind": "validation"}\n']))
    (tmp_path / "log.txt").write_text("engine ddp, world_size 1, x\nengine ddp, world_size 2, x\n")
    assert forecast.real_run(tmp_path) == {"samples_per_s": 20, "lines": 3, "ranks": 2}


def test_a_node_that_is_silent_or_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    here = Nodes.here()
    # Its process ends itself before Python has imported the step.
    silent = here.run("facts", {"port": 0}, timeout_s=0.001)
    assert set(silent.problems) == silent.silent == set(here.names)
    (finding,) = of_nodes.silent("facts", silent.problems)
    assert (finding.level, finding.nodes) == ("error", here.names)
    failed = here.run("tcp", {}, timeout_s=60)  # without ports
    assert failed.silent == frozenset()
    assert failed.problems[here.names[0]].startswith("KeyError")


@dataclass(frozen=True)
class SilentFrom(Nodes):
    """These nodes answer no step from `step` on, as when a file system hangs."""

    step: str = ""

    def run(self, step: str, request: Request, **more: Any) -> Answers:
        if step != self.step:
            return super().run(step, request, **more)
        none = dict.fromkeys(self.names, "no answer within 1 s")
        return Answers({}, none, frozenset(none))


@pytest.mark.parametrize("step", ["storage", "collectives"])
def test_nodes_that_all_fall_silent_are_an_error(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    here = Nodes.here().names
    base = request("", [], gpus=0, run_dir="", shards="", words=[], imports=[], cache="")
    examiner = Examiner(SilentFrom(here, False, step=step), base, gpus=0, timeout_s=60)
    one = examiner.examine()
    assert one.exit_code == 2
    (silent,) = [finding for finding in one.findings if finding.level == "error"]
    assert (silent.nodes, silent.found) == (here, "no answer within 1 s")


def test_a_doctor_that_fails_does_not_end_as_with_warnings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    site = tmp_path / "site.yaml"
    site.write_text("{}\n")
    monkeypatch.setattr(Nodes, "run", lambda *_, **__: {}["of a bug"])
    assert launch_main(["doctor", "--here", "--site", str(site)]) == 2
    assert "KeyError: 'of a bug'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--here", "--nodes", "2"], "leave out --nodes"),
        (["--partition", "gpu"], "add --nodes 2"),
        (["--nodes", "0"], "at least 1"),
        (["--port", "70000"], "1 to 65535"),
        (["--here", "--timeout", "-1"], "--timeout -1: expected seconds, more than 0"),
        (["--here", "--timeout", "0"], "--timeout 0: expected seconds, more than 0"),
        (["--here", "--timeout", "nan"], "--timeout nan: expected seconds, more than 0"),
    ],
)
def test_contradicting_options(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch_main(["doctor", *words]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("measured", "told"),
    [
        ({}, "not measured; add --run-dir DIR: write; --shards OUT: read, samples read\n"),
        ({"run_dir": {}}, "not measured; add --shards OUT: read, samples read\n"),
        ({"run_dir": {}, "shards": {"error": "broken"}}, ""),
        (None, ""),  # no answer: the options may have been given
    ],
)
def test_the_table_says_which_options_fill_its_empty_columns(
    measured: dict[str, Any] | None, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    show(Examination(["a"], {"storage": {} if measured is None else {"a": measured}}))
    table, _, rest = capsys.readouterr().out.partition("\n\n")
    assert table.count("\n") == (2 if told else 1)
    assert f"{table}\n".endswith(told)
    assert "not measured" not in rest


def test_exit_codes_and_sections_of_the_page() -> None:
    def finding(level: Any, check: str = "names") -> Finding:
        return Finding(level, check, ("a",), "what", "found", "expected", "do")

    assert exit_code([]) == 0
    assert exit_code([finding("warning")]) == 1
    assert exit_code([finding("warning"), finding("error")]) == 2
    page = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    checks = ("nodes", "versions", "names", "port", "network", "clocks", "limits", "disks")
    for check in itertools.chain(checks, ("shards", "weights", "gpus", "stragglers")):
        assert f"\n## {finding('error', check).docs.partition('#')[2]}\n" in page
    for check in ("collectives", "forecast"):
        assert f"\n## {check}\n" in page


def test_submit_check_examines_before_it_trains(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(ROOT)
    shape = ["--nodes", "2", "--cpu-processes", "1", "--time", "4:00:00"]
    assert launch_main(["submit", "train", "--check", "--dry-run", *shape, "--", *settings]) == 0
    said = capsys.readouterr().out
    script = said[said.index("doctor.sbatch") : said.index("train.sbatch")]
    assert "#SBATCH --nodes=2" in script
    assert "#SBATCH --time=00:15:00" in script
    assert f"set -- -- {tmp_path}/run/slurm/train.yaml" in script
    assert launch_main(["submit", "evaluate", "--check", "--", "runs/first"]) == 2
    assert "--check goes with submit train" in capsys.readouterr().err
