"""Distillation of members into one: soft labels, sampled text, a model from itself, a chain; with what is kept."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from forethought.app.arguments import chosen_recipe, parse, say, table
from forethought.app.ensemble import model_places, score_runs
from forethought.app.recipes.pretrain import MEMBERS_RECIPES
from forethought.core import rng
from forethought.core.config import from_dict
from forethought.core.errors import ConfigError, RunExistsError
from forethought.core.run import open_run
from forethought.data import Corpus, open_corpus
from forethought.decode import LLM, SamplingParams
from forethought.pretrain.distil import chain_distil, retention, sample_corpus, sequence_distil, soft_distil
from forethought.pretrain.members import MembersConfig, seeds
from forethought.pretrain.scores import open_scores

_BATCH = 16  # samples that the engine writes side by side


@dataclass(frozen=True)
class StudentsArguments:
    """Distil the members of a run into models of one member's size, and say which share of their gain is kept."""

    settings: Annotated[MembersConfig, tyro.conf.arg(name="")]
    from_run: Path
    """A finished run of `pretrain ensemble`: the teachers, and the corpus."""
    out: Path
    """The directory to write."""
    mode: Literal["soft", "self", "sequence", "chain"] = "soft"
    """soft: cached probabilities of all members; self: of one; sequence: text sampled from each; chain: one after
    another."""
    single_run: Path | None = None
    """A run of the best tuned single model of this size, over seeds; None: the teachers' own members, which are worse
    alone where they were tuned for the ensemble, so that the share kept is then too kind."""
    recipe: str = "members"
    """The named config that gives every default of the students."""
    students: int = 3
    """Students that differ by seed: the noise floor."""
    top: int = 0
    """Teacher probabilities kept a position; 0: all of them, where they fit."""
    temperature: float = 1.0
    """Softens teacher and student alike."""
    share: float = 0.75
    """sequence: share of sampled text. chain: share of the soft loss."""
    sampled: float = 0.0
    """soft, self: share of rows of text sampled from the teachers, with their probabilities there too."""
    tokens: int = 262_144
    """Tokens to sample, where sampled text is asked for."""
    length: int = 3
    """chain: how many links."""
    exists: Literal["resume", "refuse", "replace"] = "refuse"
    """What to do when the run directory is already there."""
    json: bool = False
    """Print the result as one last line on standard output."""


def students_verb(arguments: list[str]) -> dict[str, Any]:
    """Run `forethought pretrain distil --from-run RUN` and return its result.

    Raises:
        InputError: a flag, a run or the directory cannot be used.
    """
    name, recipe = chosen_recipe(arguments, MEMBERS_RECIPES, "members")
    default = StudentsArguments(settings=recipe, from_run=tyro.MISSING, out=tyro.MISSING, recipe=name)
    given = parse(StudentsArguments, arguments, verb="pretrain distil", default=default)
    teachers = score_runs([given.from_run])
    settings = student_settings(given)
    if given.exists == "refuse" and given.out.exists():
        raise RunExistsError(f"{given.out} already exists; say --exists resume to go on with it, or give another one")
    result = _DISTIL[given.mode](given, settings)
    single = _losses(given.single_run or given.from_run)
    student = [float(member["report_loss"]) for member in result["members"]]
    teacher = teachers["ensemble_loss"] if given.mode in ("soft", "sequence") else _losses(given.from_run)[0]
    floor = _sd_of_mean(single)
    kept = retention(
        single=(statistics.fmean(single), floor),
        student=(statistics.fmean(student), _sd_of_mean(student) or floor),
        teacher=(teacher, floor),
    )
    found = {
        "kind": "pretrain.students",
        "mode": given.mode,
        "out": str(given.out),
        "single_losses": single,
        "student_losses": student,
        "teacher_loss": teacher,
        **kept,
    }
    say(students_summary(found), as_json=given.json)
    return found


