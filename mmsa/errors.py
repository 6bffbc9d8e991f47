"""Errors that a user can mend, and the exit code that says so.

The rule (docs/architecture.md): a message says what is wrong, what was found, what was expected and
what to do. A `UserError` ends a command with `EXIT_USER_ERROR` and its message alone; any other
exception is a mistake of ours and keeps its traceback.
"""

from __future__ import annotations

EXIT_USER_ERROR = 2
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: repeat the command. Not 0: `train && evaluate`
EXIT_INTERRUPTED = 130  # as a shell has it after Ctrl-C


class UserError(Exception):
    """Something that the user can mend: a wrong setting, a missing file, an impossible launch."""


class AgreedError(UserError):
    """A `UserError` that all ranks raise together, inside the loop: told once, by the main rank."""


class ShardDamage(UserError):
    """A packed shard that does not match its manifest or index; `shard` and `key` say where.

    The exit code is that of every `UserError`; the type is apart so that a run can record where.
    """

    def __init__(self, message: str, *, shard: str, key: str | None = None) -> None:
        super().__init__(message)
        self.shard = shard
        self.key = key

    def __reduce__(self) -> tuple[object, ...]:
        # Loader workers hand exceptions to their parent by pickle, which passes positional
        # arguments alone by default.
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
