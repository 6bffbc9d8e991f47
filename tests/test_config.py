"""The configuration: what is read from where, and that every problem is told, all at once."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from mmsa.config import Config, load_config
from mmsa.errors import UserError


def write(directory: Path, text: str) -> str:
    path = directory / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def refused(file: str | None, *overrides: str, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        load_config(file, overrides, **options)
    return str(error.value)


# Where values come from.


def test_defaults_below_file_below_command_line(tmp_path: Path) -> None:
    file = write(tmp_path, "train:\n  epochs: 7\n  patience: 2\noptim:\n  head_lr: 0.5\n")
    config = load_config(file, ["train.epochs=9", "run.dir=runs/a"])
    assert (config.train.epochs, config.train.patience, config.train.keep_checkpoints) == (9, 2, 2)
    assert (config.optim.head_lr, config.optim.text_lr) == (0.5, 2e-5)
    assert config.run.dir == "runs/a"
    assert load_config(file, ["train.epochs=9", "train.epochs=10"]).train.epochs == 10
    assert load_config(None) == Config()


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "# nothing\n")) == Config()


@pytest.mark.parametrize("text", ["3e-5", "3E-5", "0.00003", "3.0e-5", ".3e-4", "+3e-05"])
def test_numbers_in_any_spelling(tmp_path: Path, text: str) -> None:
    assert load_config(None, [f"optim.text_lr={text}"]).optim.text_lr == 3e-5
    assert load_config(write(tmp_path, f"optim:\n  text_lr: {text}\n")).optim.text_lr == 3e-5


def test_numbers_where_no_type_is_known(tmp_path: Path) -> None:
    # An encoder's own settings go on as they are: a word would fail far from here.
    text = "model:\n  text_encoder:\n    config: {layer_norm_eps: 1e-12, size: 10, name: 1e}\n"
    expected = {"layer_norm_eps": 1e-12, "size": 10, "name": "1e"}
    assert load_config(write(tmp_path, text)).model.text_encoder.config == expected
    config = load_config(None, ["model.text_encoder.config={eps: 1e-12}"])
    assert config.model.text_encoder.config == {"eps": 1e-12}


def test_an_unquoted_no_is_a_precision(tmp_path: Path) -> None:
    for text in ("no", "'no'", '"no"'):
        assert load_config(None, [f"train.mixed_precision={text}"]).train.mixed_precision == "no"
    file = write(tmp_path, "train:\n  mixed_precision: no\n")
    assert load_config(file).train.mixed_precision == "no"
    assert load_config(None, ["train.mixed_precision=null"]).train.mixed_precision is None


def words_of(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(`section.key`, word) for each word that a setting with a choice of words takes."""
    for key, field in type(section).model_fields.items():
        value, kinds = getattr(section, key), [field.annotation]
        if isinstance(value, BaseModel):
            yield from words_of(value, f"{prefix}{key}.")
        if get_origin(field.annotation) in (Union, UnionType):
            kinds = list(get_args(field.annotation))
        for kind in kinds:
            if get_origin(kind) is Literal:
                yield from ((f"{prefix}{key}", word) for word in get_args(kind))


@pytest.mark.parametrize(("key", "word"), list(words_of(Config())))
def test_words_are_taken_without_quotes(tmp_path: Path, key: str, word: str) -> None:
    """On the command line and in a file: YAML reads `no` and `off` as false."""
    *sections, last = key.split(".")
    text = "".join(f"{name}: {{" for name in sections) + f"{last}: {word}" + "}" * len(sections)
    for overrides, file in (([f"{key}={word}"], None), ([], write(tmp_path, text))):
        assert attrgetter(key)(load_config(file, overrides)) == word


def test_there_are_words_that_yaml_reads_otherwise() -> None:
    assert {("train.mixed_precision", "no"), ("gpu.packing", "off")} < set(words_of(Config()))


def test_a_run_may_be_named_by_a_date() -> None:
    assert load_config(None, ["run.dir=2024-05-01"]).run.dir == "2024-05-01"


def test_a_mapping_on_the_command_line_replaces_that_of_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "model:\n  text_encoder:\n    config: {model_type: bert, depth: 2}\n")
    config = load_config(file, ["model.text_encoder.config={depth: 3}"])
    assert config.model.text_encoder.config == {"depth": 3}
    config = load_config(file, ["model.text_encoder.config.depth=4"])
    assert config.model.text_encoder.config == {"model_type": "bert", "depth": 4}
    assert load_config(file, ["model.text_encoder.config=null"]).model.text_encoder.config is None


def test_a_fusions_own_settings_are_kept() -> None:
    config = load_config(None, ["model.fusion.name=attention", "model.fusion.hidden=[8, 4]"])
    assert config.model.fusion.name == "attention"
    assert config.model.fusion.settings == {"hidden": [8, 4]}


