"""Parts of the Push-T study: the search that sees true states, and errors of imagined states by horizon.

Legend: B environments, N candidates, H blocks, A numbers of a block, S of a state, D latent width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forethought.core.checkpoint import CheckpointStore
from forethought.data import Episodes
from forethought.envs import System
from forethought.envs.push_t.geometry import angle_difference
from forethought.plan import CEM, Candidates, Controller, ControllerConfig, Moment, Problem, over_horizon
from forethought.world import WorldFitConfig, WorldModel
from forethought.world.data import Windows, encode_rows
from forethought.world.layers import recalibrate

Array = NDArray[Any]
BLOCK, HORIZON = 5, 5
SPREAD = 0.35
"""Standard deviation of the data's actions, about which candidates are drawn as the planners in latent space do."""


def turned(states_BS: Array, goals_BS: Array) -> Array:
    """Return the angles between blocks, in radians."""
    return angle_difference(states_BS[:, 4], goals_BS[:, 4])


class OraclePolicy:
    """The same search with the true physics as its dynamics and the rule of success as its distance."""

    def __init__(self, system: System, candidates: int, iterations: int) -> None:
        self._system = system
        self._planner = CEM(num_candidates=candidates, num_elites=max(2, candidates // 10), num_iterations=iterations)
        self._states = self._goals = np.empty((0, system.state_dim))

    def tell_goals(self, states_BS: Array, goals_BS: Array) -> None:
        """Receive start and goal states."""
        self._states, self._goals = self._system.check_states(states_BS), self._system.check_states(goals_BS)

    def tell_states(self, states_BS: Array) -> None:
        """Receive the present states."""
        self._states = np.asarray(states_BS, np.float64)

    def begin(self, goals_BHWC: Array, seed: int) -> None:
        """Start an episode."""
        settings = ControllerConfig(horizon=HORIZON, execute=2, block=BLOCK)
        self._controller = Controller(self._planner, self._problem, settings, seed=seed)

    def act(self, frames_BHWC: Array) -> Array:
        """Return the next actions."""
        return (SPREAD * self._controller.act(None)).numpy()

    def _problem(self, moment: Moment) -> Problem:
        objective = over_horizon(self._distance, "min", mean_weight=1e-3)
        bound = torch.full((2 * BLOCK,), 1.0 / SPREAD)
        return Problem(
            self._roll, objective, self._states, moment.horizon, 2 * BLOCK, len(self._states), low=-bound, high=bound
        )

    def _roll(self, start_BS: Array, actions_BNHA: Tensor, /) -> Tensor:
        shape = actions_BNHA.shape[:3]
        steps = SPREAD * actions_BNHA.reshape(shape[0] * shape[1], shape[2] * BLOCK, 2).numpy()
        states = np.repeat(start_BS, shape[1], axis=0)
        simulation = self._system.begin(states, self._system.complete(None, len(states)))
        seen = []
        for step in range(steps.shape[1]):
            simulation.step(steps[:, step])
            if step % BLOCK == BLOCK - 1:
                seen.append(simulation.states_BS.copy())
        return torch.from_numpy(np.stack(seen, axis=1)).reshape(*shape, -1)

    def _distance(self, candidates: Candidates) -> Tensor:
        goals = torch.from_numpy(self._goals)[:, None, None]
        places = (candidates.states_BNHS[..., :4] - goals[..., :4]).norm(dim=-1) / 20.0
        angles = candidates.states_BNHS[..., 4] - goals[..., 4]
        turns = torch.atan2(angles.sin(), angles.cos()).abs() / np.deg2rad(20.0)
        return (places.square() + turns.square()).float()


def horizon_errors(model: WorldModel, train: Episodes, held: Episodes, count: int = 400) -> dict[str, Any]:
    """Return, for 1 to 5 blocks ahead, the latent error over that of copying, and errors of imagined states.

    States are read off latents by ridge regression fitted on latents of true training frames.
    """
    skip = model.config.frame_skip
    rows = np.linspace(0, train.num_steps - 1, min(6000, train.num_steps)).astype(int)
    read = _reader(model, train, rows)
    rolled, seen, truth, start = _roll_out(model, held, count)
    figures: dict[str, Any] = {"windows": len(truth), "blocks": list(range(1, HORIZON + 1)), "steps_a_block": skip}
    copied = (seen - start[:, None]).square().mean(dim=(0, 2))
    figures["latent_error"] = (rolled - seen).square().mean(dim=(0, 2)).tolist()
    figures["latent_error_over_copying"] = ((rolled - seen).square().mean(dim=(0, 2)) / copied).tolist()
    for name, latents in (("imagined", rolled), ("seen", seen)):
        guess = read(latents.reshape(-1, latents.shape[-1])).reshape(*latents.shape[:2], -1)
        figures[f"{name}_pusher_error"] = _median(np.linalg.norm(guess[..., :2] - truth[..., :2], axis=-1))
        figures[f"{name}_block_error"] = _median(np.linalg.norm(guess[..., 2:4] - truth[..., 2:4], axis=-1))
        angles = np.arctan2(guess[..., 4], guess[..., 5])
        figures[f"{name}_angle_error_degrees"] = _median(np.rad2deg(angle_difference(angles, truth[..., 4])))
    return figures


def _median(errors_BK: Array) -> list[float]:
    return np.median(errors_BK, axis=0).tolist()


def _reader(model: WorldModel, train: Episodes, rows: Array) -> Any:
    states = np.asarray(train.observations, np.float64)[rows]
    wanted = np.concatenate([states[:, :4], np.sin(states[:, 4:5]), np.cos(states[:, 4:5])], axis=1)
    latents = encode_rows(model, train, rows).double().numpy()
    x, mean = np.concatenate([latents, np.ones((len(rows), 1))], axis=1), wanted.mean(axis=0)
    weights = np.linalg.solve(x.T @ x + 1e-2 * len(rows) * np.eye(x.shape[1]), x.T @ (wanted - mean))
    return lambda z: np.concatenate([z.double().numpy(), np.ones((len(z), 1))], axis=1) @ weights + mean


def _roll_out(model: WorldModel, held: Episodes, count: int) -> tuple[Tensor, Tensor, Array, Tensor]:
    """Return imagined and true latents after 1 to 5 blocks, the true states, and the latents at the start."""
    skip = model.config.frame_skip
    span = HORIZON * skip
    starts = np.concatenate([np.arange(s, s + n - span) for s, n in zip(held.starts, held.lengths, strict=True)])
    starts = starts[np.linspace(0, len(starts) - 1, min(count, len(starts))).astype(int)]
    ahead = starts[:, None] + skip * np.arange(HORIZON + 1)
    latents = encode_rows(model, held, ahead.ravel()).reshape(len(starts), HORIZON + 1, -1)
    actions = torch.from_numpy(np.array(held.array("actions"), np.float32)[starts[:, None] + np.arange(span)])
    with torch.no_grad():
        rolled = model.rollout(latents[:, :1], model.normalise_blocks(actions), history=1)
    return rolled, latents[:, 1:], np.asarray(held.observations, np.float64)[ahead[:, 1:]], latents[:, 0]


def newest_model(run: Path, settings: WorldFitConfig, train: Episodes) -> tuple[WorldModel, int]:
    """Return the model of a run's newest checkpoint, its BatchNorm statistics taken anew, and its step."""
    store = CheckpointStore(run / "checkpoints")
    step = store.steps()[-1]
    model = WorldModel(settings.model)
    model.load_state_dict(store.load(step).tensors("model"))
    batches = Windows(train, model, batch_size=settings.batch_size, seed=0).spread(settings.calibration_windows)
    recalibrate(model, lambda part: (part(batch.frames_BTHWC, batch.blocks_BTA) for batch in batches))
    return model.eval(), step
