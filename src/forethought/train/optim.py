"""Optimisers with decoupled decay in groups: matrices decay, gains and biases do not, embeddings as asked.

Decay is given as wd, or as tau, the time over which AdamW's weights remember their updates, in epochs:
tau = 1 / (lr * wd * steps_per_epoch) (Wang and Aitchison, arXiv 2405.13698).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from forethought.core.config import config
from forethought.core.errors import ConfigError, unknown_name


@config
class OptimiserConfig:
    """Which optimiser and how strong; with Muon, AdamW still moves everything but the hidden matrices."""

    name: str = "adamw"
    """adamw or muon."""
    lr: float = Field(default=3e-3, gt=0.0)
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(default=0.1, ge=0.0)
    """Decoupled decay of matrices."""
    tau: float | None = Field(default=None, gt=0.0)
    """Decay given as the weights' memory in epochs instead; weight_decay = 1 / (lr * tau * steps an epoch)."""
    beta1: float = Field(default=0.9, ge=0.0, lt=1.0)
    """Decay of AdamW's first moment."""
    beta2: float = Field(default=0.95, ge=0.0, lt=1.0)
    """Decay of AdamW's second moment."""
    eps: float = Field(default=1e-8, gt=0.0)
    """Added to AdamW's denominator."""
    decay_embeddings: bool = False
    """Decay the token embedding too."""
    muon_lr: float = Field(default=2e-2, gt=0.0)
    """Peak learning rate of Muon."""
    muon_momentum: float = Field(default=0.95, ge=0.0, lt=1.0)
    """Momentum of Muon."""

    def __post_init__(self) -> None:
        if self.name not in OPTIMISERS:
            raise unknown_name("optimiser", self.name, OPTIMISERS)

    def decay(self, steps_per_epoch: float | None, *, lr: float | None = None) -> float:
        """Return the weight decay, derived from tau where tau is given.

        Raises:
            ConfigError: tau is given and the number of steps an epoch is not known.
        """
        if self.tau is None:
            return self.weight_decay
        if not steps_per_epoch:
            raise ConfigError("tau needs the number of steps an epoch, which is not known here; give weight_decay")
        return 1.0 / ((lr or self.lr) * self.tau * steps_per_epoch)


