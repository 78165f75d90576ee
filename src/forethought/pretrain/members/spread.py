"""Members over batches and workers: groups of the faster size, each a resumable run named by what it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from forethought.core import files
from forethought.core.config import to_dict
from forethought.core.progress import Progress
from forethought.data import open_corpus
from forethought.pretrain.members.config import MembersConfig
from forethought.pretrain.members.run import SCORES, run_identity, train_members
from forethought.pretrain.members.speed import Speeds, measure_speeds
from forethought.pretrain.scores import Scores, open_scores
from forethought.train import fan_out

TASK = "forethought.pretrain.members.run:members_task"


@dataclass(frozen=True)
class Spread:
    """How members are spread: workers at a time, over local processes or Ray, and the size of a batch (0: measure)."""

    workers: int = 1
    backend: Literal["local", "ray"] = "local"
    group: int = 0
    address: str | None = None


@dataclass(frozen=True)
class Trained:
    """The results of several runs of members, one entry a member in the order asked for, and their runs."""

    members: list[dict[str, Any]]
    runs: dict[str, Path]

    def scores(self) -> dict[str, Scores]:
        """Open the cached probabilities of every run."""
        return {name: open_scores(path / SCORES) for name, path in self.runs.items()}


def train_spread(
    settings: MembersConfig, root: Path, spread: Spread, *, progress: Progress | None = None, export: bool = True
) -> Trained:
    """Train the members in groups under `root`, each group one batched run, and return them in their order.

    A finished group is not trained again, a killed one resumes. The sources must be one prepared corpus.

    Raises:
        InputError: the config or the corpus cannot be used.
        TaskError: a worker failed after its retries; the others were brought to their end.
        InterruptedRunError: interrupted; the same call goes on.
    """
    identity = open_corpus(settings.fit.sources[0]).identity
    files.make_directory(root)
    group = group_size(settings, spread, root)
    groups = [settings.members[first : first + group] for first in range(0, len(settings.members), group)]
    parts = [replace(settings, members=members) for members in groups]
    names = [f"members-{run_identity(part, identity)[:16]}" for part in parts]
    if spread.workers == 1 and spread.backend == "local":
        for name, part in zip(names, parts, strict=True):
            train_members(part, root / name, exists="resume", title=name[:15], export=export)
    else:
        fan_out(
            TASK,
            [to_dict(part) | {"name": name} for name, part in zip(names, parts, strict=True)],
            root=root,
            workers=spread.workers,
            backend=spread.backend,
            progress=progress,
            address=spread.address,
        )
    found: list[dict[str, Any]] = []
    for name, part in zip(names, parts, strict=True):
        result = files.read_json(root / name / "result.json", what="result")
        found += [member_record(result, k) | {"run": name} for k in range(len(part.members))]
    return Trained(found, {name: root / name for name in names})


def member_record(result: Mapping[str, Any], k: int) -> dict[str, Any]:
    """Return one member's figures with those that it shares with the members of its run."""
    shared = ("epochs", "train_tokens", "parameters", "parameters_non_embedding", "steps", "steps_per_epoch")
    return {**result["members"][k], **{name: result[name] for name in shared}}


def group_size(settings: MembersConfig, spread: Spread, root: Path) -> int:
    """Return how many members train as one batch: the given number, or the faster one measured (kept in `root`)."""
    largest = -(-len(settings.members) // spread.workers)
    if spread.group or largest == 1:
        return min(spread.group or 1, len(settings.members))
    speeds = kept_speeds(settings, root, [size for size in (2, 4, 8, largest) if size <= largest])
    return speeds.best


def kept_speeds(settings: MembersConfig, root: Path, sizes: Sequence[int]) -> Speeds:
    """Return measured speeds, from `root/speeds.json` where this shape was measured before."""
    vocabulary = open_corpus(settings.fit.sources[0]).tokenizer.vocab_size
    fit = settings.fit
    shape = fit.model.transformer(vocabulary, max(fit.max_positions, fit.context))
    batch = f"{fit.batch_size}x{fit.context} on {fit.device}, groups to {max(sizes)}"
    key = f"{shape.hidden_size}x{shape.num_layers}, {vocabulary} tokens, {batch}"
    path = root / "speeds.json"
    known = files.read_json(path, what="speeds") if path.is_file() else {}
    if key not in known:
        speeds = measure_speeds(settings, shape, sizes)
        known[key] = {"seconds": {str(size): value for size, value in speeds.seconds.items()}, "best": speeds.best}
        files.write_json(path, known)
    return Speeds({int(size): float(value) for size, value in known[key]["seconds"].items()}, int(known[key]["best"]))
