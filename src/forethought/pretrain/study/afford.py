"""Guards of a budget made from measured steps of the very shapes, and an ensemble cut to what a budget affords."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from forethought.core import files
from forethought.core.artefact import resolve
from forethought.core.errors import ConfigError
from forethought.data import Corpus
from forethought.nn import num_parameters, read_language_model_config
from forethought.pretrain.affordable import PLAN
from forethought.pretrain.config import ModelShape
from forethought.pretrain.members.config import MembersConfig
from forethought.pretrain.members.spread import kept_speeds
from forethought.pretrain.study.budget import Guard

_MEASURED_TOGETHER = 4


def member_seconds(settings: MembersConfig, root: Path, group: int) -> float:
    """Return the seconds of a member's step in batches of `group` (0: of the faster size), measured once under root."""
    speeds = kept_speeds(settings, root, [_MEASURED_TOGETHER])
    size = group or speeds.best
    return speeds.seconds.get(size, speeds.seconds[speeds.best])


def parameters_of(settings: MembersConfig, corpus: Corpus) -> int:
    """Return the parameters of one member."""
    shape = settings.fit.model.transformer(corpus.tokenizer.vocab_size, settings.fit.max_positions)
    return num_parameters(shape).total


def windows_of(settings: MembersConfig, corpus: Corpus) -> int:
    """Return the windows of one pass over the training tokens."""
    return math.ceil((settings.train_tokens or corpus.train.num_tokens) / settings.fit.context)


def guard_of(seconds: float | None, corpus: Corpus, root: Path, *, group: int = 0, workers: int = 1) -> Guard:
    """Return a guard of a budget over runs of members on one corpus, its clock started now."""
    return Guard(
        seconds,
        lambda settings: member_seconds(settings, root, group),
        lambda settings: windows_of(settings, corpus),
        lambda settings: parameters_of(settings, corpus),
        workers,
    )


def shape_of_model(directory: str) -> ModelShape:
    """Return the shape of a model that is there, without its vocabulary.

    Raises:
        InputError: the directory holds no model.
    """
    config = read_language_model_config(resolve(directory)[1])
    return ModelShape(
        family=config.family,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        intermediate_size=config.intermediate_size,
        rope_theta=config.rope_theta,
        tie_embeddings=config.tie_embeddings,
    )


@dataclass(frozen=True)
class MembersPlan:
    """How many members a budget affords, out of those that were asked for."""

    seconds: float
    asked: int
    members: int
    member_seconds: float

    def __str__(self) -> str:
        """Return the plan in words, what is left out included."""
        left = f"left out: {self.asked - self.members} members" if self.members < self.asked else "nothing is left out"
        return (
            f"a budget of {self.seconds:,.0f} s affords {self.members} of {self.asked} members "
            f"(about {self.member_seconds:,.0f} s each): {left}"
        )


@dataclass
class MembersBudget:
    """Cuts an ensemble to the members that a budget affords; the run's directory keeps the plan for a resumption."""

    seconds: float
    started: float
    tell: Callable[[MembersPlan], object] = lambda _plan: None
    plan: MembersPlan | None = None

    def __call__(self, settings: MembersConfig, corpus: Corpus, directory: Path) -> MembersConfig:
        """Return the settings with as many members as fit, at least one.

        Raises:
            ConfigError: not even one member fits, or the run was begun with another budget.
        """
        kept = directory / PLAN
        if kept.is_file():
            values = files.read_json(kept, what="plan of a budget")
            self.plan = MembersPlan(**{name: values[name] for name in MembersPlan.__dataclass_fields__})
            if self.plan.seconds != self.seconds:
                raise ConfigError(
                    f"{directory} was begun with a budget of {self.plan.seconds:,.0f} s; give that, or another "
                    "directory"
                )
        else:
            self.plan = self._planned(settings, corpus, directory)
            files.write_json(kept, asdict(self.plan))
        self.tell(self.plan)
        return replace(settings, members=settings.members[: self.plan.members])

    def _planned(self, settings: MembersConfig, corpus: Corpus, directory: Path) -> MembersPlan:
        # The run itself is one batch; speeds are kept beside it.
        single = replace(settings, fit=replace(settings.fit, sources=(str(corpus.path),)))
        guard = guard_of(self.seconds, corpus, directory)
        guard.started = self.started
        each = guard.estimate(single, 1)
        remaining = guard.remaining or 0.0
        members = min(len(settings.members), math.floor(remaining / each))
        if members < 1:
            raise ConfigError(
                f"a budget of {self.seconds:,.0f} s affords no member: {time.monotonic() - self.started:.0f} s have "
                f"passed and one takes about {each:,.0f} s; give a longer --budget, fewer epochs or a smaller shape"
            )
        return MembersPlan(self.seconds, len(settings.members), members, each)
