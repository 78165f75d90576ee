"""Logged episodes: flat arrays with boundaries, readers of the common formats, windows, normalisers, an artefact.

Start with table.py and windows.py; reading.py chooses a reader; writer.py collects episodes as they happen.
"""

from __future__ import annotations

from forethought.data.episodes.flat import episodes_from_flat
from forethought.data.episodes.hdf5 import read_hdf5, read_minari, write_minari
from forethought.data.episodes.lerobot import read_lerobot
from forethought.data.episodes.normalise import Normaliser, fit_normaliser, identity_normaliser
from forethought.data.episodes.npz import read_npz
from forethought.data.episodes.reading import read_episodes
from forethought.data.episodes.returns import ReturnsToGo, returns_to_go
from forethought.data.episodes.storage import open_episodes, save_episodes
from forethought.data.episodes.table import Episodes, concatenate, split_by_episode
from forethought.data.episodes.windows import WindowBatch, WindowBatches, WindowConfig, WindowCutter
from forethought.data.episodes.writer import EpisodeWriter

__all__ = [
    "EpisodeWriter",
    "Episodes",
    "Normaliser",
    "ReturnsToGo",
    "WindowBatch",
    "WindowBatches",
    "WindowConfig",
    "WindowCutter",
    "concatenate",
    "episodes_from_flat",
    "fit_normaliser",
    "identity_normaliser",
    "open_episodes",
    "read_episodes",
    "read_hdf5",
    "read_lerobot",
    "read_minari",
    "read_npz",
    "returns_to_go",
    "save_episodes",
    "split_by_episode",
    "write_minari",
]
