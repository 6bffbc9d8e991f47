"""What is downloaded: Hugging Face models and tokenizers, torchvision's checkpoints.

What is on this machine is used without network access. Anything else is requested once, with a
time limit of seconds, so that a compute node without a network reports at once what to fetch.
"""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mmsa.errors import UserError, first_line

PROBE_TIMEOUT_S = 5.0
Loaded = TypeVar("Loaded")

# ORG/NAME, and a revision (a branch, a tag or a commit) behind an @.
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?", re.ASCII)

TEXT_PARTS = ("AutoModel", "AutoTokenizer")
IMAGE_PARTS = ("AutoModel", "AutoImageProcessor")


class NotOnThisMachine(UserError):
    """Files that must be fetched where there is a network.

    `problems` says of each what is missing and where it was looked for; the message also says how
    to fetch it.
    """

    def __init__(self, *problems: str, message: str = "") -> None:
        super().__init__(message or "; ".join(problems))
        self.problems = list(problems)


def from_hub(load: Callable[..., Loaded], name: str, parts: Sequence[str] = TEXT_PARTS) -> Loaded:
    """Call `load(name, trust_remote_code=False, local_files_only=...)`, a `from_pretrained`.

    First with the files of this machine (a directory, or the Hugging Face cache), then, if the hub
    answers within `PROBE_TIMEOUT_S`, with the network. Works for models, configurations,
    tokenizers and image processors. Raises `UserError` where `name` cannot be loaded, with the
    command that fetches its `parts` (classes of transformers). No code of a repository is run.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # one bar per rank for what takes a second
    if Path(name).expanduser().is_dir():
        return _load(load, str(Path(name).expanduser()), local_files_only=True)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or _looks_like_path(name):
        raise UserError(f"{name} is not a directory; give one that exists, or a Hugging Face name")
    try:
        return load(name, trust_remote_code=False, local_files_only=True)
    except ImportError as error:
        raise UserError(_unloadable(name, error)) from None
    except (OSError, ValueError):
        _probe_hub(name, _fetching(name, parts))
    return _load(load, name, local_files_only=False)


def _looks_like_path(name: str) -> bool:
    """Whether "runs/nope" means a path: the folder `runs` exists."""
    return "/" in name and Path(name).parent.is_dir()


def _load(load: Callable[..., Loaded], name: str, *, local_files_only: bool) -> Loaded:
    try:
        return load(name, trust_remote_code=False, local_files_only=local_files_only)
    except (OSError, ValueError, ImportError) as error:  # ImportError: timm, natten
        raise UserError(_unloadable(name, error)) from None


def _unloadable(name: str, error: Exception) -> str:
    return (
        f"{name} cannot be loaded: {first_line(error)} Expected the files that `save_pretrained` "
        "writes (config.json, model.safetensors, the tokenizer's), without code of its own"
    )


def _probe_hub(name: str, fetching: str) -> None:
    """Return if the hub has `name`; `UserError` if it does not, or does not answer in time.

    `fetching` is the shell command that downloads it.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.utils import HFValidationError, RepositoryNotFoundError

    try:
        HfApi().model_info(name, timeout=PROBE_TIMEOUT_S)
    except (RepositoryNotFoundError, HFValidationError):
        raise UserError(
            f"{constants.ENDPOINT} has no model named '{name}' (or it needs a login); check the "
            "spelling, or give a directory"
        ) from None
    except Exception as error:  # depends on the http library of this version
        problem = (
            f"'{name}' is not on this machine (looked in {constants.HF_HUB_CACHE}) and "
            f"{constants.ENDPOINT} cannot be reached ({type(error).__name__})"
        )
        raise NotOnThisMachine(
            problem,
            message=f"{problem}. Fetch it where there is a network, with the same cache, by "
            f"{fetching} - or give a directory, or weights: none",
        ) from None


def _fetching(name: str, parts: Sequence[str]) -> str:
    """The shell command that downloads `parts` of `name` to the cache."""
    calls = "; ".join(f"{part}.from_pretrained('{name}')" for part in parts)
    return f'python -c "from transformers import {", ".join(parts)}; {calls}"'


