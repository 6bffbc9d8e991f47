"""`python -m mmsa export --hub`, and exports that are fetched from a hub."""

from __future__ import annotations

import base64
import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard, constants

import mmsa
from evaluate import main as evaluate_main
from mmsa.__main__ import main
from mmsa.errors import UserError
from mmsa.evaluation.inputs.ledger import read_ledger
from mmsa.labels import LABEL_NAMES
from tests.exporting.fake_hub import TOKEN, FakeHub, Repository
from tests.exporting.raw_images import raw_image

EXPORT = [
    "config.yaml", "digests.json", "export.json", "labels.json", "model.safetensors",
    "preprocessing.json", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json",
]  # fmt: skip


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub on this machine, with an empty cache and a current directory of its own."""
    served = FakeHub()
    template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", served.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield served
    served.close()


def push(world: Path, out: Path, *options: str) -> int:
    return main(["export", str(world / "export"), "--hub", str(out), *options])


def names_below(directory: Path) -> list[str]:
    return sorted(
        str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()
    )


def test_the_directory_is_the_export_with_a_card_and_a_handler(world: Path, tmp_path: Path) -> None:
    assert push(world, tmp_path / "out") == 0
    assert set(names_below(tmp_path / "out")) == {*EXPORT, "README.md", "handler.py"}
    for name in EXPORT:
        ours = (world / "export" / name).read_bytes()
        assert (tmp_path / "out" / name).read_bytes() == ours, name
    assert main(["verify", str(tmp_path / "out")]) == 0


def test_the_card_has_the_results_of_the_report(world: Path, tmp_path: Path) -> None:
    assert push(world, tmp_path / "out", "--license", "cc-by-4.0", "--package", "git+x") == 0
    [path] = (world / "export" / "reports").glob("*/metrics.json")
    metrics = json.loads(path.read_text())
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert card.data.library_name == "mmsa"
    found = {one.metric_name: one for one in card.data.eval_results or []}
    assert set(found) == {"Accuracy", "Macro F1", "Weighted F1"}
    for name, key in (("Accuracy", "accuracy"), ("Macro F1", "macro_f1")):
        one, score = found[name], metrics["scores"][key]
        assert one.metric_value == score["value"]
        assert one.metric_args == {"low": score["low"], "high": score["high"], "level": 0.95}
        assert one.dataset_split == "test"
        assert one.dataset_args == {
            "protocol_hash": "0" * 64,
            "shards_digest": metrics["identity"]["shards_digest"],
            "num_samples": 30,
        }
    assert f"{metrics['scores']['accuracy']['value']:.3f} (" in card.text
    assert str(world) not in card.content
    assert (tmp_path / "out" / "requirements.txt").read_text() == "git+x\n"


def test_a_report_of_other_weights_is_refused(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [report] = (world / "export" / "reports").iterdir()
    other = Path(shutil.copytree(report, tmp_path / "other"))
    metrics = json.loads((other / "metrics.json").read_text())
    metrics["identity"]["weights_sha256"] = "1" * 64
    (other / "metrics.json").write_text(json.dumps(metrics))
    assert push(world, tmp_path / "out", "--report", str(other)) == 2
    assert "is of other weights than the export" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_damaged_export_is_not_handed_on(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(world / "export", tmp_path / "export"))
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert main(["export", str(copy), "--hub", str(tmp_path / "out")]) == 2
    assert "is damaged: model.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_handler_answers_as_the_model(world: Path, tmp_path: Path) -> None:
    assert push(world, tmp_path / "out") == 0
    spec = importlib.util.spec_from_file_location("handler_of_test", tmp_path / "out/handler.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    handler = module.EndpointHandler(str(tmp_path / "out"))
    raw = raw_image(tmp_path / "a.png", 3)
    post = {"text": "what a day", "image": base64.b64encode(raw).decode()}
    expected = mmsa.load(world / "export", device="cpu").predict(["what a day"], [raw])
    answer = handler({"inputs": post})
    assert answer[0]["label"] == expected.labels[0]
    scores = {one["label"]: one["score"] for one in answer}
    assert [scores[name] for name in LABEL_NAMES] == expected.probabilities[0].tolist()
    several = handler({"inputs": [post, "a text alone", {"image": "?"}, {"text": " "}]})
    assert several[0] == answer
    assert {one["label"] for one in several[1]} == set(LABEL_NAMES)
    assert several[2] == {"error": "image is not base64"}
    assert "empty text" in several[3]["error"]


def test_a_pushed_model_is_loaded_evaluated_and_nothing_else_is_fetched(
    world: Path, tmp_path: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push(world, tmp_path / "out", "--push", "acme/mood", "--private") == 0
    assert f"pushed to {hub.url}/acme/mood" in capsys.readouterr().out
    repository = hub.repositories["acme/mood"]
    assert repository.private
    assert [message for _, message, _ in repository.commits] == [
        "Weights, tokenizer, preprocessing and handler",
        "Model card",
    ]
    assert set(repository.commits[0][2]) == {*EXPORT, "handler.py"}
    weights = (world / "export" / "model.safetensors").read_bytes()
    assert repository.files()["model.safetensors"] == weights

    repository.add("a pickle", {"pytorch_model.bin": b"never", "tokenizer.py": b"raise"})
    hub.requests.clear()
    model = mmsa.load("acme/mood", device="cpu")
    asked = {path.partition("/resolve/")[2].partition("/")[2] for _, path in hub.requests}
    assert asked - {""} == set(EXPORT)
    ours = mmsa.load(world / "export", device="cpu")
    texts = ["what a day", "not my day"]
    images = [raw_image(tmp_path / f"{n}.png", n) for n in range(2)]
    same = ours.predict(texts, images).probabilities
    assert np.array_equal(model.predict(texts, images).probabilities, same)

    hub.requests.clear()  # from now on the files of this machine are used
    assert evaluate_main(["acme/mood", "--shards", str(world / "shards"), "--no-page"]) == 0
    assert hub.requests == []
    [report] = Path("hub/acme--mood/reports").iterdir()
    [local] = (world / "export" / "reports").glob("*/metrics.json")
    found = json.loads((report / "metrics.json").read_text())["scores"]
    assert found == json.loads(local.read_text())["scores"]
    assert read_ledger("hub/acme--mood").num_openings == 1
    assert evaluate_main(["acme/mood", "--split", "val", "--calibrate"]) == 2


def test_the_card_alone_is_replaced(world: Path, tmp_path: Path, hub: FakeHub) -> None:
    hub.repositories["acme/mood"] = Repository()
    hub.repositories["acme/mood"].add("first", {"model.safetensors": b"as it was"})
    assert push(world, tmp_path / "out", "--push", "acme/mood", "--card-only") == 0
    files = hub.repositories["acme/mood"].files()
    assert set(files) == {"model.safetensors", "README.md"}
    assert files["model.safetensors"] == b"as it was"


def test_a_dry_run_sends_nothing(
    world: Path, tmp_path: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push(world, tmp_path / "out", "--push", "acme/mood", "--dry-run") == 0
    assert hub.requests == []
    said = capsys.readouterr().out
    assert "dry run, nothing was sent. To acme/mood:" in said
    assert all(name in said for name in (*EXPORT, "README.md", "handler.py"))


def test_a_revision_is_chosen(world: Path, tmp_path: Path, hub: FakeHub) -> None:
    assert push(world, tmp_path / "out", "--push", "acme/mood") == 0
    repository = hub.repositories["acme/mood"]
    commit = repository.commits[-1][0]
    repository.add("damage", {"labels.json": b"{}"})
    assert mmsa.load(f"acme/mood@{commit}", device="cpu").label_names == LABEL_NAMES
    with pytest.raises(UserError, match=r"is damaged: labels\.json"):
        mmsa.load("acme/mood", device="cpu")
    with pytest.raises(UserError, match="acme/mood has no revision 'none'"):
        mmsa.load("acme/mood@none", device="cpu")


def test_revisions_have_their_own_reports_and_one_ledger(
    world: Path, tmp_path: Path, hub: FakeHub
) -> None:
    assert push(world, tmp_path / "out", "--push", "acme/mood") == 0
    repository = hub.repositories["acme/mood"]
    commit = repository.commits[-1][0]
    options = ["--shards", str(world / "shards"), "--no-page", "--no-floors"]
    for name in ("acme/mood", f"acme/mood@{commit}"):
        assert evaluate_main([name, *options]) == 0
    reports = {path.name.partition("-")[2] for path in Path("hub/acme--mood/reports").iterdir()}
    assert {name.partition("-tiny")[0] for name in reports} == {"export", f"export@{commit}"}
    assert read_ledger("hub/acme--mood").num_openings == 2


def test_a_target_whose_report_another_one_is_opens_nothing(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A report of earlier weights would be replaced before it is compared."""
    export = Path(shutil.copytree(world / "export", tmp_path / "export"))
    [report] = (export / "reports").iterdir()
    metrics = json.loads((report / "metrics.json").read_text())
    metrics["identity"]["weights_sha256"] = "1" * 64
    (report / "metrics.json").write_text(json.dumps(metrics))
    before = read_ledger(export).num_openings
    assert evaluate_main([str(report), str(export), "--compare", "--no-page", "--no-floors"]) == 2
    assert "have the same report" in capsys.readouterr().err
    assert read_ledger(export).num_openings == before


