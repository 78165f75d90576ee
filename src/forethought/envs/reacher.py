"""A planar arm of two links moved by two torques, seen from above; a goal is a pose of both joints.

Equations of motion of a two-link arm with point masses at the ends of the links (Spong and Vidyasagar 1989, chapter 6),
no gravity, viscous damping, semi-implicit Euler steps of 5 ms. Success: every joint within 0.05 rad of the goal's.

Legend: B environments, S = 4 (angles, velocities), A = 2 torques.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from forethought.envs.drawing import capsule, disk, stamp
from forethought.envs.system import Factor, Factors, Floats, Images, MovingSystem, colour

REACHED = 0.05
NUM_SUBSTEPS, SUBSTEP = 8, 0.005
WRIST_LIMIT = 2.8
VIEW = 2.6
"""Side of the picture, in lengths of the default link."""


class Reacher(MovingSystem):
    """The system of the arm; angles in radians (the second relative to the first link), time step 40 ms."""

    name = "Reacher"
    state_names = ("shoulder", "wrist", "shoulder_velocity", "wrist_velocity")
    state_low, state_high = (-np.pi, -WRIST_LIMIT, -50.0, -50.0), (np.pi, WRIST_LIMIT, 50.0, 50.0)
    max_steps = 200
    factors = (
        colour("arm_colour", (50, 110, 200)),
        colour("finger_colour", (230, 90, 40)),
        colour("floor_colour", (235, 235, 230)),
        Factor("link_lengths", (0.6, 0.6), (0.4, 0.4), (0.65, 0.65), changes_dynamics=True),
        Factor("link_masses", (1.0, 1.0), (0.5, 0.5), (2.0, 2.0), changes_dynamics=True),
        Factor("damping", (1.0,), (0.0,), (4.0,), changes_dynamics=True),
        Factor("gear", (4.0,), (1.0,), (8.0,), changes_dynamics=True),
        Factor("arm_radius", (0.08,), (0.05,), (0.14,)),
    )

    def __init__(self, reached: float = REACHED) -> None:
        self.reached = reached

    def draw_states(self, rng: np.random.Generator, factors: Factors) -> Floats:
        """Return poses at rest, the shoulder anywhere, the wrist within its limits."""
        num_environments = len(factors["gear"])
        limits = np.array([np.pi, WRIST_LIMIT])
        angles = rng.uniform(-limits, limits, (num_environments, 2))
        return np.concatenate([angles, np.zeros((num_environments, 2))], axis=1)

    def success(self, states_BS: Floats, goals_BS: Floats, factors: Factors) -> NDArray[np.bool_]:
        """Say in which arms both joints are within 0.05 rad of the goal, the shoulder modulo a turn."""
        difference = states_BS[:, :2] - goals_BS[:, :2]
        return np.abs(wrap(difference)).max(axis=1) < self.reached

    def move(self, states_BS: Floats, actions_BA: Floats, factors: Factors) -> Floats:
        """Return the states 40 ms later: a pure function of states, actions in bounds, and factors."""
        angles, speeds = states_BS[:, :2].copy(), states_BS[:, 2:].copy()
        torques = factors["gear"] * actions_BA
        for _ in range(NUM_SUBSTEPS):
            speeds = speeds + SUBSTEP * accelerations(angles, speeds, torques, factors)
            angles = angles + SUBSTEP * speeds
            stopped = np.abs(angles[:, 1]) > WRIST_LIMIT
            angles[:, 1] = np.clip(angles[:, 1], -WRIST_LIMIT, WRIST_LIMIT)
            speeds[stopped, 1] = 0.0
        angles[:, 0] = wrap(angles[:, 0])
        return np.concatenate([angles, speeds], axis=1)

    def paint(self, states_BS: Floats, size: int, factors: Factors) -> Images:
        """Return pictures of states, the shoulder in the middle."""
        scale = size / VIEW
        images = np.empty((len(states_BS), size, size, 3), dtype=np.uint8)
        images[:] = np.rint(factors["floor_colour"]).astype(np.uint8)[:, None, None, :]
        middle = np.full((len(states_BS), 2), size / 2)
        elbow, finger = (middle + scale * place for place in joints(states_BS, factors))
        radii = factors["arm_radius"][:, 0] * scale
        widest, lengths = float(radii.max(initial=0.0)), scale * factors["link_lengths"].max(axis=0, initial=0.0)
        for start, end, length in ((middle, elbow, lengths[0]), (elbow, finger, lengths[1])):
            stamp(images, start, float(length) + widest, capsule(end - start, radii), factors["arm_colour"])
        stamp(images, finger, 1.25 * widest, disk(1.25 * radii), factors["finger_colour"])
        return images


def wrap(angles: Floats) -> Floats:
    """Return angles in [-pi, pi)."""
    return (angles + np.pi) % (2.0 * np.pi) - np.pi


def joints(states_BS: Floats, factors: Factors) -> tuple[Floats, Floats]:
    """Return the places of the elbow and the finger relative to the shoulder, (B, 2) each; y points down."""
    first, second = states_BS[:, 0], states_BS[:, 0] + states_BS[:, 1]
    lengths = factors["link_lengths"]
    elbow = lengths[:, :1] * np.stack([np.cos(first), np.sin(first)], axis=1)
    return elbow, elbow + lengths[:, 1:] * np.stack([np.cos(second), np.sin(second)], axis=1)


def accelerations(angles_B2: Floats, speeds_B2: Floats, torques_B2: Floats, factors: Factors) -> Floats:
    """Return the angular accelerations, (B, 2): M(q) q'' = torque - damping q' - C(q, q')."""
    l1, l2 = factors["link_lengths"].T
    m1, m2 = factors["link_masses"].T
    cos, sin = np.cos(angles_B2[:, 1]), np.sin(angles_B2[:, 1])
    w1, w2 = speeds_B2.T
    coupling = m2 * l1 * l2
    m11 = (m1 + m2) * l1**2 + m2 * l2**2 + 2.0 * coupling * cos
    m12 = m2 * l2**2 + coupling * cos
    m22 = m2 * l2**2
    damping = factors["damping"][:, 0]
    t1 = torques_B2[:, 0] - damping * w1 + coupling * sin * w2 * (2.0 * w1 + w2)
    t2 = torques_B2[:, 1] - damping * w2 - coupling * sin * w1 * w1
    determinant = m11 * m22 - m12 * m12
    return np.stack([(m22 * t1 - m12 * t2) / determinant, (m11 * t2 - m12 * t1) / determinant], axis=1)


def kinetic_energy(states_BS: Floats, factors: Factors) -> Floats:
    """Return the energy of motion, (B,), which an arm without damping and torque keeps."""
    l1, l2 = factors["link_lengths"].T
    m1, m2 = factors["link_masses"].T
    w1, both = states_BS[:, 2], states_BS[:, 2] + states_BS[:, 3]
    cos = np.cos(states_BS[:, 1])
    return 0.5 * m1 * (l1 * w1) ** 2 + 0.5 * m2 * ((l1 * w1) ** 2 + (l2 * both) ** 2 + 2.0 * l1 * l2 * w1 * both * cos)
