"""What `--dry-run` prints of the files that a submission would write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmsa.foundation.parsing import parse_yaml
from mmsa.foundation.settings_yaml import SettingsLoader, flat_keys, in_words

ConfigFiles = dict[Path, str]


def as_shown(files: ConfigFiles) -> ConfigFiles:
    """The files of a job, but of each configuration after the first only what differs from it."""
    shown: ConfigFiles = {}
    first: Path | None = None
    for path, text in files.items():
        if path.suffix == ".yaml" and first is not None:
            before, after = (_settings(files[file]) for file in (first, path))
            lines = [
                f"{key}: {in_words(after[key]) if key in after else 'not set'}\n"
                for key in dict.fromkeys([*after, *before])
                if before.get(key) != after.get(key)
            ]
            text = f"(as {first}, but for)\n" + "".join(lines)
        elif path.suffix == ".yaml":
            first = path
        shown[path] = text
    return shown


def _settings(text: str) -> dict[str, Any]:
    return flat_keys(parse_yaml(text, SettingsLoader))
