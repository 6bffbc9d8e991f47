"""bf16, dealing by length and channels last learn what plain float32 learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from accelerate.state import AcceleratorState
from engines import SAME_EVERYWHERE
from harness import metric_lines

from train import main as train_main

STEPS = 50


def test_the_loss_curve_is_that_of_float32(shards: Path, tmp_path: Path) -> None:
    """The same samples at each step, and no dropout, whose draws depend on the precision."""
    settings = [*SAME_EVERYWHERE, f"data.shards={shards}", "train.epochs=9"]
    settings += [f"train.max_steps={STEPS}", f"train.validate_every_steps={STEPS}"]
    settings += ["train.micro_batch_size=8", f"train.checkpoint_every_steps={STEPS}"]
    plain = ["train.mixed_precision=no", "data.bucket_by_length=false"]
    fast = ["train.mixed_precision=bf16", "data.bucket_by_length=true"]
    curves = []
    for name, precision, more in (("plain", "no", plain), ("fast", "bf16", fast)):
        assert train_main([*settings, *more, f"run.dir={tmp_path / name}"]) == 0
        assert f"mixed_precision {precision}," in (tmp_path / name / "log.txt").read_text()
        AcceleratorState._reset_state(reset_partial_state=True)  # as in a new process
        losses = [line["loss"] for line in metric_lines(tmp_path / name, "train")]
        assert len(losses) == STEPS
        curves.append(np.convolve(losses, np.ones(10) / 10, "valid"))
    # bfloat16 has 8 bits: single products are off by 2^-9, and their errors mostly cancel.
    np.testing.assert_allclose(curves[1], curves[0], rtol=0.02)
    assert curves[0][-1] < curves[0][0]
