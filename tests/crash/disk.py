"""A disk that loses power: from a record of calls, every state that it may hold at the next start.

The model is the strict reading of POSIX. Creating, renaming and removing a name is an operation on the directory that
holds it, and is certain only once that directory was fsynced; a write is certain once its file was. Of the operations
that are not certain, any subset may have reached the disk, in their order.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Tree = dict[str, "bytes | Tree"]


@dataclass
class Node:
    """A file (with bytes) or a directory (with entries)."""

    entries: dict[str, int] | None = None
    data: bytearray = field(default_factory=bytearray)


@dataclass(frozen=True)
class Operation:
    """A change of one node; `certain_from` is filled when that node is fsynced."""

    kind: str
    node: int
    facts: dict[str, Any]


class Disk:
    """Listens to the calls of `syscalls.watched` below one directory, which is empty when listening starts."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.log: list[Operation | tuple[str, int] | tuple[str, str, int]] = []
        self._nodes: list[Node] = [Node(entries={})]
        self._skip_syncs: tuple[str, ...] = ()

    def lose_syncs_of(self, *kinds: str) -> None:
        """Plant: from now on, fsync of a "file" or a "directory" does nothing."""
        self._skip_syncs = kinds

    def acknowledge(self, value: int) -> None:
        """Note that the writer was told that this state is safe."""
        self.log.append(("acknowledged", "", value))

    def __call__(self, call: Any) -> None:
        getattr(self, f"_{call.name}")(call.path, **call.facts)

    def _find(self, path: str) -> tuple[int, str, int | None]:
        parts = os.path.relpath(path, self.root).split(os.sep)
        here = 0
        for part in parts[:-1]:
            here = self._entries(here)[part]
        return here, parts[-1], (0 if parts == ["."] else self._entries(here).get(parts[-1]))

    def _entries(self, node: int) -> dict[str, int]:
        entries = self._nodes[node].entries
        assert entries is not None
        return entries

    def _do(self, kind: str, node: int, **facts: Any) -> None:
        self.log.append(Operation(kind, node, facts))
        _apply(self._nodes, self.log[-1])  # type: ignore[arg-type]

    def _new(self, path: str, *, directory: bool) -> int:
        parent, name, _ = self._find(path)
        self._nodes.append(Node(entries={} if directory else None))
        self._do("link", parent, name=name, child=len(self._nodes) - 1)
        return len(self._nodes) - 1

    def _mkdir(self, path: str) -> None:
        if self._find(path)[2] is None:
            self._new(path, directory=True)

    def _open(self, path: str, mode: str) -> None:
        found = self._find(path)[2]
        node = self._new(path, directory=False) if found is None else found
        if "w" in mode and self._nodes[node].data:
            self._do("truncate", node, length=0)

    def _write(self, path: str, data: bytes) -> None:
        node = self._find(path)[2]
        assert node is not None
        self._do("write", node, offset=len(self._nodes[node].data), data=data)

    def _truncate(self, path: str, length: int) -> None:
        node = self._find(path)[2]
        assert node is not None
        if length != len(self._nodes[node].data):
            self._do("truncate", node, length=length)

    def _rename(self, path: str, target: str) -> None:
        parent, name, node = self._find(path)
        other, new, _ = self._find(target)
        assert parent == other, "the model knows renames inside one directory only"
        if node is not None:
            self._do("rename", parent, name=name, new=new, child=node)

    _replace = _rename

    def _unlink(self, path: str) -> None:
        parent, name, node = self._find(path)
        if node is not None:
            self._do("unlink", parent, name=name)

    _remove = _rmdir = _unlink

    def _fsync(self, path: str) -> None:
        node = self._find(path)[2]
        assert node is not None
        kind = "file" if self._nodes[node].entries is None else "directory"
        if kind not in self._skip_syncs:
            self.log.append(("fsync", node))

    def states(self, limit: int, chooser: np.random.Generator) -> Iterator[tuple[int, Tree]]:
        """Yield (last acknowledged value, tree) of up to `limit` different states over all moments of power loss."""
        seen: set[tuple[int, bytes]] = set()
        budget = max(64, limit // max(1, len(self.log)) * 2)
        for moment in range(len(self.log) + 1):
            acknowledged, certain, open_ = self._at(moment)
            for chosen in _subsets(open_, budget, chooser):
                tree = self._replay(certain | chosen)
                key = (acknowledged, _digest(tree))
                if key not in seen:
                    seen.add(key)
                    yield acknowledged, tree
                if len(seen) >= limit:
                    return

    def _at(self, moment: int) -> tuple[int, set[int], list[int]]:
        acknowledged, certain, pending = 0, set[int](), dict[int, list[int]]()
        for index, event in enumerate(self.log[:moment]):
            if isinstance(event, Operation):
                pending.setdefault(event.node, []).append(index)
            elif event[0] == "fsync":
                certain |= set(pending.pop(event[1], []))  # type: ignore[arg-type]
            else:
                acknowledged = event[2]  # type: ignore[misc]
        return acknowledged, certain, sorted(itertools.chain.from_iterable(pending.values()))

    def _replay(self, chosen: set[int]) -> Tree:
        nodes = [Node(entries=None if node.entries is None else {}) for node in self._nodes]
        for index in sorted(chosen):
            _apply(nodes, self.log[index])  # type: ignore[arg-type]
        return _tree(nodes, 0)


def write_tree(tree: Tree, place: Path) -> None:
    """Put a tree on the real disk."""
    place.mkdir(parents=True, exist_ok=True)
    for name, value in tree.items():
        if isinstance(value, dict):
            write_tree(value, place / name)
        else:
            (place / name).write_bytes(value)


def _apply(nodes: list[Node], operation: Operation) -> None:
    node, facts = nodes[operation.node], operation.facts
    if operation.kind == "write":
        node.data.extend(b"\0" * (facts["offset"] - len(node.data)))
        node.data[facts["offset"] : facts["offset"] + len(facts["data"])] = facts["data"]
        return
    if operation.kind == "truncate":
        del node.data[facts["length"] :]
        return
    entries = node.entries
    assert entries is not None
    if operation.kind == "link":
        entries[facts["name"]] = facts["child"]
    elif operation.kind == "unlink":
        entries.pop(facts["name"], None)
    else:
        if entries.get(facts["name"]) == facts["child"]:
            del entries[facts["name"]]
        entries[facts["new"]] = facts["child"]


def _subsets(open_: list[int], budget: int, chooser: np.random.Generator) -> Iterator[set[int]]:
    if 2 ** min(len(open_), 60) <= budget:
        for size in range(len(open_) + 1):
            yield from (set(chosen) for chosen in itertools.combinations(open_, size))
        return
    yield set()
    yield set(open_)
    for one in open_:
        yield {one}
        yield set(open_) - {one}
    for _ in range(max(0, budget - 2 * len(open_) - 2)):
        yield {index for index, kept in zip(open_, chooser.integers(0, 2, len(open_)), strict=True) if kept}


def _tree(nodes: list[Node], root: int) -> Tree:
    tree: Tree = {}
    for name, child in sorted((nodes[root].entries or {}).items()):
        tree[name] = bytes(nodes[child].data) if nodes[child].entries is None else _tree(nodes, child)
    return tree


def _digest(tree: Tree) -> bytes:
    whole = hashlib.sha256()
    for name, value in tree.items():
        part = _digest(value) if isinstance(value, dict) else hashlib.sha256(value).digest()
        whole.update(f"{name}\0{isinstance(value, dict)}\0".encode() + part)
    return whole.digest()