def hub_file(repository: str, names: Sequence[str], *, fetching: str) -> Path:
    """The first of the files `names` that the hub's `repository` has, as a file of the cache.

    A revision may follow the repository (`OWNER/NAME@REVISION`). Files of this machine come first,
    then the hub, if it answers within `PROBE_TIMEOUT_S`. Raises `UserError` where there is none,
    with `fetching`, the shell command that downloads it, and for a name that the hub cannot have.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.utils import EntryNotFoundError, disable_progress_bars

    place, _, stated = repository.partition("@")
    if not _is_valid(place):
        raise UserError(
            f"{place} is not a directory, and no repository of the hub can have this name; give a "
            "directory that exists, or OWNER/NAME"
        )
    revision, cache = stated or None, constants.HF_HUB_CACHE
    for name in names:
        cached = try_to_load_from_cache(place, name, cache_dir=cache, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
    _probe_hub(place, fetching)
    disable_progress_bars()  # one bar per rank for what takes a second
    for name in names:
        try:
            return Path(hf_hub_download(place, name, cache_dir=cache, revision=revision))
        except EntryNotFoundError:
            continue
        except OSError as error:
            raise UserError(
                f"{place} cannot be fetched: {first_line(error)}; try again, or give a PATH"
            ) from None
    raise UserError(f"{place} has none of {', '.join(names)}; give another model, or a PATH")


def is_repository_name(name: str) -> bool:
    """Whether `name` can mean a repository of the hub, `ORG/NAME` or `ORG/NAME@REVISION`.

    Whatever exists here, or lies in a folder that exists, is a path.
    """
    return (
        _REPOSITORY.fullmatch(name) is not None
        and not Path(name).exists()
        and not _looks_like_path(name)
        and _is_valid(name.partition("@")[0])
    )


def _is_valid(repository: str) -> bool:
    """Whether the hub's library takes this name; elsewhere it raises what is no `UserError`."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError:
        return False
    return True


def hub_folder(
    repository: str, patterns: Sequence[str], *, is_whole: Callable[[Path], bool]
) -> Path:
    """The folder of the cache with the files of `ORG/NAME[@REVISION]` that match `patterns`.

    What is on this machine comes first, if `is_whole` says so, then the hub, if it answers within
    `PROBE_TIMEOUT_S`. No other file is fetched. Raises `UserError` where there is no such
    repository or revision, or it cannot be fetched.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.utils import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RevisionNotFoundError,
        disable_progress_bars,
    )

    place, _, stated = repository.partition("@")

    def fetched(local: bool) -> Path:
        found = snapshot_download(
            place,
            revision=stated or None,
            cache_dir=constants.HF_HUB_CACHE,
            allow_patterns=list(patterns),
            local_files_only=local,
        )
        return Path(found)

    try:
        if is_whole(here := fetched(True)):
            return here
    except LocalEntryNotFoundError:
        pass
    disable_progress_bars()  # one bar per rank
    try:
        _probe_hub(place, f"hf download {place}")
        return fetched(False)
    except NotOnThisMachine as error:
        raise UserError(
            f"there is no {repository} here, and as a name on the hub: {error.problems[0]}. Give "
            "the directory of a run or an export, or fetch it where there is a network: "
            f"hf download {place}"
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"{place} has no revision '{stated}' on {constants.ENDPOINT}") from None
    except (OSError, HfHubHTTPError) as error:
        raise UserError(
            f"{repository} cannot be fetched from {constants.ENDPOINT}: {first_line(error)}; try "
            "again, or give a directory"
        ) from None


def checkpoint_of_url(url: str) -> Path:
    """The file of `url` in torch's folder of checkpoints, downloaded where it is not there yet.

    Raises `UserError` that names the file and its directory if it cannot be fetched.
    """
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not path.is_file():
        _probe_url(url, path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"the checkpoint {path} cannot be fetched from {url}: {first_line(error)}"
            ) from None
    return path


def torchvision_state(weights: Any) -> Mapping[str, Any]:
    """The state dict of a torchvision `weights` member, from its checkpoint file or the network.

    Raises `UserError` that names the file and its directory if neither has it.
    """
    import torch

    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / Path(weights.url).name
    if not path.is_file():
        _probe_url(weights.url, path)
    try:
        state: Mapping[str, Any] = weights.get_state_dict(progress=False, check_hash=True)
        return state
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the checkpoint {path} cannot be loaded ({reason}); delete it and fetch it again "
            f"from {weights.url}"
        ) from None


def _probe_url(url: str, path: Path) -> None:
    from huggingface_hub import constants

    request = urllib.request.Request(url, method="HEAD")
    try:
        if constants.HF_HUB_OFFLINE:  # applies to both: such a machine does not wait
            raise OSError("HF_HUB_OFFLINE is set")
        with urllib.request.urlopen(request, timeout=PROBE_TIMEOUT_S):
            return
    except OSError as error:  # URLError and time-outs are both
        reason = getattr(error, "reason", error)
        problem = (
            f"the pretrained weights {path.name} are not on this machine (looked for {path}) and "
            f"{url} cannot be reached ({reason})"
        )
        raise NotOnThisMachine(
            problem,
            message=f"{problem}. Fetch it where there is a network and put it there (TORCH_HOME "
            "moves that folder), or use weights: none or a PATH",
        ) from None
