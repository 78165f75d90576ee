"""From a recipe and decoded numbers to the network: what a message must contain, and what it then means.

`plan_of` is arithmetic: it says how many symbols of how many levels a recipe calls for, before any memory is spent.
`assemble` is shared with training: the same differentiable map from numbers to weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from forethought.certify.decoder.architectures import GIVEN, build_module, num_inputs_of
from forethought.certify.decoder.base import Slot, draw, given_values, slots_of
from forethought.certify.decoder.recipe import MAX_PARAMETERS, Recipe, TokenScoring
from forethought.certify.decoder.subspace import Subspace, subspace
from forethought.core.errors import ArtefactError

PRECISIONS = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Plan:
    """The tensors of a recipe, those that the message moves, and the number of symbols in each coded segment."""

    slots: tuple[Slot, ...]
    moved: tuple[Slot, ...]
    dimension: int
    segments: tuple[int, ...]

    @property
    def num_moved(self) -> int:
        """The number of weights that the message moves."""
        return sum(slot.size for slot in self.moved)


@dataclass(frozen=True)
class Network:
    """A rebuilt network: its module in the declared precision, and its weights by name in float64."""

    module: nn.Module
    weights: dict[str, Tensor]
    recipe: Recipe


class Assembly:
    """The differentiable map from the numbers of a message to the weights of a network, in one precision."""

    def __init__(
        self,
        recipe: Recipe,
        module: nn.Module,
        plan: Plan,
        base: Mapping[str, np.ndarray],
        dtype: torch.dtype,
    ) -> None:
        self.recipe, self.module, self.plan, self.dtype = recipe, module, plan, dtype
        self.base = {slot.name: _tensor(base[slot.name], slot, dtype) for slot in plan.slots}
        self._moved_base = torch.cat([torch.from_numpy(np.array(base[slot.name])).to(dtype) for slot in plan.moved])
        scaled = recipe.subspace.scaling == "initial" and recipe.subspace.kind != "identity"
        self._scale = torch.cat(
            [torch.full((slot.size,), slot.scale if scaled else 1.0, dtype=dtype) for slot in plan.moved]
        )
        self.subspace: Subspace = subspace(
            recipe.subspace.kind, plan.num_moved, plan.dimension, recipe.subspace.seed, dtype=dtype
        )

    def weights(self, numbers: Tensor) -> dict[str, Tensor]:
        """Return the weights by name for numbers [dimension]; differentiable in the numbers."""
        flat = self._moved_base + self._scale * self.subspace.expand(numbers)
        pieces = torch.split(flat, [slot.size for slot in self.plan.moved])
        moved = {slot.name: piece.view(slot.shape) for slot, piece in zip(self.plan.moved, pieces, strict=True)}
        lora = self.recipe.lora
        if lora is None:
            return self.base | moved
        weights = {slot.name: self.base[slot.name] for slot in self.plan.slots if slot.name not in moved}
        for name in [name for name in weights if f"{name}.lora_a" in moved]:
            update = moved[f"{name}.lora_b"] @ moved[f"{name}.lora_a"]
            weights[name] = weights[name] + (lora.alpha / lora.rank) * update.view(weights[name].shape)
        return weights


def plan_of(recipe: Recipe, module: nn.Module | None = None) -> Plan:
    """Return what a message for this recipe must contain; a module is needed for the architecture 'given' only.

    Raises:
        ConfigError: the architecture or its settings are unknown.
        ArtefactError: the network is too large, or the recipe does not fit it.
    """
    return _plan(recipe, _module_of(recipe, module))


def assembly_of(
    recipe: Recipe,
    module: nn.Module | None = None,
    *,
    base: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Assembly:
    """Return the map from numbers to weights; its module is on the CPU, in `dtype` and in evaluation mode.

    Raises:
        ConfigError: as plan_of.
        ArtefactError: as plan_of, or the given base weights are missing or not the declared ones.
    """
    shapes = _module_of(recipe, module)
    plan = _plan(recipe, shapes)
    values = _base_values(recipe, plan, base)
    if module is None:
        shapes = shapes.to_empty(device="cpu")
    return Assembly(recipe, shapes.to(dtype).eval(), plan, values, dtype)


def network_of(
    recipe: Recipe,
    numbers: np.ndarray,
    *,
    buffers: np.ndarray | None = None,
    module: nn.Module | None = None,
    base: Mapping[str, Tensor] | None = None,
) -> Network:
    """Return the network that decoded numbers (flat, in the order of the segments) mean under a recipe.

    Weights are worked out in float64 and only then rounded to the precision that the recipe scores in.

    Raises:
        ConfigError: as plan_of.
        ArtefactError: as assembly_of, or the numbers are too many or too few.
    """
    assembly = assembly_of(recipe, module, base=base)
    if numbers.shape != (assembly.plan.dimension,):
        raise ArtefactError(f"{numbers.shape} numbers for a recipe of {assembly.plan.dimension}")
    with torch.no_grad():
        weights = assembly.weights(torch.from_numpy(np.array(numbers, dtype=np.float64)))
        ready = assembly.module.to(PRECISIONS[recipe.scoring.precision])
        for name, parameter in ready.named_parameters():
            parameter.copy_(weights[name])
        _set_buffers(ready, recipe, np.empty(0) if buffers is None else buffers)
    return Network(ready.eval().requires_grad_(False), weights, recipe)


def _module_of(recipe: Recipe, module: nn.Module | None) -> nn.Module:
    if recipe.architecture != GIVEN:
        if module is not None:
            raise ArtefactError(f"architecture {recipe.architecture!r} is rebuilt by the decoder; give no module")
        return build_module(recipe.architecture, recipe.settings)
    if module is None:
        raise ArtefactError("this certificate is for a network of the user's own; give its module to rebuild it")
    return module


def _plan(recipe: Recipe, module: nn.Module) -> Plan:
    slots = tuple(slots_of(module))
    total = sum(slot.size for slot in slots)
    if not 1 <= total <= MAX_PARAMETERS:
        raise ArtefactError(f"a network of {total} parameters is refused; a certificate may hold 1 to {MAX_PARAMETERS}")
    scores_tokens = isinstance(recipe.scoring, TokenScoring)
    if recipe.architecture != GIVEN and scores_tokens == (num_inputs_of(module) is not None):
        raise ArtefactError(f"architecture {recipe.architecture!r} is not scored by {recipe.scoring.loss!r}")
    moved = slots if recipe.lora is None else _lora_slots(recipe, slots)
    num_moved = sum(slot.size for slot in moved)
    if num_moved > MAX_PARAMETERS:
        raise ArtefactError(
            f"a low-rank update of {num_moved} numbers is refused; at most {MAX_PARAMETERS} are allowed"
        )
    dimension = num_moved if recipe.subspace.dimension is None else recipe.subspace.dimension
    if not 1 <= dimension <= num_moved:
        raise ArtefactError(
            f"{dimension} numbers cannot move {num_moved} weights; give a dimension of 1 to {num_moved}"
        )
    segments = tuple(slot.size for slot in moved) if recipe.codebook.per == "tensor" else (dimension,)
    return Plan(slots, moved, dimension, segments)


def _lora_slots(recipe: Recipe, slots: tuple[Slot, ...]) -> tuple[Slot, ...]:
    lora = recipe.lora
    found: list[Slot] = []
    for slot in slots if lora is not None else ():
        if lora is None or len(slot.shape) < 2 or not slot.name.endswith(lora.targets):
            continue
        outputs, inputs = slot.shape[0], slot.size // slot.shape[0]
        width = 1.0 / inputs**0.5
        found.append(Slot(f"{slot.name}.lora_a", (lora.rank, inputs), 0.0, width, width))
        found.append(Slot(f"{slot.name}.lora_b", (outputs, lora.rank), 0.0, 0.0, width))
    if not found:
        raise ArtefactError("no matrix of the network ends in one of the targets of the low-rank update")
    return tuple(found)


def _base_values(recipe: Recipe, plan: Plan, base: Mapping[str, Tensor] | None) -> dict[str, np.ndarray]:
    own = [*plan.slots, *(slot for slot in plan.moved if recipe.lora is not None)]
    if (base is not None) != (recipe.base.kind == "given"):
        state = "needs" if base is None else "does not take"
        raise ArtefactError(f"a recipe with base {recipe.base.kind!r} {state} given base weights")
    if recipe.base.kind == "zeros":
        return {slot.name: np.full(slot.size, slot.centre) for slot in own}
    values = {slot.name: draw(slot, recipe.base.seed) for slot in own}
    if base is not None and recipe.base.sha256 is not None:
        values |= given_values(list(plan.slots), base, recipe.base.sha256)
    return values


def _set_buffers(module: nn.Module, recipe: Recipe, values: np.ndarray) -> None:
    """Write the coded values into the persistent floating-point buffers, in the module's order."""
    persistent = set(module.state_dict())
    found = [b for name, b in module.named_buffers() if name in persistent and b.is_floating_point()]
    if sum(buffer.numel() for buffer in found) != recipe.num_buffers or values.shape != (recipe.num_buffers,):
        raise ArtefactError(
            f"the network has {sum(b.numel() for b in found)} numbers in buffers, the recipe {recipe.num_buffers} and "
            f"the message {values.size}; every buffer that the data could move has to be coded"
        )
    start = 0
    for buffer in found:
        piece = np.array(values[start : start + buffer.numel()], dtype=np.float64)
        buffer.copy_(torch.from_numpy(piece).view(buffer.shape))
        start += buffer.numel()


def _tensor(values: np.ndarray, slot: Slot, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.array(values)).to(dtype).view(slot.shape)
