"""A robot that learned from a log, wants something else at run time, breaks, notices it and learns its body again.

Usage: python examples/control.py [OUT] [STEPS]     (the robot is a mass on a line; it takes about eight seconds)
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import gymnasium
from gymnasium.wrappers import TimeLimit

from forethought.control import AdaptConfig, Agent, AgentConfig, Monitor, Objective, adapt, collect, preset, train_agent
from forethought.control.adaptation.watching import Watched
from forethought.control.running import RandomPolicy, evaluate
from forethought.envs.double_integrator import DoubleIntegrator


def towards(goal: float) -> Objective:
    """Be at a place; any function of a step will do, and it counts from the very next plan on."""
    return Objective(lambda before, action, after: -((after[..., 0] - goal) ** 2))


def body(gain: float) -> gymnasium.Env:
    """The mass on a line for 40 steps; a gain of -1 is a motor that was connected the wrong way round."""
    return TimeLimit(DoubleIntegrator(goal=-1.0, gain=gain), 40)


def main(out: Path, steps: int) -> None:
    """Log, train, want another place than the log, break, notice, adapt and drive again."""
    log = collect(partial(body, 1.0), RandomPolicy([-1.0], [1.0], hold=4), out / "log", episodes=40)
    base = preset("tiny")
    parts = {name: getattr(base, name) for name in ("proposal", "dynamics", "value")}
    training = replace(base, **{k: replace(part, loop=replace(part.loop, steps=steps)) for k, part in parts.items()})
    train_agent(log, training, out / "agent", low=[-1.0], high=[1.0], agent=AgentConfig(execute=2))
    agent = Agent.load(out / "agent" / "model", objective=towards(1.0))
    agent.set_objective(towards(-1.0))

    def drive(gain: float) -> float:
        return evaluate(partial(body, gain), lambda seed: agent, episodes=3, seeds=[0])["return_mean"]

    print(f"closeness to -1 over 40 steps: {drive(1.0):.1f}; with the motor turned round: {drive(-1.0):.1f}")
    monitor = Monitor.calibrate(agent.dynamics, log.select(range(30, 40)), execute=2)
    play = collect(partial(body, -1.0), Watched(agent, monitor), out / "play", episodes=8)
    print(f"surprise of the dynamics asks to adapt: {monitor.wants_to_adapt}")
    report = adapt(agent.dynamics, play, out / "adapted", settings=AdaptConfig(steps=4 * steps))
    agent.swap_dynamics(report.dynamics)
    print(f"after learning its body again: {drive(-1.0):.1f}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/examples/control"), int((sys.argv[2:] or ["200"])[0]))
