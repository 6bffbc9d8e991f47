"""The shards that a model was trained on, if they are still where its configuration names them."""

from __future__ import annotations

import os

from mmsa.data.manifest import Manifest, load_manifest
from mmsa.errors import UserError


def trained_manifest(shards: str | os.PathLike[str] | None, digest: object) -> Manifest | None:
    """The manifest at `shards` if it has the `digest` that the export records; None otherwise."""
    if shards is None:
        return None
    try:
        manifest = load_manifest(shards)
    except UserError:
        return None
    return manifest if manifest.digest == digest else None
