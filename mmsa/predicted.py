"""What `mmsa.load(EXPORT).predict(...)` returns, and the names of its columns in tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsa.errors import UserError

_SHOWN_ROWS = 5  # of a representation


def probability_columns(label_names: Sequence[str]) -> tuple[str, ...]:
    """The columns of the probabilities, in the order of the classes."""
    return tuple(f"probability_{name}" for name in label_names)


@dataclass(frozen=True, repr=False, eq=False)
class Result:
    """N rows in the order of the input; `label_names` has the C classes.

    `labels` are names and `probabilities` (N, C) float64. Row n could not be predicted where
    `errors[n]` is not None: then its label is None and its numbers are NaN. `embeddings` has one
    array (N, D) float32 for each modality that the model reads, where they were requested; the rows
    that lack the modality are NaN.
    """

    labels: list[str | None]
    probabilities: NDArray[np.float64]
    label_names: tuple[str, ...]
    errors: list[str | None] = field(default_factory=list)
    embeddings: Mapping[str, NDArray[np.float32]] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def confidence(self) -> NDArray[np.float64]:
        """The probability of each row's label, (N,)."""
        found: NDArray[np.float64] = self.probabilities.max(axis=1)
        return found

    @property
    def num_errors(self) -> int:
        """How many rows could not be predicted."""
        return sum(error is not None for error in self.errors)

    def __repr__(self) -> str:
        failed = f", {self.num_errors} with an error" if self.num_errors else ""
        lines = [f"<Result: {len(self)} {'row' if len(self) == 1 else 'rows'}{failed}>"]
        for row in range(min(len(self), _SHOWN_ROWS)):
            error = self.errors[row] if self.errors else None
            numbers = zip(self.label_names, self.probabilities[row], strict=True)
            shown = ", ".join(f"{name} {number:.3f}" for name, number in numbers)
            lines.append(f"  {row}: " + (f"error: {error}" if error else shown))
        if len(self) > _SHOWN_ROWS:
            lines.append("  ...")
        return "\n".join(lines)

    def columns(self) -> dict[str, list[Any]]:
        """The columns that `python -m mmsa predict` writes, N values each.

        `label`, `confidence`, `probability_CLASS` of each class, `error`.
        """
        names = probability_columns(self.label_names)
        numbers = {name: self.probabilities[:, at].tolist() for at, name in enumerate(names)}
        errors = self.errors or [None] * len(self)
        confidence = self.confidence.tolist()
        return {"label": self.labels, "confidence": confidence, **numbers, "error": errors}

    def to_pandas(self) -> Any:
        """`columns` as a `pandas.DataFrame`, its rows numbered from 0.

        Raises `UserError` where pandas is not installed: mmsa does not need it.
        """
        try:
            import pandas
        except ImportError:
            raise UserError("to_pandas() needs pandas; install it: pip install pandas") from None
        return pandas.DataFrame(self.columns())
