"""Keys of samples: the name of the data set, a hyphen, the id in a form that tars can hold."""

from __future__ import annotations

import hashlib
import re

# A key is a file name inside a tar: WebDataset cuts it at the first dot, a slash is a folder, and
# a ustar header has room for 100 bytes.
_KEY_PART = re.compile(r"[0-9A-Za-z_-]{1,64}")
_KEPT_OF_NAME = 48  # characters of a name that is not a valid key part


def key_part(source_id: str) -> str:
    """The form of an id in a key: the id itself where that is valid, else cleaned with a hash."""
    if _KEY_PART.fullmatch(source_id):
        return source_id
    cleaned = re.sub(r"[^0-9A-Za-z_-]+", "_", source_id)[:_KEPT_OF_NAME]
    digest = hashlib.sha256(source_id.encode("utf-8", "backslashreplace")).hexdigest()
    return f"{cleaned}-{digest[:12]}"


def key_of(dataset: str, source_id: str) -> str:
    """The key of the sample `source_id` of a data set, as packing names it."""
    return f"{dataset}-{key_part(source_id)}"
