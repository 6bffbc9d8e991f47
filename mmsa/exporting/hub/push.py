"""Uploading a hub directory with the hub's own library, which finds the token (`hf auth login`)."""

from __future__ import annotations

from pathlib import Path

from mmsa.errors import UserError, first_line
from mmsa.exporting.hub.card import CARD_NAME
from mmsa.foundation.digests import files_below


def check_name(name: str) -> None:
    """Raise `UserError` where `name` is not `ORG/NAME` as the hub takes it."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
        if name.count("/") != 1:
            raise HFValidationError("it has no organisation or user in front")
    except HFValidationError as error:
        raise UserError(f"--push {name} is not ORG/NAME: {first_line(error)}") from None


def push(
    folder: Path,
    name: str,
    *,
    private: bool = False,
    card_only: bool = False,
    dry_run: bool = False,
) -> str:
    """Upload `folder` to the model repository `name`, made if missing; returns what was done.

    Two commits: everything but the card, then the card. So the card can be replaced later without
    the weights (`card_only`). With `dry_run` nothing is sent. Raises `UserError` where the hub
    refuses or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import HfHubHTTPError

    others = [one for one in files_below(folder) if one != CARD_NAME]
    if dry_run:
        return _planned(folder, name, [] if card_only else others)
    api = HfApi(library_name="mmsa")
    try:
        api.create_repo(name, private=private or None, exist_ok=True)
        if not card_only:
            api.upload_folder(
                repo_id=name,
                folder_path=folder,
                ignore_patterns=[CARD_NAME],
                commit_message="Weights, tokenizer, preprocessing and handler",
            )
        api.upload_file(
            repo_id=name,
            path_or_fileobj=folder / CARD_NAME,
            path_in_repo=CARD_NAME,
            commit_message="Model card",
        )
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        what = {
            401: "give a token that may write: hf auth login, or the variable HF_TOKEN",
            403: f"the token may not write to {name}; use one of its organisation",
        }.get(status or 0, "try again")
        raise UserError(f"{api.endpoint} refused {name} ({first_line(error)}); {what}") from None
    except Exception as error:  # of the http library of this version: no route, a time-out
        raise UserError(
            f"{api.endpoint} cannot be reached ({first_line(error, with_type=True)}); {folder} is "
            "whole, push it later with hf upload"
        ) from None
    return f"pushed to {api.endpoint}/{name}"


def _planned(folder: Path, name: str, files: list[str]) -> str:
    """What would be uploaded, as text."""

    def line(file: str) -> str:
        return f"  {(folder / file).stat().st_size:>12,} bytes  {file}"

    parts = [f"dry run, nothing was sent. To {name}:"]
    if files:
        parts += ["first commit:", *map(line, files)]
    parts += ["last commit:", line(CARD_NAME)]
    return "\n".join(parts)
