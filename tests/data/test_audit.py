"""The audit: what it writes, what it cuts, and that it finds what was lost or doubled."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from packed import packed_set

from mmsa.config import load_config
from mmsa.data.audit import Expected, audit, main
from mmsa.data.audit_files import AuditWriter, Part, parts_of, read_part
from mmsa.errors import UserError

Capture = pytest.CaptureFixture[str]
G = 8  # of 25 samples: 3 steps an epoch, 1 sample left out
WHOLE = 6  # steps of two epochs


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run directory over the tiny set, without an audit."""
    (tmp_path / "shards").mkdir()
    packed_set(tmp_path / "shards")
    config = load_config(
        None,
        [
            *[f"run.dir={tmp_path / 'run'}", f"data.shards={tmp_path / 'shards'}", "run.seed=5"],
            *["run.audit=true", f"train.global_batch_size={G}", "data.window_shards=2"],
        ],
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(config.to_yaml())
    return tmp_path / "run"


def expected_of(run_dir: Path) -> Expected:
    config = load_config(str(run_dir / "config.yaml"))
    return Expected(config, str(config.data.shards))


def keys_of(expected: Expected, step: int) -> list[str]:
    _, places = expected.hashes(*expected.plan.locate(step - 1))
    return [expected.name(place) for place in places]


def launch(run_dir: Path, start_step: int, world_size: int, stop_step: int) -> None:
    """Write what a launch that dies behind `stop_step` writes."""
    expected = expected_of(run_dir)
    writers = [
        AuditWriter(run_dir, start_step=start_step, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for step in range(start_step + 1, stop_step + 1):
        keys = keys_of(expected, step)
        for rank, writer in enumerate(writers):
            writer.write(step, keys[rank::world_size])
            writer.flush()


def done(run_dir: Path, step: int) -> None:
    (run_dir / "status.json").write_text(json.dumps({"state": "done", "step": step}))


def problems(run_dir: Path) -> list[str]:
    return audit(run_dir, expected_of(run_dir)).problems


def test_a_whole_run_is_proven(run_dir: Path, capsys: Capture) -> None:
    launch(run_dir, 0, 2, WHOLE)
    done(run_dir, WHOLE)
    assert main([str(run_dir)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "launch from step 0: 2 rank(s)",
        "48 samples read in 6 steps",
        "an epoch: 25 samples in 3 steps, 1 left out by data.drop_last",
        "nothing lost, nothing doubled: every step read its slice of the order",
    ]


def test_interruptions_and_changes_of_the_world_are_proven(run_dir: Path) -> None:
    launch(run_dir, 0, 4, 4)
    launch(run_dir, 2, 1, 3)  # from the checkpoint of step 2; dies before its own first one
    launch(run_dir, 2, 8, 5)
    launch(run_dir, 4, 2, WHOLE)
    done(run_dir, WHOLE)
    parts = parts_of(run_dir)
    # Step 2's second launch with one rank left nothing that is in the weights.
    assert parts == [Part(0, 4, r) for r in range(4)] + [Part(2, 8, r) for r in range(8)] + [
        Part(4, 2, r) for r in range(2)
    ]
    assert [step for step, _ in read_part(parts[0].path(run_dir))] == [1, 2]
    findings = audit(run_dir, expected_of(run_dir))
    assert findings.problems == []
    assert findings.launches == [(0, 4), (2, 8), (4, 2)]
    assert (findings.num_steps, findings.num_read) == (6, 48)


def test_a_second_start_from_the_same_step_takes_the_place_of_the_first(run_dir: Path) -> None:
    launch(run_dir, 0, 2, 5)
    launch(run_dir, 0, 2, WHOLE)
    done(run_dir, WHOLE)
    assert problems(run_dir) == []


def test_a_killed_run_is_proven_as_far_as_all_ranks_wrote(run_dir: Path, capsys: Capture) -> None:
    launch(run_dir, 0, 2, 4)
    path = Part(0, 2, 1).path(run_dir)
    path.write_bytes(path.read_bytes()[:-30])  # a kill in the middle of a line
    findings = audit(run_dir, expected_of(run_dir))
    assert (findings.problems, findings.num_steps) == ([], 3)
    assert main([str(run_dir)]) == 0
    told = capsys.readouterr().out
    assert "the run is not done; checked up to the last step that all its ranks wrote: 3\n" in told
    done(run_dir, 4)
    assert problems(run_dir) == [
        "rank(s) 1 of 2 have no line for step 4; the steps from there to 4 are not proven"
    ]


def change(run_dir: Path, step: int, edit: Callable[[list[str]], list[str]]) -> None:
    """Change the keys of rank 1 at `step`."""
    path = Part(0, 2, 1).path(run_dir)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[step - 1]["keys"] = edit(lines[step - 1]["keys"])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_lost_sample_is_named(run_dir: Path, capsys: Capture) -> None:
    launch(run_dir, 0, 2, WHOLE)
    done(run_dir, WHOLE)
    lost = keys_of(expected_of(run_dir), 2)[1]
    change(run_dir, 2, lambda keys: keys[1:])
    assert main([str(run_dir)]) == 2
    told = capsys.readouterr()
    assert f"step 2 lost {lost}" in told.err
    assert "epoch 0 did not read 2 sample(s) of the split; 1 are left out" in told.err
    assert "nothing lost" not in told.out


def test_a_sample_read_by_two_ranks_is_named(run_dir: Path) -> None:
    launch(run_dir, 0, 2, WHOLE)
    done(run_dir, WHOLE)
    keys = keys_of(expected_of(run_dir), 5)
    change(run_dir, 5, lambda own: [*own, keys[0]])
    assert problems(run_dir) == [
        f"step 5 read {keys[0]} twice: on rank 0 and on rank 1",
        "epoch 1 read 1 sample(s) more than once",
    ]


def test_a_sample_read_again_in_a_later_step_is_named(run_dir: Path) -> None:
    launch(run_dir, 0, 2, WHOLE)
    done(run_dir, WHOLE)
    expected = expected_of(run_dir)
    again, instead = keys_of(expected, 1)[0], keys_of(expected, 3)[1]
    change(run_dir, 3, lambda own: [again, *own[1:]])
    assert problems(run_dir) == [
        f"step 3 lost {instead}",
        f"step 3 read {again} on rank 1, which is not a sample of this step; "
        "step 1 of this epoch had read it",
        "epoch 0 read 1 sample(s) more than once",
        "epoch 0 did not read 2 sample(s) of the split; 1 are left out by data.drop_last",
    ]


def test_a_rank_without_a_file_is_found(run_dir: Path) -> None:
    launch(run_dir, 0, 2, WHOLE)
    done(run_dir, WHOLE)
    Part(0, 2, 1).path(run_dir).unlink()
    found = problems(run_dir)
    assert found[0] == "the launch from step 0 with 2 ranks has no audit of rank(s) 1"
    assert sum("lost tiny-train-" in problem for problem in found) == 24


def test_a_launch_that_was_not_cut_back_is_found(run_dir: Path) -> None:
    launch(run_dir, 0, 2, 4)
    kept = {part: part.path(run_dir).read_bytes() for part in parts_of(run_dir)}
    launch(run_dir, 3, 1, WHOLE)
    for part, content in kept.items():
        part.path(run_dir).write_bytes(content)
    done(run_dir, WHOLE)
    assert problems(run_dir) == [
        "rank(s) 0, 1 of the launch from step 0 continued past step 3, where it should have ended"
    ]


def test_a_damaged_file_proves_nothing(run_dir: Path) -> None:
    launch(run_dir, 0, 2, WHOLE)
    path = Part(0, 2, 0).path(run_dir)
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"keys"', b'"kays"', 1))
    with pytest.raises(UserError, match="line 1 of .* is damaged"):
        problems(run_dir)


def test_a_run_without_an_audit_says_so(run_dir: Path, capsys: Capture) -> None:
    assert main([str(run_dir)]) == 2
    assert "was started with run.audit=true" in capsys.readouterr().err


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path, capsys: Capture) -> None:
    assert main([str(tmp_path)]) == 2
    assert "is not the directory of a run" in capsys.readouterr().err


def test_an_audit_that_cannot_be_written_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "audit").write_text("a file in the way")
    with pytest.raises(UserError, match="cannot be written"):
        AuditWriter(tmp_path, start_step=0, rank=0, world_size=1)
