"""The config of a batched run: one fit, the members that differ from one another, and the frontier options."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Literal

import tyro
from pydantic import Field

from forethought.core.config import config
from forethought.core.errors import ConfigError
from forethought.pretrain.config import FitConfig
from forethought.train import OptimiserConfig


@config
class Member:
    """What one member has of its own; None takes the value of the fit."""

    seed: int = Field(default=0, ge=0)
    """Its name in every draw that is its own, such as dropout."""
    init_seed: int | None = Field(default=None, ge=0)
    """First weights; None: the seed."""
    order_seed: int | None = Field(default=None, ge=0)
    """Order of documents and windows; None: the seed."""
    lr: float | None = Field(default=None, gt=0.0)
    """Peak learning rate."""
    tau: float | None = Field(default=None, gt=0.0)
    """Decay as the weights' memory in epochs."""
    weight_decay: float | None = Field(default=None, ge=0.0)
    """Decay given directly, instead of tau."""


@config
class FrontierConfig:
    """Options beyond the plain recipe, all off by default; each can be measured by itself."""

    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the embedding's and of every sublayer's output that is zeroed while training."""
    ahead_share: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Weight of a second loss on the token after the next one, through a projection that is not exported."""
    reshuffle: bool = True
    """Pack the documents anew every epoch; without it every epoch repeats the first one's windows."""
    cycles: int = Field(default=0, ge=0)
    """Cosine restarts of the rate, with a snapshot at each one's end; 0: the loop's own schedule."""
    decay_low: float = Field(default=0.65, ge=0.0)
    """Factor on the decay where a cycle's rate is highest."""
    decay_high: float = Field(default=1.5, ge=0.0)
    """Factor on the decay where a cycle's rate is lowest: in anti-phase with the rate."""
    last_k: int = Field(default=0, ge=0)
    """Mean of the weights at the ends of the last so many epochs, kept as a further candidate."""


@config
class MembersConfig:
    """Members of one shape that train as one batched model; a member's result depends on the fit and itself alone."""

    fit: FitConfig = FitConfig()
    members: Annotated[tuple[Member, ...], tyro.conf.Suppress] = (Member(),)
    frontier: FrontierConfig = FrontierConfig()
    epochs: float = Field(default=4.0, gt=0.0)
    """Passes over the training tokens; with the windows an epoch they give the number of steps."""
    train_tokens: int = Field(default=0, ge=0)
    """Train on the first so many tokens of the training split; 0: all of it."""
    labels: str | None = None
    """A directory of cached teacher laws over the real text, and over the mixture where there is one; it fixes the
    windows and the teacher."""
    mixture: str | None = None
    """A second prepared corpus (sampled text, or replay) that is mixed in."""
    mixture_share: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the rows that come from the mixture; the steps grow, so that the real text is still seen `epochs`
    times."""
    base: str | None = None
    """A model directory to start from, instead of first weights drawn from a seed."""
    keep_averages: Literal["none", "ema", "last_k", "all"] = "all"
    """Which averages are exported beside the last weights, where they were kept."""

    def __post_init__(self) -> None:
        if not self.members:
            raise ConfigError("a batched run needs at least one member; give members")
        if (self.mixture is None) != (self.mixture_share == 0.0):
            raise ConfigError(
                f"mixture {self.mixture!r} and mixture_share {self.mixture_share} go together; give both or neither"
            )
        if self.fit.loop.patience is not None or self.fit.loop.final == "best":
            raise ConfigError(
                "early stopping would stop all members at one step; leave patience out and final at 'last', and "
                "choose the number of epochs instead"
            )
        if self.fit.parallel != "none":
            raise ConfigError("members train in one process each batch; use parallel none, or one worker a member")

    def optimiser(self, member: Member) -> OptimiserConfig:
        """Return a member's own optimiser settings."""
        own = {name: value for name in ("lr", "tau", "weight_decay") if (value := getattr(member, name)) is not None}
        if "weight_decay" in own and "tau" not in own:
            own["tau"] = None
        if member.lr is not None:
            # Muon's rate keeps its proportion to the rate of what AdamW moves.
            own["muon_lr"] = self.fit.optimiser.muon_lr * member.lr / self.fit.optimiser.lr
        return replace(self.fit.optimiser, **own)


def steps_of(settings: MembersConfig, windows_per_epoch: int) -> int:
    """Return the optimiser steps of a run: the real text `epochs` times, and the mixture on top (spec: / (1 - m))."""
    rows = settings.epochs * windows_per_epoch / (1.0 - settings.mixture_share)
    return max(1, math.ceil(rows / (settings.fit.batch_size * settings.fit.loop.accumulate) - 1e-9))


def seeds(
    count: int,
    *,
    first: int = 0,
    vary: Literal["both", "init", "order"] = "both",
    lr: float | None = None,
    tau: float | None = None,
) -> tuple[Member, ...]:
    """Return members that differ by seed: in first weights, in the order of the data, or in both.

    Raises:
        ConfigError: count is below 1.
    """
    if count < 1:
        raise ConfigError(f"{count} members are none; give at least 1")
    init, order = (first if vary == "order" else None), (first if vary == "init" else None)
    return tuple(Member(seed=first + k, init_seed=init, order_seed=order, lr=lr, tau=tau) for k in range(count))
