"""What planning could win and where it is lost: proposals carried out in the true simulator, from held-out states.

    python benchmarks/studies/control_oracle.py --models DIR --data DIR

From each state of held-out Hopper episodes the proposal draws candidates. Each is carried out in a simulator set to
that state, then the behaviour policy goes on, and the discounted return that follows is the truth (a mean of repeats
with common random numbers). The learned value scores the same candidates on the true states and on those that each
dynamics model predicts. Rank correlations and gains are within a state, which is what a planner chooses by; that
predicted and true returns agree between states says nothing about it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from control_cells import Cells, Given, flags, interval
from control_models import TASKS, model, open_data
from control_tasks import VALUE
from numpy.typing import NDArray

from forethought.app.control.places import environment
from forethought.control.models import situation_of
from forethought.control.objectives import freeze
from forethought.control.running import known
from forethought.core.rng import generator, torch_generator
from forethought.data.episodes import WindowConfig, WindowCutter
from forethought.plan import Candidates

TASK, BEHAVIOUR = "hopper-medium", "policy-sac-hopper.npz"
STATES, CANDIDATES, REPEATS, TAIL = 16, 16, 2, 250
Array = NDArray[Any]


class Behaviour:
    """The policy that made the data: a squashed normal law over a ReLU network, read from an .npz of arrays."""

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        names = ("latent_pi.0", "latent_pi.2", "mu", "log_std")
        self.layers = [
            tuple(next(v for k, v in arrays.items() if f"{name}.{part}" in k) for part in ("weight", "bias"))
            for name in names
        ]

    def __call__(self, observation: Array, rng: np.random.Generator) -> Array:
        """Return a drawn action."""
        (w0, b0), (w1, b1), (wm, bm), (ws, bs) = self.layers
        hidden = np.maximum(w1 @ np.maximum(w0 @ observation + b0, 0.0) + b1, 0.0)
        std = np.exp(np.clip(ws @ hidden + bs, -20.0, 2.0))
        return np.tanh(wm @ hidden + bm + std * rng.standard_normal(len(bm)))


class Simulator:
    """The environment, set to the state behind an observation (its place along the way does not matter)."""

    def __init__(self, env_id: str, discount: float) -> None:
        self.env, self.discount = environment(env_id)().unwrapped, discount
        self.env.reset(seed=0)

    def carry_out(self, start: Array, actions: Array, behaviour: Behaviour) -> tuple[Array, float]:
        """Return the true states after each action, (H, O), and the discounted return with what follows."""
        numbers = self.env.model.nq
        self.env.set_state(np.concatenate([[0.0], start[: numbers - 1]]), np.array(start[numbers - 1 :], np.float64))
        states, total, seen, alive = [], 0.0, start, True
        for step, action in enumerate(actions):
            if alive:
                seen, reward, ended, _, _ = self.env.step(action)
                total += self.discount**step * reward
                alive = not ended
            states.append(seen)
        if alive:
            place = self.env.data.qpos.copy(), self.env.data.qvel.copy()
            tails = [self._follow(place, seen, behaviour, repeat) for repeat in range(REPEATS)]
            total += self.discount ** len(actions) * float(np.mean(tails))
        return np.stack(states), total

    def _follow(self, place: tuple[Array, Array], seen: Array, behaviour: Behaviour, repeat: int) -> float:
        self.env.set_state(*place)
        total, rng = 0.0, generator(repeat, "control.oracle.tail")
        for step in range(TAIL):
            seen, reward, ended, _, _ = self.env.step(behaviour(seen, rng))
            total += self.discount**step * reward
            if ended:
                break
        return total


def measure(given: Given, seed: int) -> dict[str, Any]:
    """Return the true returns of candidates in held-out states, and how the scores rank them."""
    steps, num_states = (20, 2) if given.quick else (None, STATES)
    names = ("proposal.diffusion", "dynamics.diffusion", "dynamics.one-step", VALUE)
    proposal, multi, one, value = (model(TASK, name, given.models, given.data, steps=steps) for name in names)
    held = open_data(TASK, given.data)[2].validation
    cutter = WindowCutter(held, WindowConfig(horizon=16, anchors="whole"))
    batch = cutter.cut(np.sort(generator(seed, "control.oracle").permutation(cutter.anchors)[:num_states]))
    start = situation_of(batch)
    drawn = proposal(start, CANDIDATES, torch_generator(seed, "control.oracle.draw"))  # pyright: ignore
    simulator = Simulator(TASKS[TASK], float(value.discount))  # pyright: ignore[reportArgumentType]
    behaviour = Behaviour(given.data / BEHAVIOUR)
    found = [
        [simulator.carry_out(state, actions.numpy(), behaviour) for actions in candidates]
        for state, candidates in zip(batch.observations, drawn, strict=True)
    ]
    truth = np.array([[total for _, total in row] for row in found])
    reached = torch.tensor(np.array([[states for states, _ in row] for row in found]), dtype=torch.float32)
    foreseen = {"true states": reached, "multi-step": multi(start, drawn), "one-step": one(start, drawn)}  # pyright: ignore
    facts = known(TASKS[TASK])
    scores: dict[str, Any] = {}
    for name, states in foreseen.items():
        frozen, _ = freeze(Candidates(start, drawn, states, 0), None if facts is None else facts.ended)
        with torch.no_grad():
            scores[name] = _within(value(frozen).numpy(), truth)  # pyright: ignore[reportCallIssue]
    spread = {
        "between_states": float(truth.mean(1).std()),
        "within_state": float(truth.std(1).mean()),
        "best_over_mean": float((truth.max(1) - truth.mean(1)).mean()),
    }
    shown = ", ".join(f"{name} rank {np.mean(part['rank']):.2f}" for name, part in scores.items())
    return {"seed": seed, "spread": spread, "scores": scores, "shown": f"{spread}, {shown}"}


def _within(scores: Array, truth: Array) -> dict[str, list[float]]:
    """Return for each state the rank correlation of scores and truth, and the true gain of the best-scored."""
    left, right = (part.argsort(1).argsort(1).astype(np.float64) for part in (scores, truth))
    centred = [part - part.mean(1, keepdims=True) for part in (left, right)]
    norms = np.sqrt((centred[0] ** 2).sum(1) * (centred[1] ** 2).sum(1))
    rank = (centred[0] * centred[1]).sum(1) / np.maximum(norms, 1e-12)
    gain = np.take_along_axis(truth, scores.argmax(1)[:, None], 1)[:, 0] - truth.mean(1)
    return {"rank": np.round(rank, 4).tolist(), "gain": np.round(gain, 4).tolist()}


def summary(cells: Cells) -> dict[str, Any]:
    """Return the spreads of true returns, and ranks and gains with intervals over states."""
    rows = list(cells.rows.values())
    spread = {name: round(float(np.mean([row["spread"][name] for row in rows])), 3) for name in rows[0]["spread"]}
    scores = {
        name: {part: interval([v for row in rows for v in row["scores"][name][part]]) for part in ("rank", "gain")}
        for name in rows[0]["scores"]
    }
    return {"spread_of_true_returns": spread, "scores": scores}


def main() -> None:
    """Run all cells that are missing and write the result."""
    given = flags("control_oracle", __doc__)
    settings = {"task": TASK, "states": STATES, "candidates": CANDIDATES, "repeats": REPEATS, "tail": TAIL}
    cells = Cells("control_oracle", given, settings)
    for seed in (0,) if given.quick else (0, 1, 2):
        cells.run(f"states/{seed}", lambda seed=seed: measure(given, seed))
    cells.write(summary(cells))


if __name__ == "__main__":
    main()
