"""Push-T at 64 px on a CPU: what a world model reaches, what it knows, what more data gives, and where it falls short.

    python benchmarks/studies/world_pusht.py [--work DIR] [--quick --out FILE]

Training data are the mixture that `forethought world collect --environment push-t` makes (pushers with noise, and the
weak policy). Starts and goals, 25 steps apart, come from other episodes, of the pusher with noise; settings of planning
and of training were chosen on other episodes than these. All arms get the same pairs. A pair is hard where the block
must move by more than the tolerance of success. `pusher` and `oracle` see true states: a script, and the search with
true dynamics. Rows of 1,530 steps are of an earlier recipe: strength 6.4, rate 5e-4, dropout 0.1.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from world_common import Row, Study, open_study
from world_pusht_parts import OraclePolicy, horizon_errors, newest_model, turned

from forethought.app.world.recipes import push_t
from forethought.core.rng import derive_seed
from forethought.data import Episodes, open_episodes, save_episodes
from forethought.envs.behaviour import make_policy
from forethought.stats import wilson
from forethought.world import WorldFitConfig, WorldModel, fit_world, load_world_model
from forethought.world.collecting import CollectConfig, collect_episodes, environment_of
from forethought.world.planning import (
    EvaluationConfig,
    GoalConfig,
    GoalPolicy,
    GuidedPolicy,
    InverseConfig,
    InversePolicy,
    NoOpPolicy,
    Pairs,
    Policy,
    RandomPolicy,
    ScriptedPolicy,
    SystemArena,
    choose_pairs,
    fit_inverse,
)
from forethought.world.planning.evaluate import run_policy
from forethought.world.probe import probe

NAME = "world_pusht"


@dataclass(frozen=True)
class Settings:
    """How much is done."""

    episodes: int = 1200
    models: tuple[tuple[int, int], ...] = ((1200, 2000), (240, 2000))
    """Training episodes of 100 steps, and optimiser steps: all the data, and a fifth of it."""
    inverse_steps: int = 2000
    test_episodes: int = 100
    probe_poses: int = 3000
    """Resets, two frames each: a block hardly moves within an episode, so that long ones show few poses."""
    pairs: int = 30
    seeds: int = 3
    oracle_pairs: int = 8
    oracle_candidates: int = 64
    oracle_iterations: int = 5
    candidates: int = 128
    iterations: int = 6


def settings(quick: bool) -> Settings:
    """Return the sizes of the study."""
    if not quick:
        return Settings()
    return Settings(
        episodes=24, models=((24, 20), (12, 20)), inverse_steps=50, test_episodes=12, probe_poses=40, pairs=3,
        oracle_pairs=2, oracle_candidates=4, oracle_iterations=2, candidates=16, iterations=2,
    )  # fmt: skip


def main() -> None:
    """Run every cell that is not there yet, and summarise."""
    torch.set_num_threads(1)
    flags = {
        "interim": "measure the newest checkpoint of the first run that is not finished, and train no further",
        "less": "run the model of the least data only",
    }
    study, work, chosen, given = open_study(NAME, main.__doc__ or "", settings, flags=flags)
    data = episodes_of(work / "data", CollectConfig(environment="push-t", episodes=chosen.episodes, seed=0))
    test = CollectConfig(environment="push-t", behaviour="noisy", episodes=chosen.test_episodes, seed=1001)
    held = episodes_of(work / "test", test)
    poses = CollectConfig(environment="push-t", episodes=chosen.probe_poses, steps=2, seed=3003)
    shown = episodes_of(work / "probe", poses)
    baselines(study, held, chosen)
    for count, steps in chosen.models[-1:] if given.less else chosen.models:
        part = data if count == data.num_episodes else data.select(range(count))
        key = {"episodes": count, "steps": steps, **varied(push_t())}
        out = work / f"run-{count}-{steps}"
        halfway = given.interim and not study.has({"cell": "train", **key})
        if halfway:
            model, done = newest_model(out, push_t(), part)
            key |= {"steps": done, "of": steps}
        else:
            study.cell({"cell": "train", **key}, lambda part=part, steps=steps, out=out: trained(part, out, steps))
            model = load_world_model(out)
        measure(study, model, Sets(part, held, shown), chosen, key)
        oracle_arm(study, held, chosen)
        study.write(summary(study.rows))
        if halfway:
            break
    print(f"{study.path}: {len(study.rows)} rows")


def episodes_of(place: Path, collect: CollectConfig) -> Episodes:
    """Return episodes, collected where they are not there yet."""
    if not place.exists():
        save_episodes(collect_episodes(collect), place)
    return open_episodes(place)


def varied(recipe: WorldFitConfig) -> Row:
    """Return the settings of training that were changed between rows of the study."""
    dropout = recipe.model.predictor.dropout
    return {"strength": recipe.regulariser.strength, "lr": recipe.optimiser.lr, "dropout": dropout}


def trained(part: Episodes, out: Path, steps: int) -> Row:
    """Train on a part of the data; an interrupted run goes on."""
    recipe = push_t()
    every = min(recipe.loop.evaluate_every, steps)
    loop = replace(recipe.loop, steps=steps, evaluate_every=every, checkpoint_every=every)
    began, spent = time.process_time(), out.with_suffix(".seconds")
    try:
        result = fit_world(replace(recipe, loop=loop), part, out, recipe="world.push-t", exists="resume")
    finally:
        # Of every turn that the run took.
        with spent.open("a") as file:
            file.write(f"{time.process_time() - began}\n")
    names = ("seed", "frames_seen", "parameters", "validation_loss", "copy_ratio", "effective_rank")
    figures = {name: result[name] for name in (*names, "spread", "sigreg_over_floor", "straightness")}
    return {"cpu_seconds": round(sum(map(float, spent.read_text().split())), 1), **figures}


def baselines(study: Study, held: Episodes, chosen: Settings) -> None:
    """Measure what needs no model: doing nothing, chance, the weak policy, and the script that sees true states."""
    system = environment_of(held)
    low, high = np.asarray(system.action_low), np.asarray(system.action_high)
    arms: dict[str, Policy] = {
        "no-op": NoOpPolicy(np.zeros(2)),
        "random": RandomPolicy(low, high),
        "weak": ScriptedPolicy(system, make_policy("push-t", "weak")),
        "pusher": ScriptedPolicy(system, make_policy("push-t", "expert")),
    }
    for name, arm in arms.items():
        study.cell({"cell": "evaluate", "arm": name}, lambda arm=arm: success(arm, held, chosen))


def oracle_arm(study: Study, held: Episodes, chosen: Settings) -> None:
    """Measure the search with true states and true physics, on fewer pairs: it is slow."""
    oracle = OraclePolicy(environment_of(held), chosen.oracle_candidates, chosen.oracle_iterations)
    few = replace(chosen, pairs=chosen.oracle_pairs)
    study.cell({"cell": "evaluate", "arm": "oracle"}, lambda: success(oracle, held, few))


@dataclass(frozen=True)
class Sets:
    """Episodes by use: training, starts and goals, and probing (many short ones: a block hardly moves within one)."""

    train: Episodes
    held: Episodes
    shown: Episodes


def measure(study: Study, model: WorldModel, sets: Sets, chosen: Settings, key: Row) -> None:
    """Measure what a model reaches and knows."""
    study.cell({"cell": "probe", **key}, lambda: probed(model, sets.shown))
    study.cell({"cell": "horizon", **key}, lambda: horizon_errors(model, sets.train, sets.held))
    for group in (("plan",), ("inverse", "guided")):
        names = [name for name in group if not study.has({"cell": "evaluate", "arm": name, **key})]
        for name, arm in ways(model, sets.train, chosen, names).items():
            study.cell({"cell": "evaluate", "arm": name, **key}, lambda arm=arm: success(arm, sets.held, chosen))


def probed(model: WorldModel, held: Episodes) -> Row:
    """Return what latents know of the pusher's place, the block's place and its angle (as sine and cosine)."""
    states = np.asarray(held.observations, np.float64)
    turns = np.stack([np.sin(states[:, 4]), np.cos(states[:, 4])], axis=1)
    return probe(model, held, {"pusher": states[:, :2], "block": states[:, 2:4], "block_angle": turns})


def ways(model: WorldModel, part: Episodes, chosen: Settings, names: list[str]) -> dict[str, Policy]:
    """Return the ways to act with a model."""
    goal = GoalConfig(
        execute=2,
        over="min",
        num_candidates=chosen.candidates,
        num_elites=max(2, chosen.candidates // 10),
        num_iterations=chosen.iterations,
    )
    built: dict[str, Policy] = {"plan": GoalPolicy(model, goal)} if "plan" in names else {}
    if {"inverse", "guided"} & set(names):
        network = fit_inverse(model, part, InverseConfig(hidden_size=512, steps=chosen.inverse_steps))
        built |= {"inverse": InversePolicy(model, network), "guided": GuidedPolicy(model, network, goal)}
    return {name: built[name] for name in names}


def success(policy: Policy, held: Episodes, chosen: Settings) -> Row:
    """Run a policy on the pairs of every seed: rates with intervals over all pairs, and over the hard and easy ones."""
    system = environment_of(held)
    arena = SystemArena(system, 64)
    protocol = EvaluationConfig(num_pairs=chosen.pairs, num_seeds=chosen.seeds)
    reached, hard, final, far, angle, trivial, seeds = [], [], [], [], [], 0, []
    for index in range(protocol.num_seeds):
        seed = derive_seed(protocol.seed, "world.evaluate", index)
        pairs = choose_pairs(held, arena, protocol, seed)
        run = run_policy(policy, pairs, arena, protocol.budget, seed)
        seeds.append(index)
        trivial += pairs.num_trivial
        reached += run["any_time"]
        final += run["final"]
        hard += must_push(pairs).tolist()
        far += np.linalg.norm(run["path_TBS"][-1][:, 2:4] - pairs.goals_BS[:, 2:4], axis=1).tolist()
        angle += np.rad2deg(turned(run["path_TBS"][-1], pairs.goals_BS)).tolist()
    split = np.asarray(hard)
    return {
        "seeds": seeds,
        "trivial_pairs": trivial,
        **rates(np.asarray(reached), split),
        "final_success": float(np.mean(final)),
        "median_block_distance_at_end": float(np.median(far)),
        "median_block_angle_at_end": float(np.median(angle)),
    }


def must_push(pairs: Pairs) -> np.ndarray:
    """Say in which pairs the block must move by more than the tolerance."""
    away = np.linalg.norm(pairs.starts_BS[:, 2:4] - pairs.goals_BS[:, 2:4], axis=1)
    return (away > 20.0) | (turned(pairs.starts_BS, pairs.goals_BS) > np.deg2rad(20.0))


def rates(reached: np.ndarray, hard: np.ndarray) -> Row:
    """Return success over all pairs, hard ones and easy ones, with Wilson intervals."""
    found: Row = {}
    for name, rows in (("", np.ones_like(hard)), ("hard_", hard), ("easy_", ~hard)):
        count = int(rows.sum())
        rate = wilson(int(reached[rows].sum()), count) if count else None
        found |= {f"{name}pairs": count, f"{name}success": rate and rate.estimate}
        found |= {f"{name}success_interval": rate and [rate.low, rate.high]}
    return found


def summary(rows: list[Row]) -> Mapping[str, Any]:
    """Return the success of every arm, the best baseline, and the ratio of the best way to act to it."""
    arms = {
        row["arm"] + (f" ({row['episodes']} episodes, {row['steps']} steps)" if "steps" in row else ""): row
        for row in rows
        if row["cell"] == "evaluate"
    }
    plain = {name: row["success"] for name, row in arms.items() if name in ("no-op", "random", "weak")}
    own = {name: row["success"] for name, row in arms.items() if "steps" in row}
    best, floor = max(own.values(), default=0.0), max(plain.values(), default=0.0)
    return {
        "success": {name: [row["success"], *row["success_interval"]] for name, row in arms.items()},
        "hard_success": {name: row["hard_success"] for name, row in arms.items()},
        "best_baseline": floor,
        "best": best,
        "best_over_baseline": best / floor if floor else None,
    }


if __name__ == "__main__":
    main()
