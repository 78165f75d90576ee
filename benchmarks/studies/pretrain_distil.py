"""Distillation of the ladder's ensemble into one member's size: which way keeps most of its gain, and of oneself.

A stage of pretrain_ladder.py. Arms are compared on the slice that settings are tuned on; what is reported of the chosen
one is its loss on the slice that nothing was chosen by.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from forethought.app.pretrain_students import sampler
from forethought.core import files
from forethought.data import Corpus, open_corpus
from forethought.pretrain import Member, MembersConfig, retention, sample_corpus, soft_distil
from forethought.pretrain.study import StudyConfig
from forethought.pretrain.study.recipes import settings_of
from forethought.stats import mean_interval

NUM_STUDENTS = 3
FIRST_SEED = 100  # students share no seed with a teacher


@dataclass(frozen=True)
class Arm:
    """One way to distil: passes as a multiple of the single model's, memory, share of the soft loss, temperature, and
    the share of sampled text."""

    name: str
    longer: float
    tau: float
    share: float = 1.0
    temperature: float = 1.0
    sampled: float = 0.0


ARMS = (
    Arm("soft", 1.0, 8.0),
    Arm("soft, hard mixed in", 1.0, 8.0, share=0.8),
    Arm("soft, with sampled text", 0.5, 8.0, sampled=0.75),
    Arm("soft, with sampled text, longer", 1.0, 8.0, sampled=0.75),
)
SELF_ARMS = (Arm("self, soft", 1.0, 4.0), Arm("self, with sampled text", 0.5, 4.0, sampled=0.75))
SELF_LONGER = (
    Arm("self, half sampled, longer", 1.0, 8.0, sampled=0.5),
    Arm("self, with sampled text, longer", 1.0, 8.0, sampled=0.75),
    Arm("self, with sampled text, twice as long", 2.0, 8.0, sampled=0.75),
)


@dataclass(frozen=True)
class Subject:
    """What is distilled: the rows of the best single model and of the ensemble of one size, and where models lie."""

    study: StudyConfig
    single: Mapping[str, Any]
    ensemble: Mapping[str, Any]
    points: Path
    out: Path
    num_samples: int

    @property
    def settings(self) -> MembersConfig:
        """Return what all students share."""
        shape = next(each for each in self.study.sizes if str(self.single["shape"]).startswith(f"{each.hidden_size}x"))
        return settings_of(self.study, shape, int(self.single["data"]))

    def teachers(self, row: Mapping[str, Any]) -> list[Path]:
        """Return the model directories of a row."""
        return [self.points / str(place) for place in row["models"]]


def distil_all(subject: Subject, *, arms: Sequence[Arm] = ARMS, own: Sequence[Arm] = SELF_ARMS) -> dict[str, Any]:
    """Distil the ensemble by every arm, and one single model into its own size; return losses and what is kept."""
    many = subject.teachers(subject.ensemble)
    single, teacher = subject.single, subject.ensemble
    rows = [_arm(subject, arm, many, "ensemble") for arm in arms]
    chosen = min(rows, key=lambda row: row["tune_loss"])
    noise = float(single["seed_sd"]) / len(single["seed_losses"]) ** 0.5
    return {
        "shape": single["shape"],
        "data": single["data"],
        "single_loss": single["loss"],
        "teacher_loss": teacher["loss"],
        "arms": rows,
        "chosen": chosen["arm"],
        "kept": retention(
            single=(float(single["loss"]), noise),
            student=(chosen["loss"], chosen["sd"]),
            teacher=(float(teacher["loss"]), float(teacher["seed_sd"]) / len(teacher["seed_losses"]) ** 0.5),
        ),
        **distil_self(subject, own),
    }


def distil_self(subject: Subject, arms: Sequence[Arm] = SELF_LONGER) -> dict[str, Any]:
    """Distil a single model into its own size by every arm; return losses and what is gained over the teacher."""
    single = subject.single
    rows = [_arm(subject, arm, subject.teachers(single)[:1], "self") for arm in arms]
    chosen = min(rows, key=lambda row: row["tune_loss"])
    return {
        "self_arms": rows,
        "self_chosen": chosen["arm"],
        "self_teacher_loss": single["seed_losses"][0],
        "self_gain": _gain(float(single["seed_losses"][0]), chosen["report_losses"]),
        "self_gain_over_mean": float(single["loss"]) - chosen["loss"],
    }


def _gain(teacher: float, students: Sequence[float]) -> dict[str, Any]:
    found = mean_interval([teacher - loss for loss in students])
    return {"nats": found.estimate, "interval": [found.low, found.high], "students": len(students)}


def _arm(subject: Subject, arm: Arm, teachers: Sequence[Path], what: str) -> dict[str, Any]:
    epochs = arm.longer * float(subject.single["point"]["epochs"])
    settings, out = subject.settings, subject.out / what / arm.name.replace(",", "").replace(" ", "-")
    mixed = replace(settings.fit.distillation, share=arm.share)
    lr = float(subject.single["point"]["lr"])
    members = tuple(Member(seed=FIRST_SEED + k, lr=lr, tau=arm.tau) for k in range(NUM_STUDENTS))
    own = replace(settings, fit=replace(settings.fit, distillation=mixed), members=members, epochs=epochs)
    samples = _samples(subject, teachers, what) if arm.sampled else None
    result = soft_distil(
        own,
        teachers,
        out,
        temperature=arm.temperature,
        samples=samples,
        sampled_share=arm.sampled,
        exists="resume",
    )
    found = result["members"]
    losses = [float(member["report_loss"]) for member in found]
    return {
        "arm": arm.name,
        "teachers": len(teachers),
        "epochs": epochs,
        "tau": arm.tau,
        "share": arm.share,
        "temperature": arm.temperature,
        "sampled_share": arm.sampled,
        "sampled_tokens": 0 if samples is None else samples.train.num_tokens,
        "tune_loss": statistics.fmean(float(member["tune_loss"]) for member in found),
        "loss": statistics.fmean(losses),
        "sd": statistics.stdev(losses) / len(losses) ** 0.5,
        "report_losses": losses,
    }


def _samples(subject: Subject, teachers: Sequence[Path], what: str) -> Corpus:
    place = subject.out / f"{what}-samples"
    files.make_directory(subject.out)
    real = open_corpus(subject.study.fit.sources[0])
    return sample_corpus(sampler(), teachers, real, place, num_tokens=subject.num_samples, seed=7)
