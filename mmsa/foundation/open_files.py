"""The limit on open files (`ulimit -n`): raised as far as it may be, and told as that."""

from __future__ import annotations

import errno
import resource

from mmsa.errors import UserError

_ENOUGH = 4096
_LEAST = 32  # a process that trains alone with two loader workers has about 35


def allow_open_files() -> None:
    """Raise this process's soft limit to `_ENOUGH`, or as far as its hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(_ENOUGH, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def require_open_files() -> None:
    """Raise `UserError` where so few files may be open that a command would hang or fail later."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit != resource.RLIM_INFINITY and limit < _LEAST:
        raise UserError(_raise_it(limit))


def _raise_it(limit: int) -> str:
    return (
        f"this process may have {limit} files open and needs more; raise the limit in the shell "
        f"that starts it (ulimit -n {_ENOUGH}), or ask your administrator to"
    )


def too_many_open(error: BaseException) -> str | None:
    """What to do about `error` where it, or what caused it, is the limit on open files."""
    cause: BaseException | None = error
    while cause is not None:
        number = getattr(cause, "errno", None)
        if number == errno.EMFILE or "Too many open files" in str(cause):
            return _raise_it(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        cause = cause.__cause__ or cause.__context__
    return None
