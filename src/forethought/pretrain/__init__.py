"""Pre-training on a fixed corpus: fits, members as one batched model, ensembles, distillation, searches and laws.

Start with config.py and fit.py for one model, members/ for many, study/ for recipes over sizes and data.
"""

from __future__ import annotations

from forethought.pretrain.config import DistillationConfig, FitConfig, ModelShape
from forethought.pretrain.continued import ContinueConfig, continue_training
from forethought.pretrain.distil import chain_distil, retention, sample_corpus, sequence_distil, soft_distil
from forethought.pretrain.fit import fit
from forethought.pretrain.inputs import prepare
from forethought.pretrain.members import FrontierConfig, Member, MembersConfig, seeds, train_members
from forethought.pretrain.objective import distillation_loss, next_token_loss
from forethought.pretrain.study import Grid, Point, StudyConfig, ladder

__all__ = [
    "ContinueConfig",
    "DistillationConfig",
    "FitConfig",
    "FrontierConfig",
    "Grid",
    "Member",
    "MembersConfig",
    "ModelShape",
    "Point",
    "StudyConfig",
    "chain_distil",
    "continue_training",
    "distillation_loss",
    "fit",
    "ladder",
    "next_token_loss",
    "prepare",
    "retention",
    "sample_corpus",
    "seeds",
    "sequence_distil",
    "soft_distil",
    "train_members",
]
