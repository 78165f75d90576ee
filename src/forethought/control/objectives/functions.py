"""Plain Python functions of a user, called with whatever arrays they are written for.

A function may be written for NumPy or torch, for whole arrays of steps or for one step. The first call finds out on a
probe whose number of rows equals no other size, so that a function of one step cannot pass for one of many.

Legend: M rows (steps of candidates), N candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forethought.core.errors import InputError

# What NumPy and torch raise when they are given arrays that a function was not written for.
_MISFITS = (TypeError, ValueError, AttributeError, IndexError, RuntimeError)
_MISSING: Any = object()


class ObjectiveError(InputError):
    """A user's objective or constraint raised an error, or returned something that is no score."""


class StepFunction:
    """A function of one step, `(before, action, after) -> number`, applied to M of them at a time.

    The user's function gets NumPy arrays (M, dim), or torch tensors, or single rows (dim,), whichever it takes; one
    written for single rows is slow, and `vectorised` says so.

    Raises:
        ObjectiveError: the function raises, or returns neither M numbers nor one number a row.
    """

    def __init__(self, function: Callable[..., Any], *, what: str) -> None:
        self.function, self.what = function, what
        self._how: tuple[str, bool] | None = None

    @property
    def vectorised(self) -> bool | None:
        """Whether the function takes many rows at once; None before its first call."""
        return None if self._how is None else self._how[1]

    def __call__(self, *rows_MD: Tensor) -> Tensor:
        """Return M numbers for M rows of each argument."""
        if self._how is None:
            self._how = self._find_out(rows_MD)
        dialect, vectorised = self._how
        arguments = [_speak(rows, dialect) for rows in rows_MD]
        num_rows = len(rows_MD[0])
        try:
            if vectorised:
                raw = self.function(*arguments)
            else:
                raw = [_number(self.function(*row)) for row in zip(*arguments, strict=True)]
        except Exception as error:
            raise self._failure(error, rows_MD) from error
        return as_scores(raw, (num_rows,), rows_MD[0], what=self.what)

    def _find_out(self, rows_MD: Sequence[Tensor]) -> tuple[str, bool]:
        size = max(rows.shape[-1] for rows in rows_MD) + 1
        probe = [rows[torch.arange(size) % len(rows)] for rows in rows_MD]
        first: Exception | None = None
        shape: tuple[int, ...] | None = None
        for dialect in ("numpy", "torch"):
            arguments = [_speak(rows, dialect) for rows in probe]
            raw, error = self._attempt(arguments, rows_MD)
            first = first or error
            if raw is not _MISSING:
                shape = tuple(getattr(raw, "shape", ()))
                if shape == (size,):
                    return dialect, True
        for dialect in ("numpy", "torch"):
            row = [_speak(rows, dialect)[0] for rows in probe]
            raw, error = self._attempt(row, rows_MD)
            first = first or error
            if raw is not _MISSING and _size(raw) == 1:
                return dialect, False
        if first is not None:
            raise self._failure(first, rows_MD) from first
        raise ObjectiveError(
            f"{self.what} returned the shape {shape} for {size} steps of (before, action, after) with "
            f"{[rows.shape[-1] for rows in rows_MD]} numbers each; return one number a step, "
            "for example -(after[..., 0] - 1.0) ** 2"
        )

    def _attempt(self, arguments: Sequence[Any], rows_MD: Sequence[Tensor]) -> tuple[Any, Exception | None]:
        try:
            return self.function(*arguments), None
        except _MISFITS as error:
            return _MISSING, error
        except Exception as error:
            raise self._failure(error, rows_MD) from error

    def _failure(self, error: Exception, rows_MD: Sequence[Tensor]) -> ObjectiveError:
        shapes = ", ".join(str(tuple(rows.shape)) for rows in rows_MD)
        return ObjectiveError(
            f"{self.what} raised {type(error).__name__}: {error} (with arrays of shapes {shapes}, in real units); "
            "it must take the arrays (before, action, after) with steps in front, or one step of them"
        )


class PlanFunction:
    """A function of whole plans, `(Foreseen) -> N scores`, written for NumPy or torch.

    Raises:
        ObjectiveError: the function raises, or does not return N numbers.
    """

    def __init__(self, function: Callable[[Any], Any], *, what: str) -> None:
        self.function, self.what = function, what
        self._dialect: str | None = None

    def __call__(self, foreseen: Any) -> Tensor:
        """Return N scores of the N candidates."""
        like, first = foreseen.after, None
        for dialect in (self._dialect,) if self._dialect else ("numpy", "torch"):
            try:
                raw = self.function(foreseen.speaking(dialect))
            except _MISFITS as error:
                first = first or error
                continue
            except Exception as error:
                raise self._failure(error, like) from error
            scores = as_scores(raw, (len(like),), like, what=self.what)
            self._dialect = dialect
            return scores
        error = first or TypeError("it takes no arrays")
        raise self._failure(error, like) from error

    def _failure(self, error: Exception, like: Tensor) -> ObjectiveError:
        return ObjectiveError(
            f"{self.what} raised {type(error).__name__}: {error} (with `after` of shape {tuple(like.shape)}); "
            "it must take one Foreseen and return one score a candidate"
        )


def as_scores(raw: Any, shape: tuple[int, ...], like: Tensor, *, what: str) -> Tensor:
    """Return what a user's function gave as a float tensor of the wanted shape, NaN included.

    Raises:
        ObjectiveError: it is not numbers of that shape.
    """
    try:
        values = raw.detach() if isinstance(raw, Tensor) else torch.from_numpy(np.asarray(raw, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise ObjectiveError(f"{what} returned {type(raw).__name__}, which is not numbers: {error}") from error
    if tuple(values.shape) != shape:
        raise ObjectiveError(f"{what} returned the shape {tuple(values.shape)}; it must be {shape}, one score each")
    return values.to(device=like.device, dtype=torch.float32)


def _speak(rows: Tensor, dialect: str) -> Any:
    # A copy: what a user's function does to its arguments stays with the user's function.
    return rows.detach().cpu().numpy().copy() if dialect == "numpy" else rows.detach().clone()


def _size(raw: Any) -> int:
    if isinstance(raw, Tensor):
        return raw.numel()
    return int(np.size(raw)) if isinstance(raw, int | float | np.generic | np.ndarray | list | tuple) else 0


def _number(raw: Any) -> float:
    return float(raw.item() if isinstance(raw, Tensor | np.ndarray) else raw)
