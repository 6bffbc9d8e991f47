"""Which locations are URLs of a store, and that no URL carries a credential.

A URL is written to configurations, logs and reports, so it must not hold a secret: those come from
the environment, where the store's own library looks for them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

SCHEMES = ("https", "http", "s3", "gs", "az", "hf")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def is_url(location: str | os.PathLike[str]) -> bool:
    """Whether `location` begins with a scheme, known or not; no path does that here."""
    return isinstance(location, str) and _SCHEME.match(location) is not None


def location_of(text: str) -> Path | str:
    """An argument of a command line as a path or, with a scheme, as the URL that it is."""
    return text if is_url(text) else Path(text)


def url_problem(location: str) -> str:
    """Why `location`, a URL, cannot be used; "" if it can. Never repeats a credential."""
    match = _SCHEME.match(location)
    assert match, location
    if match[1].lower() not in SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        return f"{match[1]}:// is not supported; use a path or one of {known}"
    try:
        parts = urlsplit(location)
    except ValueError as error:
        return f"it is not a URL ({error})"
    if parts.query or parts.fragment:
        return (
            f"the URL of {parts.hostname} has a part after '?' or '#', which often is a "
            "credential; give the plain URL of the folder, and credentials by the environment "
            "(docs/storage.md)"
        )
    if "@" in parts.netloc:
        return (
            f"the URL of {parts.hostname} has a user name or password; give it without, and "
            "credentials by the environment (docs/storage.md)"
        )
    if not parts.netloc:
        return f"{match[1]}:// is not followed by a host, bucket or repository"
    return ""


def joined(location: str | os.PathLike[str], name: str) -> str:
    """Where the file `name` of the folder or URL `location` is, for a message or a request."""
    if is_url(location):
        return f"{str(location).rstrip('/')}/{name}"
    return os.path.join(location, name)
