"""Whether a packed set has what training needs: the splits train and val."""

from __future__ import annotations

from mmsa.data.manifest import Manifest
from mmsa.errors import UserError


def require_train_and_val(shards: str, manifest: Manifest) -> None:
    """Raise `UserError` where the set has no train or no val split, as a test set has not."""
    missing = [name for name in ("train", "val") if name not in manifest.splits]
    if missing:
        has = ", ".join(f"{name} ({s.num_samples:,})" for name, s in manifest.splits.items())
        raise UserError(
            f"training needs the splits train and val, and the shards {shards} have no "
            f"{' and no '.join(missing)}; they have: {has or 'none'}. "
            f"{how_to_fill(manifest, ' and '.join(missing))}, or evaluate a trained run on them "
            f"with evaluate.py RUN --shards {shards}"
        )


def how_to_fill(manifest: Manifest, splits: str) -> str:
    """What gives a packed set the splits that it lacks: it depends on the protocol."""
    ratios = manifest.protocol.settings.get("ratios")
    if ratios is None:
        return (
            f"Its protocol {manifest.protocol.name} decides what is in {splits}: name samples for "
            "it there, or pack with --protocol clean"
        )
    if all(ratios.get(name) for name in splits.split(" and ")):
        return (
            f"The ratios {':'.join(map(str, ratios.values()))} gave it no sample: pack more "
            "samples, or with a larger share for it (--ratios 6:2:2)"
        )
    return "Pack with shares for all (--ratios 8:1:1)"
