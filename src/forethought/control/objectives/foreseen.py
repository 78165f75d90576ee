"""What an objective sees of one robot: its candidates and where they are predicted to lead, in real units.

Legend: B environments, N candidates, H steps of the horizon, O numbers an observation, A numbers an action.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from forethought.control.objectives.functions import StepFunction
from forethought.plan import Candidates


@dataclass(frozen=True)
class Foreseen:
    """The candidates of one robot: NumPy arrays or torch tensors, as the function that gets them wants.

    now: the present observation, (O,). before, action, after: (N, H, O), (N, H, A), (N, H, O), each step's observation,
    action and the predicted next one. alive: (N, H), 1 up to and with the first predicted end of the episode, then 0.
    time: the robot's step, for goals that vary in time.
    """

    now: Any
    before: Any
    action: Any
    after: Any
    alive: Any
    time: int

    def speaking(self, dialect: str) -> Foreseen:
        """Return copies as NumPy arrays or as torch tensors."""
        fields = {name: getattr(self, name) for name in ("now", "before", "action", "after", "alive")}
        if dialect == "numpy":
            return replace(self, **{name: value.detach().cpu().numpy().copy() for name, value in fields.items()})
        return replace(self, **{name: value.detach().clone() for name, value in fields.items()})


def observation_of(candidates: Candidates) -> Tensor:
    """Return the present observations (B, O): the start itself, or its field `obs_BO`."""
    start = candidates.start
    return start if isinstance(start, Tensor) else start.obs_BO


def befores(candidates: Candidates) -> Tensor:
    """Return the observation before each action, (B, N, H, O)."""
    states_BNHO = candidates.states_BNHS
    first_BN1O = observation_of(candidates)[:, None, None].expand(-1, states_BNHO.shape[1], 1, -1)
    return torch.cat([first_BN1O.to(states_BNHO), states_BNHO[:, :, :-1]], dim=2)


def foresee(candidates: Candidates, alive_BNH: Tensor, index: int) -> Foreseen:
    """Return what an objective sees of environment `index`."""
    times = getattr(candidates.start, "time_B", None)
    return Foreseen(
        now=observation_of(candidates)[index],
        before=befores(candidates)[index],
        action=candidates.actions_BNHA[index],
        after=candidates.states_BNHS[index],
        alive=alive_BNH[index],
        time=candidates.step if times is None else int(times[index]),
    )


def freeze(candidates: Candidates, ended: Callable[..., Any] | None) -> tuple[Candidates, Tensor]:
    """Hold every candidate at its first predicted end, and return it with alive_BNH.

    A model that learned from episodes knows nothing of what comes after a fall; training windows repeat the last state
    there and act with zeros, so that is what objectives see too. `ended(after)` says of each observation whether it
    ends the episode.

    Raises:
        ObjectiveError: `ended` raises or returns no truth value an observation.
    """
    states_BNHO, actions_BNHA = candidates.states_BNHS, candidates.actions_BNHA
    if ended is None:
        return candidates, torch.ones(states_BNHO.shape[:3], device=states_BNHO.device)
    ends = ended if isinstance(ended, StepFunction) else StepFunction(ended, what="the end of the episode")
    over_BNH = ends(states_BNHO.flatten(0, 2)).reshape(states_BNHO.shape[:3]) != 0
    # Exclusive cumulative count: the step that ends the episode is still lived.
    past_BNH = (over_BNH.long().cumsum(2) - over_BNH.long()) > 0
    last_BN = torch.where(over_BNH.any(2), over_BNH.float().argmax(2), over_BNH.shape[2] - 1)
    index = last_BN[..., None, None].expand(-1, -1, 1, states_BNHO.shape[3])
    held_BN1O = states_BNHO.gather(2, index)
    frozen = replace(
        candidates,
        states_BNHS=torch.where(past_BNH[..., None], held_BN1O, states_BNHO),
        actions_BNHA=actions_BNHA.masked_fill(past_BNH[..., None], 0.0),
    )
    return frozen, (~past_BNH).float()
