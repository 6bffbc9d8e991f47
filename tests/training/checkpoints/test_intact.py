"""A checkpoint or an export with one changed bit or a cut file is never taken for intact."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate import Accelerator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from saving import content_of, names, save, trained, write_weights

from mmsa.errors import UserError
from mmsa.foundation.digests import read_listing, require_intact
from mmsa.training.checkpoints.best_export import write_best
from mmsa.training.checkpoints.checkpoint import checkpoint_path, keep_newest
from mmsa.training.checkpoints.intact import choose_checkpoint, damage_of
from tests.damage_files import cut, flip_bit, same_size_garbage

FILES = (
    *("COMPLETE", "optimizer.safetensors", "run.yaml", "state.json"),
    *("statistics-00000.safetensors", "export/model.safetensors"),
    *("export/digests.json", "export/tokenizer/words.txt"),
)
FEW = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FEW
@given(name=st.sampled_from(FILES), place=st.floats(0, 1, exclude_max=True), cutting=st.booleans())
def test_any_bit_and_any_cut_of_the_newest_makes_a_run_resume_from_the_one_before(
    two_checkpoints: Path, name: str, place: float, cutting: bool
) -> None:
    damaged = checkpoint_path(two_checkpoints, 4) / name
    whole = damaged.read_bytes()
    try:
        if cutting:
            cut(damaged, int(place * len(whole)))
        else:
            flip_bit(damaged, int(place * 8 * len(whole)))
        choice = choose_checkpoint(two_checkpoints)
    finally:
        damaged.write_bytes(whole)
    # A list without its last line end is still the whole list.
    harmless = name == "COMPLETE" and cutting and int(place * len(whole)) == len(whole) - 1
    assert choice.checkpoint == checkpoint_path(two_checkpoints, 4 if harmless else 2)
    if not harmless and name != "COMPLETE":  # a changed digest accuses the file that it is of
        assert name in choice.damaged[0].in_words()


@pytest.fixture
def two_checkpoints(tmp_path: Path, accelerator: Accelerator) -> Path:
    for step in (2, 4):
        save(tmp_path, step, accelerator)
    return tmp_path


@FEW
@given(place=st.floats(0, 1, exclude_max=True), cutting=st.booleans(), data=st.data())
def test_any_bit_and_any_cut_of_an_export_is_refused_by_name(
    export: Path, place: float, cutting: bool, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(content_of(export))))
    whole = (export / name).read_bytes()
    if name == "digests.json" and cutting and int(place * len(whole)) == len(whole) - 1:
        return  # without its last line end it is still the whole list
    try:
        if cutting:
            cut(export / name, int(place * len(whole)))
        else:
            flip_bit(export / name, int(place * 8 * len(whole)))
        accused = "" if name == "digests.json" else name  # one of its digests may be changed
        with pytest.raises(UserError, match=f"the export {export} is damaged: .*{accused}"):
            require_intact(export, None, remedy="")
    finally:
        (export / name).write_bytes(whole)


@pytest.fixture
def export(tmp_path: Path) -> Path:
    weights = trained()[0].state_dict()
    return write_best(tmp_path, 4, lambda directory: write_weights(directory, weights))


def test_a_file_that_was_added_to_a_folder_that_is_read_is_refused(export: Path) -> None:
    (export / "tokenizer" / ".DS_Store").write_text("of a file browser")
    assert require_intact(export, ["tokenizer/"], remedy="") is not None
    (export / "tokenizer" / "added_tokens.json").write_text("{}")
    with pytest.raises(UserError, match="added_tokens.json was not there when the rest was"):
        require_intact(export, ["tokenizer/"], remedy="")


def test_the_digests_of_early_versions_are_their_sizes(two_checkpoints: Path) -> None:
    checkpoint = checkpoint_path(two_checkpoints, 4)
    listing = read_listing(checkpoint / "COMPLETE")
    sizes = {name: file.num_bytes for name, file in listing.items()}
    (checkpoint / "COMPLETE").write_text(json.dumps(sizes))
    assert damage_of(checkpoint) == []
    for name in ("state.json", "optimizer.safetensors"):
        whole = (checkpoint / name).read_bytes()
        same_size_garbage(checkpoint / name)
        (problem,) = damage_of(checkpoint)
        assert problem.startswith(f"{name} cannot be read")
        (checkpoint / name).write_bytes(whole)


@pytest.mark.parametrize("content", ["[" * 100_000, "{}", "[]", '{"state.json": "x"}', "\0\0"])
@pytest.mark.parametrize("name", ["COMPLETE", "state.json"])
def test_any_json_is_a_clause(two_checkpoints: Path, name: str, content: str) -> None:
    checkpoint = checkpoint_path(two_checkpoints, 4)
    (checkpoint / name).write_text(content)
    assert damage_of(checkpoint)
    assert choose_checkpoint(two_checkpoints).checkpoint == checkpoint_path(two_checkpoints, 2)


def test_damaged_newer_checkpoints_never_displace_the_intact_one(
    two_checkpoints: Path, accelerator: Accelerator
) -> None:
    for step in (6, 8):
        flip_bit(save(two_checkpoints, step, accelerator) / "optimizer.safetensors")
    choice = choose_checkpoint(two_checkpoints)
    assert choice.checkpoint == checkpoint_path(two_checkpoints, 4)
    choice.set_aside()
    keep_newest(two_checkpoints, 2)
    assert names(two_checkpoints / "checkpoints") == [
        *("damaged-step-00000006", "damaged-step-00000008", "last_save.json"),
        *("step-00000002", "step-00000004"),
    ]
    save(two_checkpoints, 6, accelerator)
    keep_newest(two_checkpoints, 1)
    assert choose_checkpoint(two_checkpoints).checkpoint == checkpoint_path(two_checkpoints, 6)


@pytest.mark.parametrize("lose", [shutil.rmtree, lambda path: flip_bit(path / "state.json")])
def test_no_intact_checkpoint(two_checkpoints: Path, lose: Callable[[Path], object]) -> None:
    choose_checkpoint(two_checkpoints).require()
    for step in (2, 4):
        lose(checkpoint_path(two_checkpoints, step))
    choice = choose_checkpoint(two_checkpoints)
    assert choice.checkpoint is None
    if choice.any_exists:
        with pytest.raises(UserError, match=r"no checkpoint of .* step-00000004 .* step-00000002"):
            choice.require()
    else:
        choice.require()  # there was never any