def test_a_configuration_is_frozen() -> None:
    config = Config()
    with pytest.raises(ValueError, match="frozen"):
        config.train.epochs = 3  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        config.model.fusion.name = "attention"  # type: ignore[misc]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["run.dir=2024-05-01", "data.shards='1e5'", "train.mixed_precision=no"],
        ["data.classes={b: [negative], a: [positive, neutral]}", "optim.betas=[0.5, 0.75]"],
        ["data.classes=[positive, negative]", "launch.world_size=2", "optim.eps=1e-12"],
        ["model.text_encoder.config={eps: 1e-12, word: '3e-5', 'on': 'yes', day: '2024-05-01'}"],
        ["model.fusion.hidden=[8]", "model.fusion.note='größer: \"é\"'", "optim.clip_norm=null"],
        ["run.dir='null'", "data.shards='~'", "model.text_encoder.name='12'"],
    ],
)
def test_what_is_written_is_read_back(tmp_path: Path, overrides: list[str]) -> None:
    config = load_config(None, overrides)
    text = config.to_yaml()
    again = load_config(write(tmp_path, text))
    assert again == config
    assert again.to_yaml() == text
    classes = config.data.classes
    if isinstance(classes, dict):
        assert list(again.data.classes or ()) == list(classes)  # equal dictionaries hide the order
    # Other programs read it as well, but for dates and words that look like numbers to them.
    assert yaml.safe_load(text)["train"]["epochs"] == 5


# What is refused.


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("optim.txt_lr=1", "unknown key optim.txt_lr; did you mean optim.text_lr?"),
        ("trian.epochs=1", "unknown key trian; did you mean train?"),
        ("model.text_encoder.poling=cls", "did you mean model.text_encoder.pooling?"),
        (
            "eval.zzz=1",
            "unknown key eval.zzz; known here: batch_size, cpu_threads",
        ),
        (
            "zzz.a=1",
            "unknown key zzz; known here: run, data, model, optim, train, eval, gpu, launch",
        ),
    ],
)
def test_an_unknown_key_names_the_nearest(override: str, hint: str) -> None:
    assert hint in refused(None, override)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("train.epochs=0", "train.epochs=0: Input should be greater than or equal to 1"),
        ("train.epochs=true", "train.epochs=True: Input should be a number, not true or false"),
        ("optim.weight_decay=on", "Input should be a number, not true or false"),
        ("data.cache_limit=yes", "Input should be a number, not true or false"),
        ("optim.betas=[true, 0.9]", "Input should be a number, not true or false"),
        ("launch.world_size=true", "Input should be a number, not true or false"),
        ("train.epochs=1:30", "train.epochs='1:30': Input should be a valid integer"),
        ("run.seed=0x10", "run.seed='0x10': Input should be a valid integer"),
        ("train.epochs=many", "train.epochs='many': Input should be a valid integer"),
        ("model.image_encoder.image_size_px=9999", "Input should be less than or equal to 4096"),
        ("optim.text_lr=-1", "optim.text_lr=-1: Input should be greater than or equal to 0"),
        ("optim.text_lr=.inf", "optim.text_lr=inf: Input should be a finite number"),
        ("optim.text_lr=.nan", "optim.text_lr=nan"),
        ("optim.betas=[0.9, 1.5]", "optim.betas=1.5: Input should be less than 1"),
        ("optim.betas=[0.9]", "optim.betas"),
        ("optim.schedule=step", "Input should be 'cosine', 'linear' or 'constant'"),
        ("model.label_smoothing=1", "Input should be less than 1"),
        ("data.flip_probability=1.5", "less than or equal to 1"),
        ("data=5", "is not an override; write section.key=value"),
        ("epochs=5", "is not an override"),
        ("train.epochs", "is not an override"),
        ("train..epochs=5", "is not an override"),
        ("train.epochs={", "is not valid YAML (expected the node content, but found"),
        ("model.fusion.x=" + "[" * 1200, "is nested more than 100 levels deep); quote it"),
        ("train.epochs=!!int x", "is not valid YAML (a value cannot be converted: invalid literal"),
        ("data.classes={a: [b], a: [c]}", "is not valid YAML"),
    ],
)
def test_a_wrong_value_says_what_was_found_and_expected(override: str, complaint: str) -> None:
    message = refused(None, override)
    assert complaint in message
    assert "problems" not in message  # one mistake, one problem


