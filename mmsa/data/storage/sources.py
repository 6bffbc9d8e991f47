"""The clients of the stores, by obstore, and what their errors say without their secrets.

Credentials come from where each store's own tools look for them: the environment (`AWS_*`,
`GOOGLE_*`, `AZURE_STORAGE_*`, `HF_TOKEN`), a role of the machine, and AWS profiles where boto3 is
installed. None is ever an argument here.
"""

from __future__ import annotations

import os
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mmsa.errors import UserError
from mmsa.foundation.urls import url_problem

if TYPE_CHECKING:
    from obstore.store import ObjectStore

STALL_S = 30.0  # a connection without a byte for this long is given up and made again
_CONNECT_S = 10.0
_WORDS = 300  # characters of a store's message that are repeated
_QUERY = re.compile(r"\?[^\s\"'<>)]*")
_USER = re.compile(r"://[^/\s@]+@")
_CODE = re.compile(r"<Code>([^<]*)</Code>")
_MESSAGE = re.compile(r"<Message>([^<]*)</Message>")
_CLIENT_ERROR = re.compile(r"(?:status(?: code)?:?|code:) ?(4[0-9][0-9])\b")
_TRY_AGAIN = ("408", "416", "425", "429")
_FINAL_CODES = ("ExpiredToken", "InvalidToken", "TokenRefreshRequired", "NoSuchBucket")


class StoreError(UserError):
    """What a store answered. `final`: asking again would not change it."""

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


def client_of(url: str) -> ObjectStore:
    """A client for the folder at `url`. Raises `UserError`: no client, no such scheme."""
    problem = url_problem(url)
    if problem:
        raise UserError(problem)
    try:
        from obstore import store
    except ImportError:
        raise UserError(
            f"{url} needs the package obstore, which is not installed: pip install 'mmsa[remote]'"
        ) from None
    scheme = urlsplit(url).scheme.lower()
    options: Any = {
        "connect_timeout": timedelta(seconds=_CONNECT_S),
        "read_timeout": timedelta(seconds=STALL_S),
        "timeout": timedelta(days=1),  # of a whole body: a slow one is no error
    }
    # Short: fetching.py has its own retries, which count bytes that arrived as progress.
    retries: Any = {
        "max_retries": 2,
        "retry_timeout": timedelta(seconds=20),
        "backoff": {
            "init_backoff": timedelta(milliseconds=100),
            "max_backoff": timedelta(seconds=2),
            "base": 2,
        },
    }
    try:
        if scheme in ("http", "https"):
            options["allow_http"] = scheme == "http"
            return store.HTTPStore.from_url(url, client_options=options, retry_config=retries)
        if scheme == "hf":
            address, headers = _hub_address(url)
            options |= {"default_headers": headers, "allow_http": address.startswith("http:")}
            return store.HTTPStore.from_url(address, client_options=options, retry_config=retries)
        if scheme == "s3":
            return store.S3Store.from_url(
                url, client_options=_s3_options(options), retry_config=retries, **_aws_profile()
            )
        kind = store.GCSStore if scheme == "gs" else store.AzureStore
        return kind.from_url(url, client_options=options, retry_config=retries)
    except UserError:
        raise
    except Exception as error:  # obstore's own errors have no common base with ValueError
        raise StoreError(f"{url} cannot be opened: {words_of(error)}", final=True) from None


def _s3_options(options: Any) -> Any:
    # A store in the cluster often has no TLS, and its address says so.
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    return {**options, "allow_http": True} if endpoint.startswith("http:") else options


def _aws_profile() -> dict[str, Any]:
    """Credentials of ~/.aws by boto3, where the environment has none."""
    given = ("AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE", "AWS_WEB_IDENTITY_TOKEN_FILE")
    if any(os.environ.get(name) for name in given):
        return {}
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider

        return {"credential_provider": Boto3CredentialProvider()}
    except (ImportError, ValueError):  # no boto3; no credentials there: the machine's role
        return {}


def hub_place(url: str) -> tuple[str, str, str]:
    """(repository, revision, folder in it) of `hf://datasets/ORG/NAME[@REVISION][/FOLDER]`."""
    parts = url.removeprefix("hf://").strip("/").split("/")
    if len(parts) < 3 or parts[0] != "datasets":
        raise UserError(f"{url} must be hf://datasets/ORG/NAME, with @REVISION if not main")
    name, _, revision = parts[2].partition("@")
    return f"{parts[1]}/{name}", revision or "main", "/".join(parts[3:])


def _hub_address(url: str) -> tuple[str, dict[str, str]]:
    from huggingface_hub import constants, get_token

    repository, revision, folder = hub_place(url)
    address = f"{constants.ENDPOINT}/datasets/{repository}/resolve/{revision}/{folder}"
    token = get_token()
    # reqwest drops this header where the hub redirects to another host.
    return address.rstrip("/"), {"authorization": f"Bearer {token}"} if token else {}


def translated(error: Exception, what: str) -> StoreError:
    """`error` of a client while it was doing `what`, in the store's words."""
    from obstore import exceptions

    words = words_of(error)
    kinds = (FileNotFoundError, exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
    final = isinstance(error, kinds) or any(code in words for code in _FINAL_CODES)
    status = _CLIENT_ERROR.search(str(error))
    if status and status[1] not in _TRY_AGAIN:
        final = True
    if isinstance(error, FileNotFoundError):
        words = f"it is not there ({words})"
    return StoreError(f"{what}: {words}", final=final)


def words_of(error: BaseException) -> str:
    """What a store said, on one line, without the parts that can hold a secret.

    S3 repeats an expired token in its answer, and a signed address has its signature after "?".
    """
    text = str(error).split("Debug source")[0]
    code, message = _CODE.search(text), _MESSAGE.search(text)
    if code:
        text = f"{code[1]}: {message[1]}" if message else code[1]
    else:
        text = text.partition("<?xml")[0].partition("<html")[0].partition("<!DOCTYPE")[0]
    text = _USER.sub("://", _QUERY.sub("", text))
    return " ".join(text.split())[:_WORDS] or type(error).__name__