def student_settings(given: StudentsArguments) -> MembersConfig:
    """Return the students' config: the teachers' corpus, shape, windows and tokens, and seeds of their own."""
    recorded = open_run(given.from_run)["config"]["config"]
    teachers = from_dict(MembersConfig, recorded, source=str(given.from_run / "config.json"))
    own = given.from_run / "corpus"
    source = str(own) if own.is_dir() else teachers.fit.sources[0]
    optimiser, loop = given.settings.fit.optimiser, given.settings.fit.loop
    fit = replace(teachers.fit, sources=(source,), optimiser=optimiser, loop=loop)
    first = 1 + max(member.seed for member in teachers.members)
    members = seeds(1 if given.mode == "chain" else given.students, first=first)
    return replace(given.settings, fit=fit, members=members, train_tokens=teachers.train_tokens)


def sampler(temperature: float = 1.0, length: int = 256) -> Any:
    """Return a function from (model, tokens, seed) to texts sampled from nothing but the beginning of a document."""

    def sample(model: Path, num_tokens: int, seed: int) -> Iterator[str]:
        with LLM(model, max_num_seqs=_BATCH) as engine:
            begin = {"prompt_token_ids": [engine.served.tokenizer.end_of_text]}
            written, number = 0, 0
            while written < num_tokens:
                params = [
                    SamplingParams(
                        max_tokens=length, temperature=temperature, seed=rng.derive_seed(seed, "samples", number + k)
                    )
                    for k in range(_BATCH)
                ]
                number += _BATCH
                for output in engine.generate([begin] * _BATCH, params):
                    written += max(1, len(output.outputs[0].token_ids))
                    yield output.outputs[0].text

    return sample


def students_summary(result: dict[str, Any]) -> str:
    """Return the figures of a distillation for a person."""
    kept = result["retention"]
    rows = {
        "best single": f"{statistics.fmean(result['single_losses']):.4f} over {len(result['single_losses'])} seeds",
        "teacher": f"{result['teacher_loss']:.4f}",
        "student": f"{statistics.fmean(result['student_losses']):.4f} over {len(result['student_losses'])} seeds",
    }
    if kept is None:
        rows["kept"] = result["reason"]
    else:
        low, high = result["interval"]
        rows["kept"] = f"{kept:.2f} of the gain (95 % {low:.2f} to {high:.2f})"
    return table(rows)


def _teachers(given: StudentsArguments) -> Sequence[Path]:
    names = [f"{given.from_run.name}/{name}" for name in open_scores(given.from_run / "scores").names]
    places = model_places([given.from_run], names)
    return places[:1] if given.mode == "self" else places


def _soft(given: StudentsArguments, settings: MembersConfig) -> dict[str, Any]:
    return soft_distil(
        settings,
        _teachers(given),
        given.out,
        top=given.top,
        temperature=given.temperature,
        samples=_samples(given, settings) if given.sampled else None,
        sampled_share=given.sampled,
        exists=given.exists,
    )


def _sequence(given: StudentsArguments, settings: MembersConfig) -> dict[str, Any]:
    return sequence_distil(settings, _samples(given, settings), given.out, share=given.share, exists=given.exists)


def _samples(given: StudentsArguments, settings: MembersConfig) -> Corpus:
    corpus = open_corpus(settings.fit.sources[0])
    place = given.out.with_name(f"{given.out.name}-samples")
    teachers, seed = _teachers(given), settings.fit.seed
    return sample_corpus(sampler(given.temperature), teachers, corpus, place, num_tokens=given.tokens, seed=seed)


def _chain(given: StudentsArguments, settings: MembersConfig) -> dict[str, Any]:
    links = chain_distil(
        settings, given.out, length=given.length, share=given.share, temperature=given.temperature, top=given.top
    )
    return links[-1]


def _sd_of_mean(losses: Sequence[float]) -> float:
    return statistics.stdev(losses) / len(losses) ** 0.5 if len(losses) > 1 else 0.0


def _losses(run: Path) -> list[float]:
    result = open_run(run)["result"] or {}
    if result.get("kind") != "pretrain.members":
        raise ConfigError(f"{run} is no finished run of members; give one that `pretrain ensemble` wrote")
    return [float(m["report_loss"]) for m in result["members"] if str(m["name"]).startswith("member-")]


_DISTIL = {"chain": _chain, "self": _soft, "sequence": _sequence, "soft": _soft}