def test_numbers_are_decimal_and_times_are_read() -> None:
    config = load_config(
        None, ["run.seed=0123", "eval.batch_size=010", "train.epochs=1e1", "run.max_time=1:30:00"]
    )
    size = load_config(None, ["model.text_encoder.config={hidden_size: 1_024}"])
    assert (size.model.text_encoder.config or {})["hidden_size"] == 1024
    assert (config.run.seed, config.eval.batch_size, config.train.epochs) == (123, 10, 10)
    assert config.run.max_time == 5400
    assert load_config(None, ["train.compile=on"]).train.compile


def test_a_value_that_fits_none_of_several_types_is_one_problem() -> None:
    message = refused(None, "launch.world_size=two")
    assert message.count("launch.world_size='two'") == 1
    assert "valid integer" in message
    assert "or: Input should be 'any'" in message
    message = refused(None, "data.classes=5")
    assert message.count("data.classes=5") == 1
    assert "problems" not in message


def test_several_problems_are_told_together(tmp_path: Path) -> None:
    file = write(tmp_path, "train:\n  epochs: 0\n  epoch: 3\noptim:\n  eps: 0\n")

    def check(raw: dict[str, Any]) -> list[str]:
        return [f"a further check saw eps {raw['optim']['eps']}"]

    message = refused(file, "nonsense", "run.seed=-1", checks=[check])
    assert message.splitlines()[0] == f"configuration ({file} and the command line): 6 problems"
    for part in (
        "'nonsense' is not an override",
        "unknown key train.epoch; did you mean train.epochs?",
        "train.epochs=0",
        "optim.eps=0",
        "run.seed=-1",
        "a further check saw eps 0",
    ):
        assert message.count(part) == 1


def test_a_check_alone_refuses() -> None:
    assert (
        refused(None, checks=[lambda raw: ["no"]])
        == "configuration (defaults and the command line): no"
    )
    assert load_config(None, checks=[lambda raw: []]) == Config()


def test_sections_that_are_none(tmp_path: Path) -> None:
    def check(raw: dict[str, Any]) -> list[str]:
        assert all(isinstance(section, dict) for section in raw.values())
        return []

    message = refused(write(tmp_path, "data: 5\ntrain: [1]\nrun:\n"), checks=[check])
    for part in ("data=5", "train=[1]", "run=None"):
        assert part in message


def test_the_real_checks_bear_anything(tmp_path: Path) -> None:
    from mmsa.training.setup import training_checks

    for text in ("data: 5\nrun: x\ntrain: []\n", "model: 3\n", "model:\n  fusion: 3\n", "1: 2\n"):
        assert refused(write(tmp_path, text), checks=training_checks())
    message = refused(None, checks=training_checks())
    assert "run.dir is not given" in message
    assert "data.shards is not given" in message


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("train:\n  epochs: 1\n  epochs: 2\n", "the key 'epochs' appears twice"),
        ("train: {epochs: 1}\ntrain: {patience: 1}\n", "the key 'train' appears twice"),
        ("train: [\n", "is not valid YAML"),
        ("? [a, b]\n: 1\n", "is not valid YAML"),
        ("run: !!python/object/apply:os.getcwd []\n", "is not valid YAML"),
        ("- a\n- b\n", "must contain sections"),
        ("model: " + "[" * 1200, "is not valid YAML: it is nested more than 100 levels deep"),
        ("model: " + "{a: " * 120 + "}" * 120, "is nested more than 100 levels deep"),
        ("model: &m {fusion: *m}\n", "is nested more than 100 levels deep"),
        ("a: &a [1]\nb: &b [" + "*a," * 400 + "]\nc: [" + "*b," * 400 + "]\n", "100000 values"),
        (
            "run: {seed: !!float x}\n",
            "is not valid YAML: a value cannot be converted: could not convert string to float",
        ),
        (
            "run: {seed: " + "9" * 5000 + "}\n",
            "is not valid YAML: a value cannot be converted: Exceeds the limit",
        ),
        ("only a word\n", "must contain sections"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str, complaint: str) -> None:
    message = refused(write(tmp_path, text))
    assert complaint in message
    assert "run.yaml" in message


def test_a_key_that_stands_twice_is_shown_with_its_line(tmp_path: Path) -> None:
    assert "line 3" in refused(write(tmp_path, "train:\n  epochs: 1\n  epochs: 2\n"))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    message = refused(str(tmp_path / "missing.yaml"))
    assert "cannot be read (No such file or directory)" in message
    assert "launch/runs/" in message
    (tmp_path / "latin.yaml").write_bytes(b"run: {dir: \xe9}\n")
    assert "is not valid YAML" in refused(str(tmp_path / "latin.yaml"))
    assert "cannot be read" in refused(str(tmp_path))


def test_keys_that_are_no_words(tmp_path: Path) -> None:
    assert "run.1" in refused(write(tmp_path, "run: {1: 2}\n"))
