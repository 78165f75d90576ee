"""Policies that seek goals: way-points through the door of two rooms, and a PD law for the reacher.

Legend: B environments, S numbers of a state, A of an action.
"""

from __future__ import annotations

import numpy as np

from forethought.envs.behaviour.policy import Policy
from forethought.envs.reacher import wrap
from forethought.envs.system import Factors, Floats, System
from forethought.envs.two_rooms import WALL


class WayPoints(Policy):
    """Two rooms: to the door, through it, to the target; unit direction + noise, as the published data were made.

    noise: standard deviation added to each coordinate of the unit direction before clipping (2.0 as published; 0 is an
    expert). repeat: chance that the last action is taken again. redraw: a target that is reached gives way to a new one
    (else the episode's goal stays the target).
    """

    def __init__(self, noise: float = 2.0, repeat: float = 0.05, redraw: bool = True) -> None:
        self.noise, self.repeat, self.redraw = noise, repeat, redraw

    def begin(
        self, system: System, states_BS: Floats, goals_BS: Floats, factors: Factors, rng: np.random.Generator
    ) -> None:
        """Begin with the goals as targets."""
        super().begin(system, states_BS, goals_BS, factors, rng)
        self._last: Floats | None = None

    def act(self, states_BS: Floats) -> Floats:
        """Return noisy steps towards the next way-point."""
        if self.redraw:
            arrived = self.system.success(states_BS, self.goals_BS, self.factors)
            fresh = self.system.draw_states(self.rng, self.factors)
            self.goals_BS = np.where(arrived[:, None], fresh, self.goals_BS)
        away = self._way_points(states_BS) - states_BS
        distance = np.linalg.norm(away, axis=1, keepdims=True)
        # Closer than one step the direction shrinks, or an expert would dance about its target.
        aim = away / np.maximum(distance, np.maximum(self.factors["speed"], 1e-9))
        if self.noise:
            aim = away / np.maximum(distance, 1e-9) + self.noise * self.rng.standard_normal(away.shape)
        actions = self.clip(aim)
        if self._last is not None and self.repeat:
            again = self.rng.random(len(actions)) < self.repeat
            actions = np.where(again[:, None], self._last, actions)
        self._last = actions
        return actions

    def _way_points(self, states_BS: Floats) -> Floats:
        x, goal_x = states_BS[:, 0], self.goals_BS[:, 0]
        half = (self.factors["wall_half_width"] + self.factors["agent_radius"])[:, 0]
        door = self.factors["door_position"][:, 0]
        side, goal_side = np.sign(x - WALL), np.sign(goal_x - WALL)
        passing = np.abs(x - WALL) < half
        across = (side != goal_side) | passing
        # Before the opening the aim is its mouth on this side; inside it, the mouth on the goal's side.
        opening = np.abs(states_BS[:, 1] - door) < 0.5 * self.factors["door_half_width"][:, 0]
        near_x = np.where(opening | passing, WALL + goal_side * (half + 1.0), WALL + side * (half + 1.0))
        return np.where(across[:, None], np.stack([near_x, door], axis=1), self.goals_BS)


class JointControl(Policy):
    """Reacher: a PD law to the goal's angles; with `redraw` a pose that is reached gives way to a new one."""

    def __init__(self, stiffness: float = 6.0, drag: float = 2.5, redraw: bool = True) -> None:
        self.stiffness, self.drag, self.redraw = stiffness, drag, redraw

    def act(self, states_BS: Floats) -> Floats:
        """Return torques towards the goal's angles."""
        if self.redraw:
            arrived = self.system.success(states_BS, self.goals_BS, self.factors)
            fresh = self.system.draw_states(self.rng, self.factors)
            self.goals_BS = np.where(arrived[:, None], fresh, self.goals_BS)
        error = self.goals_BS[:, :2] - states_BS[:, :2]
        error[:, 0] = wrap(error[:, 0])
        return self.clip((self.stiffness * error - self.drag * states_BS[:, 2:]) / self.factors["gear"])
