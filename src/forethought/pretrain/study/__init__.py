"""Studies: search with a certificate, recipes, the ladder over sizes and data, and the laws fitted to it."""

from __future__ import annotations

from forethought.pretrain.affordable import seconds_of
from forethought.pretrain.study.afford import MembersBudget
from forethought.pretrain.study.budget import Plan, plan
from forethought.pretrain.study.config import StudyConfig
from forethought.pretrain.study.ladder import ladder
from forethought.pretrain.study.laws import laws_of
from forethought.pretrain.study.points import PointStore
from forethought.pretrain.study.search import Certificate, Grid, Point, box, certificate, search

__all__ = [
    "Certificate",
    "Grid",
    "MembersBudget",
    "Plan",
    "Point",
    "PointStore",
    "StudyConfig",
    "box",
    "certificate",
    "ladder",
    "laws_of",
    "plan",
    "search",
    "seconds_of",
]
