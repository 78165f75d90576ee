"""The monitor rides along: it leaves the actions alone, is calm on the body it knows, and wishes on a changed one."""

from __future__ import annotations

import numpy as np
import pytest

from forethought.app.control.pictures import monitor_chart
from forethought.control import Agent, AgentConfig, Monitor, collect
from forethought.control.adaptation import Watched
from forethought.control.running import run_episodes
from tests.control.integrator import Integrator, towards


def _agent(models, seed: int = 0) -> Agent:
    parts = (models["proposal.diffusion"], models["dynamics.diffusion"])
    return Agent(*parts, objective=towards(1.0), settings=AgentConfig(execute=2, seed=seed), num_robots=2)


@pytest.fixture(scope="module")
def monitor(models, tmp_path_factory: pytest.TempPathFactory) -> Monitor:
    place = tmp_path_factory.mktemp("nominal") / "episodes"
    nominal = collect(Integrator, _agent(models), place, episodes=16, seed=1)
    return Monitor.calibrate(models["dynamics.diffusion"], nominal, execute=2)


def _ride(models, monitor: Monitor, gain: float) -> tuple[Watched, list[float]]:
    watched = Watched(_agent(models, seed=5), Monitor.from_dict(monitor.to_dict()), robot=1)
    rides = run_episodes(lambda: Integrator(gain), watched, 6, seed=2)
    return watched, [ride.total for ride in sorted(rides, key=lambda ride: ride.number)]


def test_a_known_body_is_calm_and_a_turned_one_is_noticed(models, monitor: Monitor):
    calm, totals = _ride(models, monitor, 1.0)
    assert calm.alarm_at is None
    plain = run_episodes(lambda: Integrator(1.0), _agent(models, seed=5), 6, seed=2)
    assert totals == [ride.total for ride in sorted(plain, key=lambda ride: ride.number)]
    turned, _ = _ride(models, monitor, -1.0)
    assert turned.alarm_at is not None
    assert turned.alarm_at <= 12
    # Before the alarm there is no wish, from it on there is.
    wishes = [sign.wants_to_adapt for sign in turned.signs]
    assert wishes == [False] * turned.alarm_at + [True] * (len(wishes) - turned.alarm_at)


def test_the_trace_says_what_was_seen_and_can_be_drawn(models, monitor: Monitor):
    watched, _ = _ride(models, monitor, -1.0)
    trace = watched.to_dict()
    assert len(trace["z"]) == len(watched.signs)
    # Nothing was predicted for the first observation of an episode.
    assert all(trace["z"][begin] is None for begin in trace["begins"] if begin < len(trace["z"]))
    known = [value for value in trace["z"] if value is not None]
    assert np.isfinite(known).all()
    drawing = monitor_chart(trace)
    assert f"alarm at step {trace['alarm_at']}" in drawing
    assert drawing.count("<svg") == 1
