"""Episodes as flat arrays: one row a step, the episodes' starts and lengths beside them, and how each one ended.

A step holds what was seen before the action, the action and the reward after it: (s_t, a_t, r_t). The observation after
the last action of an episode is a row of `finals`, where the source knew it.

Legend: N steps, E episodes, O size of an observation, A size of an action.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forethought.core.config import digest
from forethought.core.errors import ConfigError, DataError
from forethought.core.rng import generator
from forethought.data.episodes.checks import check_finite, check_layout, check_name

Array = NDArray[Any]
Index = NDArray[np.int64]
Flags = NDArray[np.bool_]


class Episodes:
    """Logged episodes, in memory or memory-mapped; immutable by contract.

    `arrays` maps a name to N rows (observations [N, O], actions [N, A], rewards [N], and any other, such as uint8
    frames [N, H, W, C]); `finals` maps a name to E rows, the value after an episode's last action; `starts` and
    `lengths` are int64 [E]; `terminated` and `truncated` are bool [E]. Neither flag set means that the record was cut.
    `env_id`, `fps` (steps a second) and `metadata` (plain JSON) say where the data came from.

    Raises:
        DataError: rows, starts, lengths or flags do not fit one another, or a type is not a number.
    """

    def __init__(
        self,
        arrays: Mapping[str, ArrayLike],
        *,
        starts: ArrayLike,
        lengths: ArrayLike,
        terminated: ArrayLike,
        truncated: ArrayLike,
        finals: Mapping[str, ArrayLike] | None = None,
        env_id: str | None = None,
        fps: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        source: str = "the given arrays",
    ) -> None:
        self.arrays: dict[str, Array] = {check_name(name): np.asanyarray(value) for name, value in arrays.items()}
        self.finals: dict[str, Array] = {name: np.asanyarray(value) for name, value in (finals or {}).items()}
        self.starts: Index = np.asarray(starts, dtype=np.int64)
        self.lengths: Index = np.asarray(lengths, dtype=np.int64)
        self.terminated: Flags = np.asarray(terminated, dtype=bool)
        self.truncated: Flags = np.asarray(truncated, dtype=bool)
        self.env_id, self.fps = env_id, fps
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.source = source
        self._identity: str | None = None
        check_layout(self)

    def __len__(self) -> int:
        return self.num_episodes

    @property
    def num_episodes(self) -> int:
        """The number of episodes."""
        return len(self.starts)

    @property
    def num_steps(self) -> int:
        """The number of steps of all episodes."""
        return int(self.lengths.sum())

    @property
    def observations(self) -> Array:
        """Observations [N, ...], seen before the action of their row."""
        return self.array("observations")

    @property
    def actions(self) -> Array:
        """Actions [N, ...], as commanded."""
        return self.array("actions")

    @property
    def rewards(self) -> Array:
        """Rewards [N], given after the action of their row."""
        return self.array("rewards")

    def array(self, name: str) -> Array:
        """Return one array of N rows by its name.

        Raises:
            DataError: the episodes have none of that name.
        """
        if name not in self.arrays:
            known = ", ".join(sorted(self.arrays))
            raise DataError(f"{self.source} holds no {name!r}; it holds: {known}. Use one of these, or other data")
        return self.arrays[name]

    @property
    def episode_of_step(self) -> Index:
        """The episode of every step [N], int64."""
        return np.repeat(np.arange(self.num_episodes), self.lengths)

    @property
    def returns(self) -> NDArray[np.float64]:
        """The undiscounted return of every episode [E]."""
        return np.add.reduceat(np.asarray(self.rewards, dtype=np.float64), self.starts)

    def episode(self, index: int) -> dict[str, Array]:
        """Return the rows of one episode by name, as views.

        Raises:
            ConfigError: there is no such episode.
        """
        if not 0 <= index < self.num_episodes:
            raise ConfigError(f"episode {index} does not exist; give 0 to {self.num_episodes - 1}")
        begin = int(self.starts[index])
        return {name: value[begin : begin + int(self.lengths[index])] for name, value in self.arrays.items()}

    def select(self, episodes: Sequence[int] | Index) -> Episodes:
        """Return the chosen episodes, in the given order, as new arrays in memory.

        Raises:
            ConfigError: an index is out of range or none is given.
        """
        chosen = np.asarray(episodes, dtype=np.int64)
        if not chosen.size or chosen.min() < 0 or chosen.max() >= self.num_episodes:
            raise ConfigError(f"episodes to select must be 0 to {self.num_episodes - 1}, at least one; got {chosen}")
        lengths = self.lengths[chosen]
        rows = flat_rows(self.starts[chosen], lengths)
        return Episodes(
            {name: value[rows] for name, value in self.arrays.items()},
            starts=starts_of(lengths),
            lengths=lengths,
            terminated=self.terminated[chosen],
            truncated=self.truncated[chosen],
            finals={name: value[chosen] for name, value in self.finals.items()},
            env_id=self.env_id,
            fps=self.fps,
            metadata=self.metadata,
            source=self.source,
        )

    def identity(self) -> str:
        """Return a SHA-256 of everything in the arrays, the same in memory and on disk; a run records it."""
        if self._identity is None:
            hashes = {
                name: hashlib.sha256(np.ascontiguousarray(value).data).hexdigest() for name, value in self.tensors()
            }
            self.remember(hashes)
        return str(self._identity)

    def remember(self, hashes: Mapping[str, str]) -> None:
        """Take the SHA-256 of each array as known, so that `identity` need not read them again."""
        facts = {name: [str(value.dtype), list(value.shape), hashes[name]] for name, value in self.tensors()}
        self._identity = digest(facts)

    def tensors(self) -> list[tuple[str, Array]]:
        """Return every array under the name it is stored by, in a fixed order."""
        ends = {"starts": self.starts, "lengths": self.lengths}
        ends |= {"terminated": self.terminated, "truncated": self.truncated}
        named = [(f"steps/{name}", self.arrays[name]) for name in sorted(self.arrays)]
        named += [(f"finals/{name}", self.finals[name]) for name in sorted(self.finals)]
        return named + [(f"episodes/{name}", value) for name, value in ends.items()]

    def require_finite(self, names: Sequence[str] = ()) -> None:
        """Check the named float arrays (default: all) for NaN and infinities.

        By default NaN passes where loggers write it for "no action": in the first and last action of an episode.

        Raises:
            DataError: the message names the array, the episode and the step.
        """
        for name in names or tuple(self.arrays):
            value = self.array(name)
            if name == "actions" and not names and value.dtype.kind == "f":
                edges = np.concatenate([self.starts, self.starts + self.lengths - 1])
                value = np.array(value)
                value[edges] = np.where(np.isnan(value[edges]), 0, value[edges])
            check_finite(name, value, self.starts, source=self.source)
        for name, value in self.finals.items():
            check_finite(f"final {name}", value, np.arange(self.num_episodes), source=self.source)


def split_by_episode(episodes: Episodes, *, seed: int, fractions: Mapping[str, float]) -> dict[str, Episodes]:
    """Split whole episodes at random into named parts; no step of an episode is in two parts.

    The fractions sum to at most 1; every part gets at least one episode. The split depends on the seed and on the
    number of episodes alone.

    Raises:
        ConfigError: a fraction is not in (0, 1], they sum to more than 1, or there are fewer episodes than parts.
    """
    total = sum(fractions.values())
    if not fractions or min(fractions.values()) <= 0 or total > 1 + 1e-9:
        raise ConfigError(f"fractions {dict(fractions)} must each be above 0 and sum to at most 1")
    count = episodes.num_episodes
    if count < len(fractions):
        raise ConfigError(f"{count} episodes cannot be split into {len(fractions)} parts; collect more, or split less")
    order = generator(seed, "episodes.split").permutation(count)
    edges = np.round(np.cumsum(list(fractions.values())) * count).astype(int)
    edges = np.minimum(edges, count - np.arange(len(edges) - 1, -1, -1))
    for part in range(len(edges)):
        edges[part] = max(edges[part], part + 1 if part == 0 else edges[part - 1] + 1)
    begins = np.concatenate(([0], edges[:-1]))
    return {
        name: episodes.select(np.sort(order[begin:end]))
        for name, begin, end in zip(fractions, begins, edges, strict=True)
    }


def concatenate(parts: Sequence[Episodes]) -> Episodes:
    """Join episodes of the same layout; finals are kept only where every part has them.

    Raises:
        DataError: the parts differ in arrays, shapes, types, environment or frame rate; the message names the first.
    """
    if not parts:
        raise DataError("there are no episodes to join; give at least one part")
    first = parts[0]
    for other in parts[1:]:
        _check_alike(first, other)
    lengths = np.concatenate([part.lengths for part in parts])
    shared = set(first.finals).intersection(*(part.finals for part in parts))
    return Episodes(
        {name: np.concatenate([part.array(name) for part in parts]) for name in first.arrays},
        starts=starts_of(lengths),
        lengths=lengths,
        terminated=np.concatenate([part.terminated for part in parts]),
        truncated=np.concatenate([part.truncated for part in parts]),
        finals={name: np.concatenate([part.finals[name] for part in parts]) for name in sorted(shared)},
        env_id=first.env_id,
        fps=first.fps,
        metadata={"parts": [part.metadata for part in parts]},
        source=" and ".join(part.source for part in parts),
    )


def flat_rows(starts: Index, lengths: Index) -> Index:
    """Return the rows of whole episodes, one behind the other."""
    return np.arange(int(lengths.sum())) + np.repeat(starts - starts_of(lengths), lengths)


def starts_of(lengths: Index) -> Index:
    """Return the starts of episodes that lie one behind the other."""
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)[:-1])).astype(np.int64)


def _check_alike(first: Episodes, other: Episodes) -> None:
    for what, one, two in (
        ("environment", first.env_id, other.env_id),
        ("frame rate", first.fps, other.fps),
        ("arrays", sorted(first.arrays), sorted(other.arrays)),
    ):
        if one != two:
            raise DataError(f"{first.source} has {what} {one} and {other.source} has {two}; join only data of one kind")
    for name, value in first.arrays.items():
        second = other.arrays[name]
        if (value.dtype, value.shape[1:]) != (second.dtype, second.shape[1:]):
            raise DataError(
                f"{name} is {value.dtype} {value.shape[1:]} in {first.source} and {second.dtype} {second.shape[1:]} "
                f"in {other.source}; join only data of one layout"
            )
