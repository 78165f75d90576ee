"""Linear-quadratic problems with their exact optimum, for the tests of planners."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from forethought.core.rng import generator
from forethought.plan import Candidates, Problem


@dataclass(frozen=True)
class LinearQuadratic:
    """x' = A x + B u, cost sum of x' Q x + u' R u after each step: the optimum is a linear solve."""

    A: np.ndarray
    B: np.ndarray
    Q: np.ndarray
    R: np.ndarray
    x0: np.ndarray
    horizon: int

    def dynamics(self, start: Tensor, actions_BNHA: Tensor) -> Tensor:
        a, b = torch.tensor(self.A), torch.tensor(self.B)
        x = start[:, None].expand(-1, actions_BNHA.shape[1], -1)
        states = []
        for k in range(actions_BNHA.shape[2]):
            x = x @ a.T + actions_BNHA[:, :, k] @ b.T
            states.append(x)
        return torch.stack(states, dim=2)

    def objective(self, candidates: Candidates) -> Tensor:
        x, u = candidates.states_BNHS, candidates.actions_BNHA
        q, r = torch.tensor(self.Q), torch.tensor(self.R)
        return ((x @ q) * x).sum(dim=(2, 3)) + ((u @ r) * u).sum(dim=(2, 3))

    def problem(self, num_environments: int = 1, **changes) -> Problem:
        start = torch.tensor(self.x0)[None].expand(num_environments, -1)
        values = {
            "dynamics": self.dynamics,
            "objective": self.objective,
            "start": start,
            "horizon": self.horizon,
            "action_dim": self.B.shape[1],
            "num_environments": num_environments,
            "dtype": torch.float64,
        }
        return Problem(**(values | changes))

    def cost(self, actions_HA: np.ndarray) -> float:
        x, total = self.x0, 0.0
        for u in actions_HA:
            x = self.A @ x + self.B @ u
            total += float(x @ self.Q @ x + u @ self.R @ u)
        return total

    def riccati(self) -> np.ndarray:
        """Return the optimal actions by the backward Riccati recursion, (H, A)."""
        value, gains = np.zeros_like(self.Q), []
        for _ in range(self.horizon):
            # Cost of x' is x'(Q + V)x'; u minimises (Ax+Bu)'(Q+V)(Ax+Bu) + u'Ru.
            inner = self.Q + value
            gain = np.linalg.solve(self.R + self.B.T @ inner @ self.B, self.B.T @ inner @ self.A)
            closed = self.A - self.B @ gain
            value = closed.T @ inner @ closed + gain.T @ self.R @ gain
            gains.append(gain)
        x, actions = self.x0, []
        for gain in reversed(gains):
            u = -gain @ x
            actions.append(u)
            x = self.A @ x + self.B @ u
        return np.array(actions)


def double_integrator(horizon: int = 8) -> LinearQuadratic:
    dt = 0.3
    return LinearQuadratic(
        A=np.array([[1.0, dt], [0.0, 1.0]]),
        B=np.array([[0.5 * dt * dt], [dt]]),
        Q=np.diag([1.0, 0.1]),
        R=np.array([[0.1]]),
        x0=np.array([1.5, -0.5]),
        horizon=horizon,
    )


def random_problem(index: int) -> LinearQuadratic:
    rng = generator(0, "lqr", index)
    size, width, horizon = int(rng.integers(2, 5)), int(rng.integers(1, 4)), int(rng.integers(3, 7))
    a = rng.standard_normal((size, size))
    a *= rng.uniform(0.5, 0.95) / np.linalg.norm(a, 2)
    return LinearQuadratic(
        A=a,
        B=rng.standard_normal((size, width)),
        Q=np.diag(rng.uniform(0.1, 1.0, size)),
        R=np.diag(rng.uniform(0.1, 1.0, width)),
        x0=rng.standard_normal(size),
        horizon=horizon,
    )
