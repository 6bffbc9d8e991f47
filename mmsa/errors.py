"""Errors that a user can fix, and the exit code that says so.

The rule (docs/architecture.md): a message says what is wrong, what was found, what was expected and
what to do. A `UserError` ends a command with `EXIT_USER_ERROR` and its message alone; any other
exception is a bug in mmsa and keeps its traceback.
"""

from __future__ import annotations

EXIT_USER_ERROR = 2
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: repeat the command. Not 0: `train && evaluate`
EXIT_INTERRUPTED = 130  # as a shell has it after Ctrl-C


class UserError(Exception):
    """Something that the user can fix: a wrong setting, a missing file, an impossible launch."""


class AgreedError(UserError):
    """A `UserError` that all ranks raise together, in the loop; the main rank reports it once."""


class ShardDamage(UserError):
    """A packed shard that does not match its manifest or index; `shard` and `key` say where.

    The exit code is that of every `UserError`; a separate type lets a run record the place.
    """

    def __init__(self, message: str, *, shard: str, key: str | None = None) -> None:
        super().__init__(message)
        self.shard = shard
        self.key = key

    def __reduce__(self) -> tuple[object, ...]:
        # Loader workers pass exceptions to their parent by pickle, which by default passes only
        # positional arguments.
        return (_rebuild_shard_damage, (str(self), self.shard, self.key))


def _rebuild_shard_damage(message: str, shard: str, key: str | None) -> ShardDamage:
    return ShardDamage(message, shard=shard, key=key)


def one_or_many(problems: list[str], *, where: str) -> str:
    """Join `problems` into one message: a sentence for one, a numbered list for several."""
    if len(problems) == 1:
        return f"{where}: {problems[0]}"
    lines = [f"{where}: {len(problems)} problems"]
    lines += [f"  {number}. {problem}" for number, problem in enumerate(problems, start=1)]
    return "\n".join(lines)


def first_line(error: BaseException, *, with_type: bool = False) -> str:
    """What another library's `error` says, on one line of at most 160 characters."""
    said, kind = str(error).strip(), type(error).__name__
    line = said.splitlines()[0] if said else ""
    return (f"{kind}: {line}" if with_type else line or kind)[:160]
