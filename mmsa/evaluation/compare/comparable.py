"""Whether scores belong to the same task, so that they may stand in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmsa.errors import UserError


def check_comparable(identities: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Raise `UserError` unless all (name, identity) speak of one split of one protocol.

    Also of classes in one order and, where the identities say it, of the same samples.
    """
    first_name, first = identities[0]
    for name, other in identities[1:]:
        for what, key in (
            ("split", "split"),
            ("data set", "dataset"),
            ("protocol", "protocol"),
            ("class order", "label_names"),
            ("sample set (keys and labels)", "samples_sha256"),
        ):
            ours, theirs = first.get(key), other.get(key)
            if ours is not None and theirs is not None and ours != theirs:
                raise UserError(
                    f"{first_name} and {name} cannot be compared: the {what} of one is "
                    f"{_shown(ours)}, of the other {_shown(theirs)}. Their scores belong to "
                    "different tasks; evaluate both on the same split of the same packed data"
                )
    seen: dict[str, str] = {}
    for name, identity in identities:
        weights = str(identity["weights_sha256"])
        if weights in seen:
            raise UserError(f"{seen[weights]} and {name} are the same weights; name each once")
        seen[weights] = name


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{value.get('name')} ({str(value.get('hash'))[:12]})"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)[:40]
