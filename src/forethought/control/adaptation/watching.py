"""An agent with a monitor on one of its robots: it acts as before, and every step leaves a sign."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forethought.control.adaptation.monitor import Monitor, Sign

Floats = NDArray[np.float32]


class Watched:
    """A policy that gives the agent's actions and keeps, step by step, what its predictions were worth.

    The monitor goes on from episode to episode, because a changed body stays changed; `alarm_at` is the step of its
    wish to adapt, counted over `signs`, or None.
    """

    def __init__(self, agent: Any, monitor: Monitor, *, robot: int = 0) -> None:
        self.agent, self.monitor, self.robot = agent, monitor, robot
        self.signs: list[Sign] = []
        self.begins: list[int] = []
        self.alarm_at: int | None = None

    @property
    def num_robots(self) -> int:
        """Robots that the agent drives."""
        return self.agent.num_robots

    def reset(self, robot: int | None = None) -> None:
        """Begin a new episode of one robot, or of all."""
        self.agent.reset(robot)
        if robot is None or robot == self.robot:
            self.begins.append(len(self.signs))

    def act(self, observation: ArrayLike) -> Floats:
        """Return the agent's actions and take in the residual of the watched robot."""
        actions = self.agent.act(observation)
        sign = self.monitor.update(float(self.agent.decision.residual_B[self.robot]))
        if sign.wants_to_adapt and self.alarm_at is None:
            self.alarm_at = len(self.signs)
        self.signs.append(sign)
        return actions

    def executed(self, actions_BA: ArrayLike) -> None:
        """Say what the robots really did."""
        self.agent.executed(actions_BA)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: z by step (None where nothing was predicted), episode begins, and the alarm."""
        return {
            "z": [None if np.isnan(sign.residual) else sign.z for sign in self.signs],
            "begins": self.begins,
            "alarm_at": self.alarm_at,
        }