def test_what_a_hub_does_not_have_is_said(
    world: Path,
    tmp_path: Path,
    hub: FakeHub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(UserError, match="has no model named 'acme/none'"):
        mmsa.load("acme/none")
    hub.repositories["acme/other"] = Repository()
    hub.repositories["acme/other"].add("first", {"config.yaml": b"a: b"})
    with pytest.raises(UserError, match=r"not an export of mmsa: it has no export\.json"):
        mmsa.load("acme/other")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert push(world, tmp_path / "out", "--push", "acme/mood") == 2
    assert "give a token that may write" in capsys.readouterr().err
    assert push(world, tmp_path / "more", "--push", "mood") == 2
    assert "--push mood is not ORG/NAME" in capsys.readouterr().err


def test_a_name_without_a_hub_says_both(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most such names are a run's directory that is spelled wrong."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as caught:
        mmsa.load("rnus/first")
    said = str(caught.value)
    assert said.startswith("there is no rnus/first here, and as a name on the hub: 'rnus/first'")
    assert said.endswith("fetch it where there is a network: hf download rnus/first")
    assert hub.requests == []


def test_a_path_is_no_repository(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is not there, in a folder that is, is not looked for on a hub."""
    Path("runs").mkdir()
    with pytest.raises(UserError, match="is not a run directory"):
        mmsa.load("runs/first")
    assert hub.requests == []


@pytest.mark.parametrize(
    "name", ["rnus/lr--3", "rnus/a..b", "rnus/x-", "rnus/x.git@v1", "r/" + "x" * 97]
)
def test_a_name_that_no_hub_can_have_is_a_path(hub: FakeHub, name: str) -> None:
    with pytest.raises(UserError, match="is not a run directory"):
        mmsa.load(name)
    assert hub.requests == []