class Optimisers:
    """One or more torch optimisers that step together under one schedule."""

    def __init__(self, members: list[torch.optim.Optimizer], names: dict[int, str]) -> None:
        self.members = members
        self.names = names
        self._peaks = [[group["lr"] for group in member.param_groups] for member in members]

    def set_rate(self, factor: float) -> None:
        """Set every group's learning rate to `factor` times its peak."""
        for member, peaks in zip(self.members, self._peaks, strict=True):
            for group, peak in zip(member.param_groups, peaks, strict=True):
                group["lr"] = peak * factor

    def step(self) -> None:
        """Apply the gradients."""
        for member in self.members:
            member.step()

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for member in self.members:
            member.zero_grad(set_to_none=True)

    def parameters(self) -> Iterable[Tensor]:
        """Yield every parameter once, in a fixed order."""
        for member in self.members:
            for group in member.param_groups:
                yield from group["params"]

    def state(self) -> dict[str, Tensor]:
        """Return every state tensor as `parameter name/state name`; scalars come as tensors too."""
        tensors: dict[str, Tensor] = {}
        for member in self.members:
            for parameter, entries in member.state.items():
                for key, value in entries.items():
                    tensors[f"{self.names[id(parameter)]}/{key}"] = torch.as_tensor(value)
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `state` returned, into parameters of the same names.

        Raises:
            ConfigError: the saved state is of other parameters or of another optimiser.
        """
        entries: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            name, _, field = key.rpartition("/")
            entries.setdefault(name, {})[field] = tensor
        strangers = sorted(entries.keys() - set(self.names.values()))
        if strangers:
            raise ConfigError(f"the saved optimiser knows parameters this model lacks: {', '.join(strangers[:3])}")
        for member in self.members:
            for group in member.param_groups:
                for parameter in group["params"]:
                    name = self.names[id(parameter)]
                    saved = entries.get(name)
                    if saved is None:
                        continue
                    kind = type(member).__name__
                    if _FIELDS.get(kind, saved.keys()) != saved.keys():
                        raise ConfigError(
                            f"the saved state of {name} ({', '.join(sorted(saved))}) is not one of {kind}; "
                            "choose the optimiser that the run was started with"
                        )
                    member.state[parameter] = dict(saved)


_HEADS = {"head", "unembedding"}
# What an optimiser of this file keeps for a parameter, by which a state of another one is told.
_FIELDS: dict[str, Set[str]] = {"AdamW": {"step", "exp_avg", "exp_avg_sq"}, "Muon": {"momentum_buffer"}}

Groups = tuple[list[tuple[str, nn.Parameter]], list[tuple[str, nn.Parameter]], list[tuple[str, nn.Parameter]]]


def build_optimisers(
    module: nn.Module, settings: OptimiserConfig, *, steps_per_epoch: float | None = None
) -> Optimisers:
    """Build the optimisers of a module: decayed matrices, undecayed rest, and hidden matrices to Muon where asked.

    Raises:
        ConfigError: tau is given without steps an epoch, or nothing in the module can be trained.
    """
    hidden, decayed, plain = _group(module, decay_embeddings=settings.decay_embeddings)
    named = hidden + decayed + plain
    if not named:
        raise ConfigError("the module has no trainable parameters; there is nothing to optimise")
    members = OPTIMISERS[settings.name](hidden, decayed, plain, settings, steps_per_epoch)
    return Optimisers(members, {id(parameter): name for name, parameter in named})


def _group(module: nn.Module, *, decay_embeddings: bool) -> Groups:
    embeddings = {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    hidden: list[tuple[str, nn.Parameter]] = []
    decayed: list[tuple[str, nn.Parameter]] = []
    plain: list[tuple[str, nn.Parameter]] = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2 or (id(parameter) in embeddings and not decay_embeddings):
            plain.append((name, parameter))
        elif parameter.ndim == 2 and id(parameter) not in embeddings and not _HEADS & set(name.split(".")):
            hidden.append((name, parameter))
        else:
            decayed.append((name, parameter))
    return hidden, decayed, plain


def _adamw(
    hidden: list[tuple[str, nn.Parameter]],
    decayed: list[tuple[str, nn.Parameter]],
    plain: list[tuple[str, nn.Parameter]],
    settings: OptimiserConfig,
    steps_per_epoch: float | None,
) -> list[torch.optim.Optimizer]:
    decay = settings.decay(steps_per_epoch)
    groups = [
        {"params": [p for _, p in hidden + decayed], "weight_decay": decay},
        {"params": [p for _, p in plain], "weight_decay": 0.0},
    ]
    used = [group for group in groups if group["params"]]
    betas = (settings.beta1, settings.beta2)
    return [torch.optim.AdamW(used, lr=settings.lr, betas=betas, eps=settings.eps, fused=True)]


def _muon(
    hidden: list[tuple[str, nn.Parameter]],
    decayed: list[tuple[str, nn.Parameter]],
    plain: list[tuple[str, nn.Parameter]],
    settings: OptimiserConfig,
    steps_per_epoch: float | None,
) -> list[torch.optim.Optimizer]:
    muon: Any = getattr(torch.optim, "Muon", None)
    if muon is None:
        raise ConfigError(f"torch {torch.__version__} has no Muon; install torch 2.9 or newer, or choose adamw")
    if not hidden:
        return _adamw(hidden, decayed, plain, settings, steps_per_epoch)
    decay = settings.decay(steps_per_epoch, lr=settings.muon_lr)
    matrices = muon(
        [p for _, p in hidden], lr=settings.muon_lr, weight_decay=decay, momentum=settings.muon_momentum, nesterov=True
    )
    return [matrices, *(_adamw([], decayed, plain, settings, steps_per_epoch) if decayed or plain else [])]


OPTIMISERS: dict[str, Callable[..., list[torch.optim.Optimizer]]] = {"adamw": _adamw, "muon": _muon}
