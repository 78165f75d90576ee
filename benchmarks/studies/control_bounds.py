"""What a perfect model of the changed body would give: the true simulator in the place of learned dynamics.

    python benchmarks/studies/control_bounds.py --models DIR --data DIR

Walker2d's right foot is limited as in `control_defect`. Proposal and value stay those of the first body, so an arm that
plans with the true simulator bounds what adapting the dynamics can give; the other arms change one more thing each:
wider proposals, or a value learned from the rewards of the play on the changed body. Episodes are of other seeds than
those that `control_defect` reports.
"""

from __future__ import annotations

import importlib
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from control_cells import Cells, episodes_of, flags, interval, joined
from control_defect import CHANGES, ENV, TASK, Workshop
from control_models import COST, training
from control_tasks import VALUE, fast, settings_of
from numpy.typing import NDArray
from torch import Tensor

from forethought.app.control.places import environment
from forethought.control import Agent, ControlModel, Data, fit_part, load_model
from forethought.control.running import known
from forethought.control.situation import Situation
from forethought.core import files
from forethought.data.episodes import split_by_episode

SEEDS = (0, 1, 2)
EPISODES = 5
FOOT, LIMIT = 2, 0.5


class TrueDynamics:
    """The simulator as `plan.Dynamics`: where actions really lead from observed states, in one batch."""

    def __init__(self, env_id: str, *, foot: int | None = FOOT, limit: float = LIMIT) -> None:
        rollout: Any = importlib.import_module("mujoco.rollout")
        engine: Any = importlib.import_module("mujoco")
        self.env = environment(env_id)().unwrapped
        self.foot, self.limit, self._rollout = foot, limit, rollout.rollout
        self.data = engine.MjData(self.env.model)
        self.num_positions, self.num_speeds = int(self.env.model.nq), int(self.env.model.nv)

    def __call__(self, start: Situation, actions_BNFA: Tensor) -> Tensor:
        """Return the states (B, N, F, O); speeds that the observation clips start clipped."""
        B, N, F, _ = actions_BNFA.shape
        actions = actions_BNFA.flatten(0, 1).double().numpy().copy()
        if self.foot is not None:
            actions[..., self.foot] = actions[..., self.foot].clip(-self.limit, self.limit)
        seen = start.obs_BO.double().repeat_interleave(N, 0).numpy()
        # Time and the place along the way, which no observation holds, are 0.
        state = np.concatenate([np.zeros((B * N, 2)), seen], 1)
        control = actions.repeat(self.env.frame_skip, 1)
        rolled: Any = self._rollout(self.env.model, self.data, state, control)
        states = rolled[0][:, self.env.frame_skip - 1 :: self.env.frame_skip]
        speeds = states[..., 1 + self.num_positions :][..., : self.num_speeds].clip(-10.0, 10.0)
        reached = np.concatenate([states[..., 2 : 1 + self.num_positions], speeds], -1)
        return torch.from_numpy(reached).float().reshape(B, N, F, -1)


class Wider:
    """A proposal with noise on top, each draw held for four steps; a quarter of the candidates stays as it is."""

    def __init__(self, proposal: Any, noise: float, hold: int = 4) -> None:
        self.proposal, self.noise, self.hold = proposal, noise, hold

    def __call__(self, start: Situation, num_candidates: int, generator: torch.Generator) -> Tensor:
        """Return (B, N, F, A) actions in [-1, 1]."""
        actions = self.proposal(start, num_candidates, generator)
        B, N, F, A = actions.shape
        noise = torch.randn(B, N, F // self.hold, A, generator=generator).repeat_interleave(self.hold, 2)
        noise[:, : N // 4] = 0.0
        return (actions + self.noise * noise).clamp(-1.0, 1.0)


@dataclass(frozen=True)
class Arm:
    """What an arm plans with."""

    dynamics: str
    noise: float = 0.0
    value: str = "first"
    samples: int = 32


ARMS = {
    "before": Arm("first"),
    "adapted": Arm("adapted"),
    "true": Arm("true"),
    "true, wider proposals": Arm("true", noise=0.3),
    "one proposal": Arm("first", samples=1),
    "adapted, value of play": Arm("adapted", value="play"),
    "true, value of play": Arm("true", value="play"),
}


def value_of_play(shop: Workshop) -> ControlModel:
    """Return a value that was trained from the start on the rewards of the play, which adaptation never reads."""
    out = shop.place / "value-of-play"
    if (out / COST).exists():
        return load_model(out / "model")
    began = time.process_time()
    parts = split_by_episode(shop.play(), seed=0, fractions={"train": 0.9, "validation": 0.1})
    settings = training(shop.steps)
    data = Data(parts["train"], parts["validation"], discount=settings.discount, steady=settings.steady)
    body = shop.trained(VALUE).body
    made = fit_part(VALUE, settings.of(VALUE), data, body, out, exists="resume")
    files.write_json(out / COST, {"cpu_seconds": round(time.process_time() - began, 1)})
    return made


def run_arm(arm: Arm, shop: Workshop, seed: int, num: int) -> dict[str, Any]:
    """Return the returns of a planner on the changed body."""
    base = shop.base()
    proposal = fast(base["proposal"])
    learned = {"first": lambda: base["dynamics"], "adapted": lambda: shop.adapted("dynamics.diffusion")}
    dynamics: Any = TrueDynamics(ENV) if arm.dynamics == "true" else fast(learned[arm.dynamics]())
    settings = settings_of(seed)
    settings = replace(settings, planner=replace(settings.planner, num_samples=arm.samples))
    facts, value = known(ENV), base["value"] if arm.value == "first" else value_of_play(shop)
    agent = Agent(
        Wider(proposal, arm.noise) if arm.noise else proposal,
        dynamics,
        value,  # pyright: ignore[reportArgumentType]
        settings=settings,
        body=value.body,
        ended=None if facts is None else facts.ended,
        num_robots=num,
    )
    return episodes_of(TASK, agent, seed, num, changes=CHANGES)[1]


def gain(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean difference of scores over the paired episodes of the seeds that both ran."""
    both = {row["seed"] for row in left} & {row["seed"] for row in right}
    left, right = ([row for row in rows if row["seed"] in both] for rows in (left, right))
    mine: NDArray[Any] = np.subtract(joined(left, "scores"), joined(right, "scores"))
    return interval(mine)


def summary(cells: Cells) -> dict[str, Any]:
    """Return scores of the arms, and what they gain over the first dynamics by paired episodes."""
    rows = {name: [row for row in cells.rows.values() if row["cell"] == name] for name in ARMS}
    found: dict[str, Any] = {name: {"score": interval(joined(part, "scores"))} for name, part in rows.items() if part}
    for name, part in rows.items():
        if name != "before" and part:
            found[name]["over_before"] = gain(part, rows["before"])
    return found


def main() -> None:
    """Run all cells that are missing and write the result."""
    given = flags("control_bounds", __doc__)
    num, seeds = (2, SEEDS[:1]) if given.quick else (EPISODES, SEEDS)
    arms = {name: [*value.__dict__.values()] for name, value in ARMS.items()}
    cells = Cells("control_bounds", given, {"task": TASK, "changes": CHANGES, "episodes": num, "arms": arms})
    shop = Workshop(given)
    for seed in seeds:
        for name, arm in ARMS.items():

            def run(name: str = name, arm: Arm = arm, seed: int = seed) -> dict[str, Any]:
                return {"cell": name, **run_arm(arm, shop, seed, num)}

            cells.run(f"{name}/{seed}", run)
    cells.write(summary(cells))


if __name__ == "__main__":
    main()
