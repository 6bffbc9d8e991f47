"""`python -m mmsa export --onnx`: torch's predictions without torch."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmsa
from mmsa.__main__ import main
from mmsa.errors import UserError
from tests.exporting.raw_images import raw_image


@pytest.fixture(scope="module")
def exported(world: Path, onnx: None) -> Path:
    """The ONNX directory of the export, with int8."""
    out = world / "onnx"
    arguments = ["export", str(world / "export"), "--onnx", str(out), "--int8", "--samples", "20"]
    assert main(arguments) == 0
    return out


def facts_of(exported: Path) -> dict[str, Any]:
    return dict(json.loads((exported / "onnx.json").read_text()))


def test_the_graph_agrees_with_torch_on_real_samples(exported: Path, world: Path) -> None:
    facts = facts_of(exported)
    compared = facts["compared_with_torch"]
    assert compared["num_samples"] == 20
    assert compared["split"] == "val"
    assert 0 <= compared["logit_difference"] <= 1e-4
    assert compared["labels_changed"] == 0
    assert facts["weights_sha256"] == mmsa.load(world / "export").export.weights_sha256
    assert facts["example"]["num_samples"] == 20
    assert facts["example"]["probability_difference_max"] < 0.02
    assert sorted(path.name for path in exported.iterdir()) == [
        "example.py", "model.int8.onnx", "model.onnx", "onnx.json", "prepare.py",
        "preprocessing.json", "tokenizer.json",
    ]  # fmt: skip


def test_the_cost_of_int8_is_measured_on_all_of_the_split(exported: Path) -> None:
    int8 = facts_of(exported)["int8"]
    assert int8["num_samples"] == 30
    assert 0 < int8["probability_difference_max"] < 0.1
    assert 0 <= int8["accuracy"] <= 1
    assert set(facts_of(exported)["cpu_milliseconds_per_sample"]) == {"1", "32"}
    assert set(facts_of(exported)["cpu_milliseconds_per_sample"]["32"]) == {"torch", "onnx", "int8"}


def test_the_split_is_read_one_batch_after_the_other(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmsa.evaluation.inputs.eval_target import Request, open_target
    from mmsa.exporting.onnx.samples import validation_batches, validation_samples

    target = open_target(Request(world / "export", "best", None, "val", None))
    assert [one.text for one in validation_samples(target, 99)] == [
        one.text for batch in validation_batches(target, 7) for one in batch
    ]
    num_read = 0
    read = target.reader.read

    def counted(shard: int, ordinal: int) -> Any:
        nonlocal num_read
        num_read += 1
        return read(shard, ordinal)

    monkeypatch.setattr(target.reader, "read", counted)
    sizes = [(len(batch), num_read) for batch in validation_batches(target, 7)]
    assert sizes == [(7, 7), (7, 14), (7, 21), (7, 28), (2, 30)]


def test_the_example_runs_without_torch_and_without_this_package(
    exported: Path, world: Path, tmp_path: Path
) -> None:
    """Text and image, and each alone; in a process that cannot import torch or mmsa."""
    image = tmp_path / "day.png"
    raw_image(image, 7)
    program = (
        "import sys\n"
        "for name in ('torch', 'mmsa', 'transformers', 'simplejpeg'): sys.modules[name] = None\n"
        f"sys.path.insert(0, {str(exported)!r})\n"
        "from example import predict\n"
        f"files = [None, {str(image)!r}, {str(image)!r}]\n"
        "print(predict(['what a day', 'not my day today', None], files).tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    expected = mmsa.load(world / "export", device="cpu").predict(
        ["what a day", "not my day today", None], [None, image, image]
    )
    found = np.array(json.loads(done.stdout))
    assert np.abs(found[0] - expected.probabilities[0]).max() < 1e-5  # of a text alone: exactly
    assert np.abs(found - expected.probabilities).max() < 0.02


def test_the_example_prints_four_digits(exported: Path, tmp_path: Path) -> None:
    raw_image(tmp_path / "day.png", 7)
    command = [sys.executable, str(exported / "example.py"), "what a day", "day.png"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert re.fullmatch(r"\{('\w+': [01]\.\d{1,4}(, )?)+\}\n", said), said
    assert sum(ast.literal_eval(said).values()) == pytest.approx(1, abs=2e-4)


def test_the_example_is_short_and_needs_four_libraries(exported: Path) -> None:
    example = (exported / "example.py").read_text(encoding="utf-8")
    statements = [line for line in example.splitlines() if line.strip()]
    assert len(statements) <= 20
    imported = set()
    for name in ("example.py", "prepare.py"):
        for node in ast.walk(ast.parse((exported / name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {one.name.partition(".")[0] for one in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).partition(".")[0])
    assert imported - set(sys.stdlib_module_names) == {
        "PIL", "numpy", "onnxruntime", "prepare", "tokenizers",
    }  # fmt: skip


def test_a_graph_that_differs_is_refused(exported: Path, world: Path, tmp_path: Path) -> None:
    import onnx
    import torch
    from onnx import numpy_helper

    from mmsa.evaluation.inputs.eval_target import Request, open_target
    from mmsa.exporting.onnx import agreement
    from mmsa.exporting.onnx.samples import validation_samples
    from mmsa.row_model import RowModel

    graph = onnx.load(exported / "model.onnx")
    changed = next(one for one in graph.graph.initializer if one.name.startswith("fusion."))
    changed.CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(changed) + np.float32(1e-3), changed.name)
    )
    onnx.save(graph, tmp_path / "changed.onnx")
    target = open_target(Request(world / "export", "best", None, "val", None))
    samples = validation_samples(target, 10)
    session = agreement.open_session(tmp_path / "changed.onnx", 1)
    model = RowModel(target.export, torch.device("cpu"))
    found = agreement.agreement(*agreement.logits_of_both(model, session, samples))
    with pytest.raises(UserError, match="does not agree with torch: logits of 10 validation"):
        agreement.require_agreement(found)


@pytest.mark.parametrize(
    ("shape", "fixed"), [(["b", "t"], False), ([3, "t"], True), (["b", 5], True)]
)
def test_a_graph_for_one_size_alone_is_refused(
    shape: list[Any], fixed: bool, onnx: None, tmp_path: Path
) -> None:
    import onnx as library
    from onnx import TensorProto, helper

    from mmsa.exporting.onnx import agreement

    given = helper.make_tensor_value_info("input_ids", TensorProto.INT64, shape)
    made = helper.make_tensor_value_info("logits", TensorProto.INT64, shape)
    node = helper.make_node("Identity", ["input_ids"], ["logits"])
    graph = helper.make_graph([node], "one", [given], [made])
    opset = [helper.make_opsetid("", 20)]
    library.save(helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "a.onnx")
    session = agreement.open_session(tmp_path / "a.onnx", 1)
    rows = np.zeros((2, 4), np.int64)
    if not fixed:
        agreement.require_free_sizes(session)
        assert agreement.run(session, {"input_ids": rows}).shape == (2, 4)
        return
    with pytest.raises(UserError, match="fixed the sizes of 'input_ids' to"):
        agreement.require_free_sizes(session)
    with pytest.raises(UserError, match="onnxruntime cannot compute the graph"):
        agreement.run(session, {"input_ids": rows})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "give --onnx DIR or --hub DIR"),
        (["--int8", "--hub", "x"], "--int8 is for --onnx"),
        (["--onnx", "x", "--samples", "0"], "--samples 0: expected an integer of at least 1"),
        (["--onnx", "x", "--push", "a/b"], "--push uploads what --hub DIR writes"),
        (["--hub", "x", "--dry-run"], "--dry-run is for --push"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    options: list[str], said: str, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(world / "export"), *options]) == 2
    assert said in capsys.readouterr().err


def test_a_directory_that_exists_is_left_alone(
    world: Path, tmp_path: Path, onnx: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").write_text("kept")
    assert main(["export", str(world / "export"), "--onnx", str(tmp_path)]) == 2
    assert "exists already; give a new directory" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
