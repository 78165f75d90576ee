"""Behaviour policies that make data, and the loop that runs them."""

from collections.abc import Callable

from forethought.core.errors import unknown_name
from forethought.envs.behaviour.policy import Mixture, Noisy, OrnsteinUhlenbeck, Policy, Still, UniformRandom
from forethought.envs.behaviour.pushing import NearBlock, Pusher
from forethought.envs.behaviour.rollout import Episodes, rollout
from forethought.envs.behaviour.seeking import JointControl, WayPoints

POLICIES: dict[str, dict[str, Callable[[], Policy]]] = {
    "two-rooms": {
        "data": WayPoints,
        "expert": lambda: WayPoints(noise=0.0, repeat=0.0, redraw=False),
        "noisy": lambda: WayPoints(redraw=False),
        "random": UniformRandom,
        "still": Still,
    },
    "push-t": {
        "data": lambda: Mixture([(0.6, Noisy(Pusher(), 0.1)), (0.2, Noisy(Pusher(), 0.3)), (0.2, NearBlock())]),
        "expert": Pusher,
        "noisy": lambda: Noisy(Pusher(), 0.1),
        "weak": NearBlock,
        "random": UniformRandom,
        "still": Still,
    },
    "reacher": {
        "data": lambda: Mixture([(0.5, OrnsteinUhlenbeck()), (0.5, Noisy(JointControl(), 0.3))]),
        "expert": lambda: JointControl(redraw=False),
        "noisy": lambda: Noisy(JointControl(redraw=False), 0.3),
        "random": UniformRandom,
        "still": Still,
    },
}
"""The behaviour policies of every built-in environment by name; "data" is what its data set is collected with."""


def make_policy(environment: str, name: str) -> Policy:
    """Return a behaviour policy of a built-in environment.

    Raises:
        ConfigError: the environment or the policy is unknown.
    """
    if environment not in POLICIES:
        raise unknown_name("built-in environment", environment, POLICIES)
    if name not in POLICIES[environment]:
        raise unknown_name(f"policy of {environment}", name, POLICIES[environment])
    return POLICIES[environment][name]()


__all__ = [
    "POLICIES",
    "Episodes",
    "JointControl",
    "Mixture",
    "NearBlock",
    "Noisy",
    "OrnsteinUhlenbeck",
    "Policy",
    "Pusher",
    "Still",
    "UniformRandom",
    "WayPoints",
    "make_policy",
    "rollout",
]
