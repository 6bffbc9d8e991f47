"""Which column of a table is the text, the image, the label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmsa.errors import UserError

if TYPE_CHECKING:
    from mmsa.raw_files.rows import Table

# Names by which a column is recognised, in any letter case.
USUAL_TEXT = ("text", "tweet", "caption", "sentence")
USUAL_IMAGE = ("image", "image_path", "picture", "path", "file_name", "filename")
USUAL_LABEL = ("label", "sentiment", "class")


def find_column(
    table: Table,
    given: str | None,
    usual: Sequence[str],
    *,
    what: str,
    flag: str | None = None,
    otherwise: str = "",
) -> str:
    """The column named `given`; where that is None, the one with a usual name, in any case.

    Raises `UserError` where none or several match. It says how to name the column (`flag`, None for
    `--WHAT-column`), and where none was named and found, what to do `otherwise`.
    """
    columns, separated_by = table.columns, table.separated_by
    flag = flag or f"--{what}-column"
    if given is not None and columns.count(given) == 1:
        return given
    wanted = [given] if given is not None else list(usual)
    folded = {name.strip().casefold() for name in wanted}
    found = [name for name in columns if name.strip().casefold() in folded]
    if len(found) == 1:
        return found[0]
    shown = ", ".join(columns[:20]) + (", ..." if len(columns) > 20 else "")
    problem = f"has no column '{given}'" if given is not None else f"has no column for the {what}"
    if found:
        problem = f"has {len(found)} columns for the {what}: {', '.join(found)}"
    how = f" (separated by {separated_by})" if separated_by else ""
    raise UserError(
        f"the table {problem}. Its columns{how}: {shown}. Name one with {flag}"
        + (
            ""
            if given is not None
            else f"; names that are recognised automatically: {', '.join(usual)}"
        )
        + (otherwise if given is None and not found else "")
    )


def has_column(columns: Sequence[str], names: Sequence[str]) -> bool:
    """Whether at least one column has one of `names`, in any letter case."""
    return bool({column.strip().casefold() for column in columns} & set(names))


def no_input_columns(columns: Sequence[str]) -> UserError:
    """The error for a table that has neither a column for the text nor one for the image."""
    return UserError(
        f"the table has neither a column for the text ({', '.join(USUAL_TEXT)}) nor one for "
        f"the image ({', '.join(USUAL_IMAGE)}); its columns: {', '.join(columns[:20])}. "
        "Name one with --text-column or --image-column"
    )
