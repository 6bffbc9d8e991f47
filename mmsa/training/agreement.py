"""Whether all ranks found the same files, before they train together."""

from __future__ import annotations

from pathlib import Path

from accelerate.utils import gather_object

from mmsa.errors import AgreedError
from mmsa.training.prepared_run import TrainingState


def check_agreement(run_dir: Path, state: TrainingState, sources: tuple[str, ...]) -> None:
    """Raise `AgreedError` on every rank where ranks found other intact files; a collective.

    `sources` says where the weights of each encoder are from: `weights=RUN/best` may have been
    another export on each rank.
    """
    position = (state.step, state.best_step or 0)
    found = gather_object([(position, sources)])
    positions, all_sources = ({one[part] for one in found} for part in (0, 1))
    if len(positions) > 1:
        words = "; ".join(f"step {step}, best export {best}" for step, best in sorted(positions))
        raise AgreedError(
            f"the ranks found different intact checkpoints in {run_dir}: {words} (0: none)"
            ". Its file system shows them different files; check it, then repeat the command"
        )
    if len(all_sources) > 1:
        words = "; ".join(" and ".join(filter(None, source)) for source in sorted(all_sources))
        raise AgreedError(
            f"the ranks read different weights: {words}. The run that they are of is still "
            "training and has moved its best export; repeat the command, or copy the export "
            "and give that as weights"
        )
