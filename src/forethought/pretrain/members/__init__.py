"""Members of one shape as one batched model: config, stacked model, optimisers, loss, averages and the run itself."""

from __future__ import annotations

from forethought.pretrain.members.config import FrontierConfig, Member, MembersConfig, seeds, steps_of
from forethought.pretrain.members.run import members_task, run_identity, train_members
from forethought.pretrain.members.stacked import StackedModel

__all__ = [
    "FrontierConfig",
    "Member",
    "MembersConfig",
    "StackedModel",
    "members_task",
    "run_identity",
    "seeds",
    "steps_of",
    "train_members",
]
