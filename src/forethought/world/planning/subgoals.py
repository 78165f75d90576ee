"""Far goals through near ones: shortest paths over the latents of the data, followed by planning to each next node.

A planner that looks five blocks ahead cannot see past a wall. The data can: successive latents of an episode are known
to be reachable, and latents of different episodes that lie closer than one block's usual step are taken as one place.
The shortest path in this graph is the route; a local planner follows it a few nodes ahead (compare arXiv 1906.05253).

Legend: N nodes, B environments, D latent width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

from forethought.core.config import config
from forethought.core.errors import DataError
from forethought.data import Episodes
from forethought.world.data import encode_rows
from forethought.world.model import WorldModel
from forethought.world.planning.policies import Array, GoalConfig, GoalPolicy

_CHUNK = 512


@config
class SubgoalConfig:
    """The graph and how it is followed.

    num_nodes: latents kept, at most. neighbours: the nearest ones that a node may be joined with. reach: the longest
    such edge, as a share of the median latent step of one block. lookahead: the sub-goal is the node this many median
    block steps along the path.
    """

    num_nodes: int = Field(default=6000, ge=2)
    neighbours: int = Field(default=8, ge=1)
    reach: float = Field(default=1.0, gt=0)
    lookahead: float = Field(default=3.0, gt=0)


class SubgoalGraph:
    """Latents of episodes with edges between those that are one block or less apart.

    Raises:
        DataError: the episodes hold fewer than two frames that are a skip apart.
    """

    def __init__(self, model: WorldModel, episodes: Episodes, settings: SubgoalConfig | None = None) -> None:
        self.settings = settings or SubgoalConfig()
        rows, before, after = _nodes(episodes, model.config.frame_skip, self.settings.num_nodes)
        if not len(before):
            raise DataError(f"{episodes.source}: no two frames are {model.config.frame_skip} steps apart; collect more")
        self.rows = rows
        self.latents_ND = encode_rows(model, episodes, rows).cpu()
        steps = (self.latents_ND[before] - self.latents_ND[after]).norm(dim=1)
        self.block_step = float(steps.median())
        near_from, near_to, near_length = self._near(self.settings.neighbours, self.settings.reach * self.block_step)
        size = len(rows)
        lengths = np.concatenate([steps.numpy(), near_length, near_length])
        ends = np.concatenate([before, near_from, near_to]), np.concatenate([after, near_to, near_from])
        # Doubled edges would be added up by the sparse matrix; the shorter of the two is the edge.
        key = ends[0] * size + ends[1]
        order = np.lexsort((lengths, key))
        kept = order[np.unique(key[order], return_index=True)[1]]
        weights = np.maximum(lengths[kept], 1e-9)
        self.edges = coo_matrix((weights, (ends[0][kept], ends[1][kept])), shape=(size, size)).tocsr()

    def routes(self, goals_BD: Tensor) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the way to each goal: length (B, N) from every node, and the next node (B, N), negative at the end."""
        targets = self.nearest(goals_BD)
        length, following = dijkstra(self.edges.T.tocsr(), indices=targets, return_predecessors=True)
        return np.atleast_2d(length), np.atleast_2d(following).astype(np.int64)

    def nearest(self, latents_BD: Tensor) -> NDArray[np.int64]:
        """Return the node closest to each latent."""
        return torch.cdist(latents_BD.cpu(), self.latents_ND).argmin(dim=1).numpy().astype(np.int64)

    def _near(self, count: int, limit: float) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        sources: list[Any] = []
        targets: list[Any] = []
        lengths: list[Any] = []
        count = min(count + 1, len(self.latents_ND))
        for begin in range(0, len(self.latents_ND), _CHUNK):
            part = self.latents_ND[begin : begin + _CHUNK]
            found = torch.cdist(part, self.latents_ND).topk(count, dim=1, largest=False)
            own = torch.arange(begin, begin + len(part))[:, None].expand_as(found.indices)
            kept = (found.values <= limit) & (found.indices != own)
            sources.append(own[kept].numpy())
            targets.append(found.indices[kept].numpy())
            lengths.append(found.values[kept].numpy())
        return np.concatenate(sources), np.concatenate(targets), np.concatenate(lengths).astype(np.float64)


class SubgoalPolicy(GoalPolicy):
    """Plans to the node that lies a little ahead on the shortest path to the goal; at the end to the goal itself."""

    def __init__(
        self, model: WorldModel, graph: SubgoalGraph, settings: GoalConfig | None = None, **options: Any
    ) -> None:
        super().__init__(model, settings or GoalConfig(execute=2, over="min"), **options)
        self.graph = graph
        self._lengths: Array = np.empty(0)
        self._following: Array = np.empty(0)

    def begin(self, goals_BHWC: Array, seed: int) -> None:
        """Encode the goals and find the ways to them from every node."""
        super().begin(goals_BHWC, seed)
        self._lengths, self._following = self.graph.routes(self._goals_BD)

    def goals_for(self, latents_BD: Tensor) -> Tensor:
        """Return the sub-goals (B, D) for the present latents."""
        ahead = self.graph.settings.lookahead * self.graph.block_step
        chosen = self._goals_BD.clone()
        for row, node in enumerate(self._entries(latents_BD)):
            target = self.along(row, int(node), ahead)
            if target is not None:
                chosen[row] = self.graph.latents_ND[target].to(chosen)
        return chosen

    def along(self, row: int, node: int, ahead: float) -> int | None:
        """Return the node `ahead` along the path of one environment; None where the goal is nearer, or no path is."""
        left = self._lengths[row]
        if not np.isfinite(left[node]) or left[node] <= ahead:
            return None
        limit = left[node] - ahead
        while left[node] > limit and self._following[row, node] >= 0:
            node = int(self._following[row, node])
        return node

    def _entries(self, latents_BD: Tensor) -> NDArray[np.int64]:
        """Return where each latent enters the graph: the least way there and on, among the nodes close by."""
        distance = torch.cdist(latents_BD.cpu(), self.graph.latents_ND).numpy().astype(np.float64)
        # Beyond the nearest node a detour counts double: being close is known, that the way there is free is not.
        cost = 2.0 * (distance - distance.min(axis=1, keepdims=True)) + self._lengths
        cost[distance > distance.min(axis=1, keepdims=True) + self.graph.block_step] = np.inf
        nearest = distance.argmin(axis=1)
        best = cost.argmin(axis=1)
        return np.where(np.isfinite(cost.min(axis=1)), best, nearest).astype(np.int64)


def _nodes(episodes: Episodes, skip: int, limit: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of nodes and the pairs of nodes that one block joins; whole episodes until the limit is met."""
    rows: list[NDArray[np.int64]] = []
    before: list[NDArray[np.int64]] = []
    total = 0
    for start, length in zip(episodes.starts, episodes.lengths, strict=True):
        own = np.arange(start, start + length, skip)
        if total + len(own) > limit:
            break
        rows.append(own)
        before.append(total + np.arange(len(own) - 1))
        total += len(own)
    joined = np.concatenate(before) if before else np.empty(0, np.int64)
    return (np.concatenate(rows) if rows else np.empty(0, np.int64)), joined, joined + 1
