"""The recipes on a few hundred kilobytes of English novels: sizes, data budgets, ensembles, distillation, and the laws.

    python benchmarks/studies/pretrain_ladder.py --data DIR --work DIR [--only STAGE ...] [--quick --out FILE]

Every stage is a call of the library; what is trained is kept under --work by a hash of its settings and its text, so
that a stage that ended is not run again and an interrupted one goes on. --data holds novels100.jsonl.gz: passages are
drawn from all novels alike and shuffled, so that training and held-out text come from one population, as documents of
a crawl do.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pretrain_distil import Subject, distil_all, distil_self
from pretrain_study import passages, shape, spent, timed, write_study
from pretrain_summary import summarise

from forethought.core import files
from forethought.core.config import to_dict
from forethought.data import CorpusConfig, open_corpus, prepare_corpus
from forethought.pretrain import FitConfig, Grid, ModelShape, Point, StudyConfig
from forethought.pretrain.study import ladder
from forethought.pretrain.study.ladder import Climb
from forethought.train import LoopConfig, OptimiserConfig

NAME = "pretrain_ladder"
SOURCE = "novels100.jsonl.gz"
PER_NOVEL = 30  # passages
GROUP = 6  # members a batch, which is never slower than members apart at these sizes


Stage = Callable[["Scale", Path, Path], dict[str, Any]]


@dataclass(frozen=True)
class Scale:
    """What a run of the study costs: data budgets, sizes, and the grid at each budget."""

    sizes: tuple[tuple[int, int], ...]
    data: tuple[int, ...]
    more_data: tuple[int, ...]
    wider: tuple[tuple[int, int], ...]
    standard_seeds: int
    epochs: tuple[float, ...]
    evaluation_tokens: int
    members: int
    samples: int


FULL = Scale(
    sizes=((8, 1), (16, 1), (32, 1), (64, 1), (128, 1)),
    data=(4096, 8192, 16_384),
    more_data=(32_768,),
    wider=((256, 1), (256, 2)),
    standard_seeds=8,
    epochs=(2, 4, 8, 16, 32),
    evaluation_tokens=16_384,
    members=5,
    samples=65_536,
)
QUICK = Scale(((16, 1), (24, 1)), (1024, 1536), (2048,), ((32, 1),), 3, (1, 2, 4), 2048, 2, 1024)


def corpus(data: Path, work: Path) -> Path:
    """Return the prepared corpus of the study."""
    source = passages(data / SOURCE, work / "passages.jsonl", per_document=PER_NOVEL)
    config = CorpusConfig(vocab_size=512, validation_share=0.1, test_share=0.1)
    return prepare_corpus([source], work / "corpus", config).path


def study(scale: Scale, place: Path) -> StudyConfig:
    """Return the ladder: windows of 64, batches of 2, and rates, memories and passes to search."""
    fit = FitConfig(
        sources=(str(place),),
        model=shape(*scale.sizes[0]),
        optimiser=OptimiserConfig(lr=3e-3, tau=2.0),
        loop=LoopConfig(evaluate_every=0, checkpoint_every=0, log_every=50),
        batch_size=2,
        context=64,
        max_positions=512,
        evaluation_tokens=scale.evaluation_tokens,
    )
    longest = scale.epochs[-1]
    return StudyConfig(
        fit=fit,
        sizes=tuple(shape(*size) for size in scale.sizes),
        data=scale.data,
        grid=Grid(tau=(0.5, 1.0, 2.0, 4.0, 8.0, 16.0), lr=(1e-3, 3e-3, 1e-2), epochs=scale.epochs),
        start=Point(tau=2.0, lr=3e-3, epochs=longest),
        standard_start=Point(tau=None, lr=3e-3, epochs=scale.epochs[-3]),
        searched=1,
        longer=1.0,
        search_ensemble=True,
        search_members=min(3, scale.members),
        members=scale.members,
        group=GROUP,
    )


def climb(budgets: int) -> Stage:
    """All recipes over sizes at the first so many data budgets; those of earlier stages are found trained."""

    def stage(scale: Scale, work: Path, place: Path) -> dict[str, Any]:
        settings = replace(study(scale, place), data=scale.data[:budgets])
        return ladder(settings, work / f"ladder-{budgets}", exists="resume", cache=work / "points")

    return stage


def more_data(scale: Scale, work: Path, place: Path) -> dict[str, Any]:
    """The standard recipe on more text than the others have: what its law says can then be seen."""
    settings = more_of(scale, study(scale, place))
    return ladder(settings, work / "more", exists="resume", cache=work / "points")


def wide(scale: Scale, work: Path, place: Path) -> dict[str, Any]:
    """The standard recipe at more sizes and over more seeds: its losses vary most, and its upturn is asked for."""
    return ladder(wide_of(scale, study(scale, place)), work / "wide", exists="resume", cache=work / "points")


def wide_of(scale: Scale, settings: StudyConfig) -> StudyConfig:
    """Return the ladder of the standard recipe with wider models and more seeds."""
    sizes = (*settings.sizes, *(shape(*size) for size in scale.wider))
    return replace(settings, recipes=("standard",), sizes=sizes, noise_seeds=scale.standard_seeds)


def tuned(scale: Scale, work: Path, place: Path) -> dict[str, Any]:
    """The regularised recipe searched at every data budget, where the ladder takes over what it found at the first."""
    settings = tuned_of(scale, study(scale, place))
    return ladder(settings, work / "tuned", exists="resume", cache=work / "points")


def tuned_of(scale: Scale, settings: StudyConfig) -> StudyConfig:
    """Return the ladder of the regularised recipe that is searched everywhere."""
    return replace(settings, recipes=("regularised",), searched=len(scale.data))


def trained_so_far(scale: Scale, work: Path, place: Path) -> list[dict[str, Any]]:
    """Return the rungs that are trained, though a stage may not have ended: what lacks of a search is said."""
    settings = study(scale, place)
    rungs: dict[tuple[Any, ...], dict[str, Any]] = {}
    # A search that began without the smallest size began at another point; its rungs count where they are trained.
    for each in (
        wide_of(scale, settings),
        tuned_of(scale, settings),
        settings,
        replace(settings, sizes=settings.sizes[1:]),
        more_of(scale, settings),
    ):
        # No time at all: whatever is not found trained is refused.
        climbed = Climb(each, open_corpus(place), work / "points", 1e-9, lambda _record: None)
        whole = climbed.plan(None)
        for row in climbed.result(climbed.climb(whole), whole)["rows"]:
            rungs.setdefault((row["recipe"], row["data"], row["shape"]), row)
    return list(rungs.values())


def more_of(scale: Scale, settings: StudyConfig) -> StudyConfig:
    """Return the ladder of the standard recipe on more text."""
    return replace(settings, data=scale.more_data, recipes=("standard",), sizes=shapes(scale)[-3:])


def distilled(budgets: int) -> Stage:
    """The ensemble of the last size but one, at the last of so many data budgets, into one of its members' size."""

    def stage(scale: Scale, work: Path, place: Path) -> dict[str, Any]:
        return distil_all(subject(scale, work, place, budgets))

    return stage


