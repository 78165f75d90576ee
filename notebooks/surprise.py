# %% [markdown]
# # From surprise to adaptation
#
# A robot that learned its body from a log predicts where its actions lead. When the body changes, those predictions
# fail, and how much they fail can be measured: this notebook turns it into an alarm that is rarely wrong, and the alarm
# into a model of the new body. The robot is a mass on a line, so that every step can be checked by hand.

# %%
from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium.wrappers import TimeLimit

from forethought.control import AdaptConfig, Agent, AgentConfig, Monitor, Objective, adapt, collect, preset, train_agent
from forethought.control.adaptation import one_step_residuals
from forethought.control.adaptation.watching import Watched
from forethought.control.running import RandomPolicy, evaluate
from forethought.envs.double_integrator import DoubleIntegrator

OUT = Path(os.environ.get("NOTEBOOK_OUT", "runs/notebooks/surprise"))
STEPS = int(os.environ.get("NOTEBOOK_STEPS", "300"))


def body(gain: float) -> gymnasium.Env:
    """The mass on a line; a gain of -1 is a motor connected the wrong way round."""
    return TimeLimit(DoubleIntegrator(goal=-1.0, gain=gain), 40)


# %% [markdown]
# ## A log, and what is learned from it
#
# Random pushes, held for a few steps. Three parts are trained: what one could do (a diffusion over action sequences),
# where it leads (a diffusion over futures, the actions given), and what it is worth.

# %%
log = collect(partial(body, 1.0), RandomPolicy([-1.0], [1.0], hold=4), OUT / "log", episodes=60)
base = preset("tiny")
parts = {name: getattr(base, name) for name in ("proposal", "dynamics", "value")}
settings = replace(base, **{k: replace(part, loop=replace(part.loop, steps=STEPS)) for k, part in parts.items()})
train_agent(log.select(range(50)), settings, OUT / "agent", low=[-1.0], high=[1.0], agent=AgentConfig(execute=2))
agent = Agent.load(
    OUT / "agent" / "model", objective=Objective(lambda before, action, after: -((after[..., 0] + 1) ** 2))
)


def drive(gain: float) -> float:
    """Mean closeness to -1, summed over 40 steps, of three episodes."""
    return evaluate(partial(body, gain), lambda seed: agent, episodes=3, seeds=[0])["return_mean"]


print(f"sound: {drive(1.0):.1f} of 40, turned round: {drive(-1.0):.1f}")

# %% [markdown]
# ## What is normal
#
# Residuals on ten episodes that training never saw. A z score says how unusual a residual is, a conformal p-value says
# it without assuming a law, and a CUSUM adds the evidence up with a chosen rate of false alarms.

# %%
calm = log.select(range(50, 60))
residuals = one_step_residuals(agent.dynamics, calm, execute=2)
print("nominal residuals, median and 99 %:", np.quantile(residuals, [0.5, 0.99]).round(3))
monitor = Monitor.calibrate(agent.dynamics, calm, execute=2, false_alarm=0.01)

# %% [markdown]
# ## The sound body raises no alarm, the broken one does
#
# Both are driven by the same agent, which is told nothing.

# %%
for gain in (1.0, -1.0):
    watched = Watched(agent, Monitor.from_dict(monitor.to_dict()))
    evaluate(partial(body, gain), lambda seed, watched=watched: watched, episodes=2, seeds=[1])
    scores = [sign.z for sign in watched.signs if not np.isnan(sign.residual)]
    print(f"gain {gain:+.0f}: median z {np.median(scores):6.1f}, alarm at step {watched.alarm_at}")

# %% [markdown]
# ## Play with the new body, and learn it
#
# Only the dynamics are trained again. Proposal, value and wish stay: what one could do has not changed, only where it
# leads.

# %%
before = agent.fingerprints()
watched = Watched(agent, monitor)
play = collect(partial(body, -1.0), watched, OUT / "play", episodes=8)
if watched.alarm_at is not None:
    report = adapt(agent.dynamics, play, OUT / "adapted", settings=AdaptConfig(steps=4 * STEPS), original=calm)
    agent.swap_dynamics(report.dynamics)
    monitor.reset()
    print("errors one and eight steps ahead, before:", np.take(report.new_before.model_F, [0, 7]).round(3))
    print("                                  after:", np.take(report.new_after.model_F, [0, 7]).round(3))
after = agent.fingerprints()
print("parts that changed:", [name for name in before if before[name] != after[name]])
print(f"turned round, after adapting: {drive(-1.0):.1f} of 40")
