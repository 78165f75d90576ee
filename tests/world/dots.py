"""A world for tests: a white dot that moves on black by its actions; frames are drawn from positions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from forethought.core.rng import generator
from forethought.data import Episodes, episodes_from_flat

SPEED = 0.03


def draw(
    positions_N2: NDArray[np.float64], size: int = 32, colour: tuple[int, int, int] = (255, 60, 60)
) -> NDArray[np.uint8]:
    """Frames uint8 [N, S, S, 3] of a soft dot at positions in 0 to 1."""
    grid = (np.arange(size) + 0.5) / size
    x_NS = np.exp(-(((grid - positions_N2[:, :1]) / 0.07) ** 2))
    y_NS = np.exp(-(((grid - positions_N2[:, 1:]) / 0.07) ** 2))
    shade = y_NS[:, :, None] * x_NS[:, None, :]
    return (shade[..., None] * np.array(colour)).astype(np.uint8)


def walk(num_steps: int, seed: int, index: int) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Positions [steps + 1, 2] and actions [steps, 2] of one episode with a drifting, noisy will."""
    rng = generator(seed, "tests.dots", index)
    position, will = rng.uniform(0.2, 0.8, 2), rng.uniform(-1, 1, 2)
    positions, actions = [position], []
    for _ in range(num_steps):
        will = np.clip(0.9 * will + 0.5 * rng.normal(size=2), -1, 1)
        position = move(position, will)
        positions.append(position)
        actions.append(will)
    return np.array(positions), np.array(actions, np.float32)


def move(position: NDArray[np.float64], action: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.clip(position + SPEED * np.clip(action, -1, 1), 0.05, 0.95)


def dot_episodes(count: int = 30, num_steps: int = 40, *, size: int = 32, seed: int = 0) -> Episodes:
    """Episodes with frames, actions and observations (the position)."""
    walks = [walk(num_steps, seed, index) for index in range(count)]
    positions = np.concatenate([positions[:-1] for positions, _ in walks])
    ends = np.zeros(count * num_steps, bool)
    ends[num_steps - 1 :: num_steps] = True
    return episodes_from_flat(
        {
            "observations": positions.astype(np.float32),
            "actions": np.concatenate([actions for _, actions in walks]),
            "frames": draw(positions, size),
            "rewards": np.zeros(len(positions), np.float32),
            "terminals": np.zeros(len(positions), bool),
            "timeouts": ends,
        }
    )