def longer_self(scale: Scale, work: Path, place: Path) -> dict[str, Any]:
    """A single model into its own size, on more passes over more sampled text, where that may be what lacks."""
    return distil_self(subject(scale, work, place, 2))


def subject(scale: Scale, work: Path, place: Path, budgets: int) -> Subject:
    """Return what is distilled at the last of so many data budgets: the last size but one."""
    found = files.read_json(work / f"ladder-{budgets}.json", what="the ladder before")["rows"]
    width, layers = scale.sizes[-2]
    data = scale.data[budgets - 1]
    own = [row for row in found if row["shape"] == f"{width}x{layers}" and row["data"] == data]
    single, teacher = (next(row for row in own if row["recipe"] == name) for name in ("regularised", "ensemble"))
    out = work / f"distil-{budgets}"
    return Subject(study(scale, place), single, teacher, work / "points", out, scale.samples)


def shapes(scale: Scale) -> tuple[ModelShape, ...]:
    """Return the sizes of the study."""
    return tuple(shape(*size) for size in scale.sizes)


STAGES: dict[str, Stage] = {
    "ladder-1": climb(1),
    "distil-1": distilled(1),
    "ladder-2": climb(2),
    "distil-2": distilled(2),
    "more": more_data,
    "ladder-3": climb(3),
    "wide": wide,
    "self-2": longer_self,
    "distil-3": distilled(3),
    "tuned": tuned,
}


def main() -> None:
    """Run the stages and write the result of those that have ended."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, help=f"the folder of {SOURCE}")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument(
        "--only", nargs="*", default=list(STAGES), choices=list(STAGES), help="stages; none: report only"
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    torch.set_num_threads(1)
    scale = QUICK if given.quick else FULL
    place = corpus(given.data, given.work)
    for name in given.only:
        timed(given.work, name, lambda name=name: STAGES[name](scale, given.work, place))
    ended = [name for name in STAGES if (given.work / f"{name}.json").is_file()]
    stages = {name: timed(given.work, name, dict)[0] for name in ended}
    write_study(
        NAME,
        given,
        seeds=list(range(max(scale.members, 4))),
        cpu_seconds=sum(spent(given.work, name) for name in STAGES),
        settings=vars(scale) | {"source": SOURCE, "stages": ended, "study": to_dict(study(scale, place))},
        **summarise(trained_so_far(scale, given.work, place), stages),
    )


if __name__ == "__main__":
    main()
