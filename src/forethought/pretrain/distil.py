"""Distillation: soft labels from cached laws, text sampled from members, a model from itself, and chains.

What is kept of a teacher's gain is counted as the paper counts it (Kim et al. 2025): against the best tuned single
model of the student's size, never against a weak baseline.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forethought.core import files, rng
from forethought.core.config import digest
from forethought.core.errors import ConfigError, DataError
from forethought.core.run import Exists
from forethought.data import Corpus, CorpusConfig, load_tokenizer, open_corpus, prepare_corpus
from forethought.nn import LanguageModel, load_language_model
from forethought.pretrain.batching import labelled_windows
from forethought.pretrain.labels import write_labels
from forethought.pretrain.members import Member, MembersConfig, train_members
from forethought.pretrain.slices import training_part

Sampler = Callable[[Path, int, int], Iterable[str]]
"""(model directory, number of tokens, seed) -> texts of about so many tokens in all."""


def soft_distil(
    settings: MembersConfig,
    teachers: Sequence[Path],
    out: Path,
    *,
    top: int = 0,
    temperature: float = 1.0,
    samples: Corpus | None = None,
    sampled_share: float = 0.75,
    exists: Exists = "refuse",
) -> dict[str, Any]:
    """Train students on the averaged probabilities of the teachers, cached once over the windows they all read.

    With `samples`, text that the teachers wrote, that share of the rows is theirs, with the teachers' laws there too:
    the student sees what they say about more text than there is. One teacher of the students' own size is
    self-distillation. The students are the members of `settings`, whose sources must be one prepared corpus; `out`
    holds them and `out.parent/labels-*` the cache.

    Raises:
        ConfigError: no teacher was given, or one has another vocabulary.
        InputError: as train_members.
    """
    corpus = open_corpus(settings.fit.sources[0])
    fit = settings.fit
    rows = fit.batch_size * fit.loop.accumulate
    data = training_part(corpus, settings.train_tokens, window=fit.context, rows=rows)
    identity = digest(
        {
            "corpus": corpus.identity,
            "tokens": data.num_tokens,
            "context": fit.context,
            "teachers": [files.sha256_file(path) for place in teachers for path in sorted(place.glob("*.safetensors"))],
            "top": top,
            "temperature": temperature,
            **({} if samples is None else {"samples": samples.identity}),
        }
    )
    cache = out.parent / f"labels-{identity[:16]}"
    other = None if samples is None else samples.train
    windows = labelled_windows(data, other, fit, seed=0, share=sampled_share)
    models = open_teachers(teachers, corpus, fit.device)
    write_labels(cache, models, windows, top=top, temperature=temperature, identity=identity)
    del models
    labelled = replace(settings, labels=str(cache))
    if samples is not None:
        labelled = replace(labelled, mixture=str(samples.path), mixture_share=sampled_share)
    return train_members(labelled, out, recipe="distil", exists=exists, title="students")


def chain_distil(
    settings: MembersConfig, out: Path, *, length: int, share: float = 0.5, temperature: float = 1.2, top: int = 0
) -> list[dict[str, Any]]:
    """Train a chain of models, each on the text and on the laws of the one before it alone; return their results.

    (1 - share) CE + share T^2 KL(teacher || student), teacher: the immediate predecessor (Q Labs 2026).

    Raises:
        ConfigError: length is below 2, or the settings hold more than one member.
        InputError: as train_members.
    """
    if length < 2 or len(settings.members) != 1:
        raise ConfigError(
            f"a chain needs a length of 2 or more and one member; given {length}, {len(settings.members)}"
        )
    mixed = replace(settings.fit.distillation, share=share, temperature=temperature)
    first = settings.members[0].seed
    results = [train_members(settings, out / "link-0", exists="resume", title="link 0")]
    for link in range(1, length):
        own = replace(settings, fit=replace(settings.fit, distillation=mixed), members=(_next(settings, first + link),))
        teacher = out / f"link-{link - 1}" / "models" / "member-0"
        place = out / f"link-{link}"
        results.append(soft_distil(own, [teacher], place, top=top, temperature=temperature, exists="resume"))
    return results


def sample_corpus(
    sampler: Sampler, members: Sequence[Path], corpus: Corpus, out: Path, *, num_tokens: int, seed: int = 0
) -> Corpus:
    """Prepare a corpus of text sampled from each member separately: their union is the sequence-level mixture.

    What is there of the same members and settings is opened.

    Raises:
        ConfigError: no members.
        DataError: the samples are too short to train on.
        RunExistsError: `out` holds a corpus of other samples.
    """
    if not members:
        raise ConfigError("no member was given to sample from; give model directories")
    if (out / "corpus.json").is_file():
        return open_corpus(out)
    share = -(-num_tokens // len(members))
    spool = out.parent / f"{out.name}.jsonl"
    files.make_directory(out.parent)
    with files.open_write(spool) as lines:
        for number, member in enumerate(members):
            for text in sampler(member, share, rng.derive_seed(seed, "pretrain.samples", number)):
                lines.write((json.dumps({"text": text}, ensure_ascii=False) + "\n").encode("utf-8", "replace"))
    config = CorpusConfig(
        tokenizer=str(corpus.path), validation_share=0.0, test_share=0.0, leak_policy="report", vocab_size=257
    )
    made = prepare_corpus([spool], out, config)
    if made.train.num_tokens < num_tokens // 4:
        raise DataError(
            f"the members wrote {made.train.num_tokens:,} distinct tokens where {num_tokens:,} were asked for; train "
            "them longer, sample at a higher temperature, or ask for fewer"
        )
    return made


def sequence_distil(
    settings: MembersConfig, samples: Corpus, out: Path, *, share: float = 0.75, exists: Exists = "refuse"
) -> dict[str, Any]:
    """Train students by plain cross-entropy on the real text mixed with sampled text, the real text `epochs` times.

    Raises:
        InputError: as train_members.
    """
    mixed = replace(settings, mixture=str(samples.path), mixture_share=share)
    return train_members(mixed, out, recipe="distil", exists=exists, title="students")


def retention(
    *,
    single: tuple[float, float],
    student: tuple[float, float],
    teacher: tuple[float, float],
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Return (L_single - L_student) / (L_single - L_teacher) with its interval, each loss given with its own sd.

    `single` is the best tuned single model of the student's size. Where the teacher's gain is within the noise there is
    nothing to keep a share of, and the share is None with a reason.
    """
    gain = single[0] - teacher[0]
    noise = (single[1] ** 2 + teacher[1] ** 2) ** 0.5
    if gain <= 2.0 * noise:
        return {"retention": None, "interval": None, "reason": f"the teacher's gain {gain:.4f} is within its noise"}
    draws = rng.generator(seed, "pretrain.retention").standard_normal((4000, 3))
    losses = np.array([single[0], student[0], teacher[0]]) + draws * np.array([single[1], student[1], teacher[1]])
    shares = (losses[:, 0] - losses[:, 1]) / np.maximum(losses[:, 0] - losses[:, 2], 1e-9)
    low, high = np.quantile(shares, [(1 - level) / 2, (1 + level) / 2])
    kept = (single[0] - student[0]) / gain
    return {"retention": kept, "interval": [float(low), float(high)], "reason": ""}


def open_teachers(places: Sequence[Path], corpus: Corpus, device: str) -> list[LanguageModel]:
    """Open teachers whose vocabulary is the corpus's.

    Raises:
        ConfigError: none was given, or one has another vocabulary.
        ArtefactError: a directory holds no language model.
    """
    if not places:
        raise ConfigError("no teacher was given; name the model directories of a run, such as RUN/models/member-0")
    for place in places:
        if load_tokenizer(place).digest != corpus.tokenizer.digest:
            raise ConfigError(
                f"the teacher {place} has another vocabulary than {corpus.path}; soft labels need the same tokens"
            )
    return [load_language_model(place, dtype=torch.float32, device=device).requires_grad_(False) for place in places]


def _next(settings: MembersConfig, seed: int) -> Member:
    return replace(settings.members[0], seed=seed)
