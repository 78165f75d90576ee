"""The decoder: from a message to the network that it means, and nothing that trains.

recipe.py says what a declared prior can fix; architectures.py is the closed table of networks; base.py draws their
first weights from integers, the same on every machine; subspace.py spreads few numbers over many weights; rebuild.py
puts them together; scoring.py counts errors and token losses of the rebuilt network.
"""

from __future__ import annotations

from forethought.certify.decoder.architectures import ARCHITECTURES, Architecture, build_module
from forethought.certify.decoder.rebuild import Assembly, Network, Plan, assembly_of, network_of, plan_of
from forethought.certify.decoder.recipe import (
    BaseRecipe,
    CodebookRecipe,
    LoraRecipe,
    Prior,
    Recipe,
    SubspaceRecipe,
    TokenScoring,
    ZeroOneScoring,
)
from forethought.certify.decoder.scoring import count_errors, token_losses
from forethought.certify.decoder.subspace import SUBSPACES, Subspace, subspace

__all__ = [
    "ARCHITECTURES",
    "SUBSPACES",
    "Architecture",
    "Assembly",
    "BaseRecipe",
    "CodebookRecipe",
    "LoraRecipe",
    "Network",
    "Plan",
    "Prior",
    "Recipe",
    "Subspace",
    "SubspaceRecipe",
    "TokenScoring",
    "ZeroOneScoring",
    "assembly_of",
    "build_module",
    "count_errors",
    "network_of",
    "plan_of",
    "subspace",
    "token_losses",
]
