"""The job of control, on the double integrator: a reward at run time, a body that changes, and plans made ahead.

Proposal and dynamics learn random play. Then a reward is said; the mass is pushed the wrong way round, surprise calls
for adaptation, and the dynamics learn from play without rewards; and a virtual clock shows what plans made ahead save.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forethought.app.demo.settings import ControlSize
from forethought.control import (
    AdaptConfig,
    Agent,
    AgentConfig,
    Data,
    Monitor,
    Objective,
    SSRConfig,
    adapt,
    body_of,
    collect,
    fit_part,
    preset,
)
from forethought.control.adaptation import Watched
from forethought.control.running import RandomPolicy
from forethought.core.rng import derive_seed, generator
from forethought.data.episodes import Episodes, split_by_episode
from forethought.data.episodes.reading import read_episodes
from forethought.envs.double_integrator import DoubleIntegrator

Floats = NDArray[np.float32]
CHUNK, SAMPLES, STEPS, GOAL = 4, 32, 40, 1.0
GUSTS, GUST_SIZE = 0.05, 0.4
CHANGED = -1.0
"""The gain of the changed body: its motor pushes the other way."""
NOMINAL, BROKEN, AFTER = 3, 6, 3
"""Episodes of the story: on the body that was learned, at most on the changed one, and after adapting."""


def towards(goal: float) -> Objective:
    """Return the wish to be at a place, slowly."""
    return Objective(lambda before, action, after: -((after[..., 0] - goal) ** 2) - 0.1 * after[..., 1] ** 2)


class Held(RandomPolicy):
    """Random actions, each held for about four steps, so that play goes somewhere."""

    _count = 0
    _held: Floats | None = None

    def act(self, observation: Any) -> Floats:
        """Return the action of this step."""
        fresh = super().act(observation)
        change = generator(0, "demo.hold", self._count).random() < 0.25
        self._count += 1
        self._held = fresh if change or self._held is None else self._held
        return self._held


class Story:
    """One seed: its data, its agent, and everything that is asked of them."""

    def __init__(self, size: ControlSize, place: Path, seed: int) -> None:
        self.size, self.place, self.seed = size, place, seed
        play = self.play("play", size.play_episodes)
        parts = split_by_episode(play, seed=seed, fractions={"train": 0.9, "validation": 0.1})
        data, body = Data(parts["train"], parts["validation"]), body_of(play)
        self.models: dict[str, Any] = {}
        for name in ("proposal.diffusion", "dynamics.diffusion"):
            settings = preset("tiny").of(name)
            settings = replace(settings, loop=replace(settings.loop, steps=size.training_steps))
            self.models[name] = fit_part(name, settings, data, body, place / name, seed=seed, exists="resume")
        self.nominal = self.play("nominal", size.nominal_episodes, policy=self.agent(GOAL))

    def agent(self, goal: float) -> Agent:
        """Return the agent with a goal, fresh."""
        parts = (self.models["proposal.diffusion"], self.models["dynamics.diffusion"])
        settings = AgentConfig(execute=CHUNK, planner=SSRConfig(num_samples=SAMPLES), seed=self.seed)
        return Agent(*parts, objective=towards(goal), settings=settings)

    def play(self, name: str, episodes: int, *, policy: Any = None, gain: float = 1.0) -> Episodes:
        """Return episodes of random play, or of a policy, that are collected once."""
        from gymnasium.wrappers import TimeLimit

        out, bound = self.place / name, np.ones(1, np.float32)
        if out.exists():
            return read_episodes(out)
        seed = derive_seed(self.seed, f"demo.{name}") % (1 << 31)
        chosen = Held(-bound, bound, seed=seed) if policy is None else policy
        make = lambda: TimeLimit(DoubleIntegrator(gain=gain, gusts=GUSTS, gust_size=GUST_SIZE), STEPS)  # noqa: E731
        return collect(make, chosen, out, episodes=episodes, seed=seed, title=name)

    def env(self, number: int, *, goal: float = GOAL, gain: float = 1.0) -> tuple[DoubleIntegrator, Floats]:
        """Return the environment of a ride, begun; a number has one start and one weather for every arm."""
        env = DoubleIntegrator(goal=goal, gain=gain, gusts=GUSTS, gust_size=GUST_SIZE)
        state, _ = env.reset(seed=derive_seed(self.seed, "demo.ride", number) % (1 << 31))
        return env, state

    def returns(self, policy: Any, *, goal: float = GOAL, gain: float = 1.0) -> list[float]:
        """Return what a policy earns in each ride, of at most STEPS."""
        totals = []
        for number in range(self.size.rides):
            env, state = self.env(number, goal=goal, gain=gain)
            policy.reset()
            totals.append(float(sum(step[1] for step in ride(policy, env, state, STEPS))))
        return totals


def ride(
    policy: Any, env: DoubleIntegrator, state: Floats, steps: int, before: Callable[[int], bool] | None = None
) -> list[tuple[float, float]]:
    """Return position and reward of each step until the end; `before(step)` may end it by returning True."""
    seen: list[tuple[float, float]] = []
    for step in range(steps):
        if before is not None and before(step):
            break
        state, reward, over, *_ = env.step(policy.act(state).reshape(1))
        seen.append((float(state[0]), float(reward)))
        if over:
            break
    return seen


def new_reward(story: Story) -> dict[str, Any]:
    """Return rides that are told another goal half-way, and that no weight changed."""
    agent = story.agent(GOAL)
    weights = agent.fingerprints()
    positions = []
    for number in range(story.size.rides):
        agent.set_objective(towards(GOAL))
        agent.reset()
        env, state = story.env(number)

        def turn(step: int) -> bool:
            if step == STEPS:
                agent.set_objective(towards(-GOAL))
            return False

        positions.append([place for place, _ in ride(agent, env, state, 2 * STEPS, turn)])
    bound = np.ones(1, np.float32)
    return {
        "positions": positions,
        "turn": STEPS,
        "weights_unchanged": agent.fingerprints() == weights,
        "told": story.returns(story.agent(GOAL)),
        "told_other": story.returns(story.agent(-GOAL), goal=-GOAL),
        "random": story.returns(Held(-bound, bound, seed=story.seed)),
    }


def changed_body(story: Story) -> dict[str, Any]:
    """Return the trace of a body that changes under an agent that notices and adapts by itself, and what that earns."""
    agent = story.agent(GOAL)
    monitor = Monitor.calibrate(agent.dynamics, story.nominal, execute=CHUNK, seed=story.seed)
    watched = Watched(agent, monitor)
    rewards: list[float] = []
    for number in range(NOMINAL):
        rewards += _watched_ride(story, watched, 100 + number)
    false_alarm, changed_at = watched.alarm_at is not None, len(watched.signs)
    number = 0
    while watched.alarm_at is None and number < BROKEN:
        rewards += _watched_ride(story, watched, 200 + number, gain=CHANGED)
        number += 1
    noticed = watched.alarm_at
    adapted_at = len(watched.signs)
    report = None
    if noticed is not None:
        report = _adapt(story, watched)
        for number in range(AFTER):
            rewards += _watched_ride(story, watched, 300 + number, gain=CHANGED)
    trace = watched.to_dict() | {"alarm_at": noticed}
    return {
        "trace": trace,
        "rewards": rewards,
        "changed_at": changed_at,
        "adapted_at": adapted_at,
        "false_alarm": false_alarm,
        "steps_to_alarm": None if noticed is None else noticed - changed_at,
        "errors": None if report is None else report.to_dict(),
        "as_learned": story.returns(story.agent(GOAL)),
        "changed": story.returns(story.agent(GOAL), gain=CHANGED),
        "adapted": None if report is None else story.returns(agent, gain=CHANGED),
    }


def _watched_ride(story: Story, watched: Watched, number: int, gain: float = 1.0) -> list[float]:
    env, state = story.env(number, gain=gain)
    watched.reset()
    # The robot stops where the wish arises.
    steps = ride(watched, env, state, STEPS, lambda _: watched.monitor.wants_to_adapt)
    return [reward for _, reward in steps]


def _adapt(story: Story, watched: Watched) -> Any:
    """Play on the body as it is now, without rewards, learn its dynamics, and watch with them."""
    agent, place = watched.agent, story.place
    play = story.play("changed-play", story.size.adapt_episodes, gain=CHANGED)
    settings = AdaptConfig(steps=story.size.adapt_steps, lr=1e-3, batch_size=128, seed=story.seed)
    report = adapt(story.models["dynamics.diffusion"], play, place / "adapted", settings=settings, exists="resume")
    agent.swap_dynamics(report.dynamics)
    watched.monitor = Monitor.calibrate(report.dynamics, play, execute=CHUNK, seed=story.seed)
    return report
