"""What holds a request's text to a form, seen from the verifier: which tokens may come next.

A constraint is asked once a round, for every place that the round decides; a drafted token that it does not allow has
probability zero there and is rejected as any other.

Shape suffix: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Constraint(Protocol):
    """The allowed continuations of one request, which it follows through every token it generates."""

    @property
    def is_complete(self) -> bool:
        """Whether the text so far is whole, so that it may end here."""
        ...

    def masks(self, draft: Sequence[int]) -> list[NDArray[np.bool_]]:
        """Return which tokens (V) may follow after 0, 1, ... of the drafted tokens; what was committed stays as it is.

        The list ends before the first drafted token that is not allowed where it stands; the places after that one
        cannot be reached. It has at least one mask and at most one more than there are drafted tokens.

        Raises:
            ForethoughtError: the constraint cannot go on, for example because it outgrew its limits.
        """
        ...

    def commit(self, tokens: Sequence[int]) -> None:
        """Go on past tokens that were generated.

        Raises:
            ForethoughtError: a token is not allowed where it stands.
        """
        ...
