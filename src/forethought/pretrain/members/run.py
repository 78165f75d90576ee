"""A batched run: the members of one shape from a corpus to scored, exported models in one resumable directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forethought.core import files
from forethought.core.artefact import resolve
from forethought.core.config import digest, from_dict, to_dict
from forethought.core.errors import ConfigError, InputError
from forethought.core.progress import track
from forethought.core.run import CONFIG, Exists, Run
from forethought.data import Corpus, PackedBatches, TokenDataset, load_tokenizer, open_corpus
from forethought.nn import LanguageModel, load_language_model, num_parameters, save_language_model
from forethought.pretrain.batching import Mixture, Order, Reshuffled, labelled_windows, stacked_batches
from forethought.pretrain.evaluate import bits_per_byte
from forethought.pretrain.export.card import CARD, member_result, model_card, weights_note
from forethought.pretrain.inputs import check_corpus, check_mixture, open_or_prepare
from forethought.pretrain.labels import open_labels
from forethought.pretrain.members.averages import Averages, Candidate
from forethought.pretrain.members.config import Member, MembersConfig, steps_of
from forethought.pretrain.members.loss import members_loss
from forethought.pretrain.members.optim import StackedOptimisers, cycles_of
from forethought.pretrain.members.stacked import StackedModel
from forethought.pretrain.scores import Scores, loss_interval, token_log_probabilities, write_scores
from forethought.pretrain.slices import held_out_slices, training_part
from forethought.train import open_parallel, train

MODELS, SCORES = "models", "scores"
_SCORED_TOKENS = 2048  # tokens that are scored at a time, where a training batch has fewer


def train_members(
    settings: MembersConfig,
    out: Path | str,
    *,
    recipe: str = "members",
    exists: Exists = "refuse",
    title: str = "members",
    export: bool = True,
    afford: Callable[[MembersConfig, Corpus, Path], MembersConfig] | None = None,
) -> dict[str, Any]:
    """Train the members as one batched model, score them on the held-out slices and export them; return the result.

    Each member's losses are those of a run by itself. `afford` may leave members out once the corpus is there: it gets
    the settings, the corpus and the directory. The directory holds `models/NAME` (Hugging Face layout) and
    `scores`, with one candidate a member and one for each average or snapshot that was kept. A finished run that is
    resumed returns its result at once.

    Raises:
        InputError: the corpus, the config or the directory cannot be used.
        InterruptedRunError: interrupted and saved.
        TrainingError: a loss is no longer finite; the last good checkpoint is kept.
    """
    out = Path(out)
    with (
        open_parallel(settings.fit.parallel, settings.fit.device) as parallel,
        Run.open(out, config=settings, recipe=recipe, exists=exists, allow=("fit.device",)) as run,
    ):
        finished = run.result()
        if finished is not None:
            return finished
        try:
            corpus = open_or_prepare(settings.fit, out, parallel)
            check_corpus(run, corpus)
            work = MembersRun(afford(settings, corpus, out) if afford else settings, corpus, run)
        except InputError:
            run.discard()
            raise
        work.train(parallel, title)
        return work.conclude(export=export)


class MembersRun:
    """One batched run under way."""

    def __init__(self, settings: MembersConfig, corpus: Corpus, run: Run) -> None:
        self.settings, self.corpus, self.run = settings, corpus, run
        fit = settings.fit
        self.slices = held_out_slices(corpus, fit.evaluation_tokens)
        rows = fit.batch_size * fit.loop.accumulate
        self.data = training_part(corpus, settings.train_tokens, window=fit.context, rows=rows)
        packed = PackedBatches(self.data, batch_size=fit.batch_size, context=fit.context, seed=0)
        # As a single fit counts them, so that the decay derived from tau is the same.
        self.steps_per_epoch = packed.steps_per_epoch / fit.loop.accumulate
        self.steps = steps_of(settings, packed.windows_per_epoch)
        self.shape = fit.model.transformer(corpus.tokenizer.vocab_size, max(fit.max_positions, fit.context))
        members = first_models(settings, corpus)
        self.shape = members[0].config
        frontier = settings.frontier
        self.model = StackedModel(members, dropout=frontier.dropout, ahead=frontier.ahead_share > 0)
        self.model.train()
        if settings.mixture is not None:
            check_mixture(open_corpus(settings.mixture), self.slices, corpus.config.leak_threshold)
        self.averages = Averages(run.directory / "snapshots", self.model, self._snapshot_steps(), fit.loop.ema_decay)

    def train(self, parallel: Any, title: str) -> None:
        """Train from the newest checkpoint, or from the start, to the end."""
        settings, fit = self.settings, self.settings.fit
        self.model.place(parallel.device)
        labels = None if settings.labels is None else open_labels(Path(settings.labels))
        orders = [self._order(member) for member in settings.members]
        # The optimisers clip each member by itself; one norm over all would couple them.
        loop = replace(fit.loop, steps=self.steps, clip_norm=None)
        self.averages.catch_up(self.run)
        records = train(
            self.model,
            loss=members_loss(
                settings.members,
                settings.frontier,
                labels=labels,
                distillation=fit.distillation,
                device=parallel.device,
            ),
            batches=stacked_batches(orders),
            optimisers=StackedOptimisers(
                self.model,
                [settings.optimiser(member) for member in settings.members],
                steps_per_epoch=self.steps_per_epoch,
                clip_norm=fit.loop.clip_norm,
                cycles=cycles_of(settings.frontier, self.steps),
            ),
            run=self.run,
            settings=loop,
            seed=fit.seed,
            parallel=parallel,
            evaluate=self._evaluate,
        )
        with track(title, self.steps) as progress:
            for record in records:
                self.averages.record(record.step)
                loss = record.metrics.get("loss")
                held_out = (record.evaluation or {}).get("validation_loss")
                mean = None if loss is None else loss / self.model.num_members
                progress.update(record.step, loss=mean, validation=held_out)

    def conclude(self, *, export: bool) -> dict[str, Any]:
        """Score, export and write the result."""
        self.model.eval()
        candidates = self.averages.candidates(self.run, self.settings.keep_averages)
        slices: dict[str, list[Any]] = {name: [] for name in self.slices}
        for _, _, values in candidates:
            model = self._plain(values)
            for each, dataset in self.slices.items():
                slices[each].append(self._log_probabilities(model, dataset))
        names = tuple(name for name, _, _ in candidates)
        identity = scored_identity(self.corpus, self.settings)
        scores = Scores(names, identity, {each: np.stack(rows) for each, rows in slices.items()})
        write_scores(self.run.directory / SCORES, scores)
        result = self._result(scores)
        if export:
            self._export(candidates, scores, result)
        self.run.write_result(result)
        return result

    def _export(self, candidates: Sequence[Candidate], scores: Scores, result: Mapping[str, Any]) -> None:
        """Publish every candidate as a model directory with its card."""
        settings, context = self.settings, self.settings.fit.context
        recipe = str(files.read_json(self.run.directory / CONFIG, what="run config")["recipe"])
        made_of = {
            "teacher": settings.labels and f"cached laws `{Path(settings.labels).name}`",
            "base": settings.base and weights_note(settings.base),
            "mixture": settings.mixture and f"`{Path(settings.mixture).name}`, share {settings.mixture_share:g}",
        }
        for row, (name, k, values) in enumerate(candidates):
            intervals = {each: loss_interval(rows[row], context) for each, rows in scores.slices.items()}
            own = member_result({**result, **made_of, "seed": settings.members[k].seed}, row, intervals)
            card = model_card(own, name=name, recipe=recipe, settings=to_dict(settings.fit))
            facts = {"seed": settings.members[k].seed, "steps": self.steps}
            place = self.run.directory / MODELS / name
            place.parent.mkdir(exist_ok=True)
            save_language_model(
                self._plain(values),
                place,
                self.corpus.path,
                replace=True,
                extra_facts=facts,
                extra_files={CARD: card.encode()},
            )

    def _result(self, scores: Scores) -> dict[str, Any]:
        settings, parameters = self.settings, num_parameters(self.shape)
        report = self.slices["report"]
        members: list[dict[str, Any]] = []
        for row, name in enumerate(scores.names):
            losses = {each: float(-rows[row].mean(dtype="f8")) for each, rows in scores.slices.items()}
            members.append({"name": name, **{f"{each}_loss": loss for each, loss in losses.items()}})
            members[-1]["report_bits_per_byte"] = bits_per_byte(losses["report"], report)
        for k, member in enumerate(settings.members):
            optimiser = settings.optimiser(member)
            rate = optimiser.muon_lr if optimiser.name == "muon" else optimiser.lr
            decay = optimiser.decay(self.steps_per_epoch, lr=rate)
            own = {"lr": optimiser.lr, "weight_decay": decay, "seed": member.seed}
            own["tau"] = 1.0 / (rate * decay * self.steps_per_epoch) if decay else None
            members[k] |= own
        return {
            "kind": "pretrain.members",
            "members": members,
            "steps": self.steps,
            "epochs": settings.epochs,
            "train_tokens": self.data.num_tokens,
            "steps_per_epoch": self.steps_per_epoch,
            "parameters": parameters.total,
            "parameters_non_embedding": parameters.non_embedding,
            "held_out_tokens": {name: dataset.num_tokens for name, dataset in self.slices.items()},
            "vocab_size": self.shape.vocab_size,
            "corpus": self.corpus.report,
            "corpus_identity": self.corpus.identity,
        }

    def _evaluate(self, _model: torch.nn.Module) -> Mapping[str, float]:
        figures: dict[str, float] = {}
        for k, member in enumerate(self.model.members):
            logs = self._log_probabilities(member.model, self.slices["tune"])
            figures[f"validation_loss_{k}"] = float(-logs.mean(dtype="f8"))
        return {"validation_loss": sum(figures.values()) / len(figures), **figures}

    def _log_probabilities(self, model: torch.nn.Module, dataset: TokenDataset) -> Any:
        fit = self.settings.fit
        # Small training batches would make scoring a third of a small run.
        rows = max(fit.batch_size, _SCORED_TOKENS // fit.context)
        return token_log_probabilities(model, dataset, batch_size=rows, context=fit.context)

    def _plain(self, values: Mapping[str, torch.Tensor]) -> LanguageModel:
        model = LanguageModel(self.shape).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(values[name])
        return model

    def _order(self, member: Member) -> Order:
        fit, settings = self.settings.fit, self.settings
        seed = member.seed if member.order_seed is None else member.order_seed
        if settings.labels is not None:
            other = None if settings.mixture is None else open_corpus(settings.mixture).train
            share = settings.mixture_share
            return labelled_windows(self.data, other, fit, seed=seed, share=share)
        packing = {"context": fit.context, "seed": seed, "document_mask": fit.document_mask}
        if settings.mixture is None:
            packed = PackedBatches(self.data, batch_size=fit.batch_size, **packing)
            return Reshuffled(packed, reshuffle=settings.frontier.reshuffle)
        other = open_corpus(settings.mixture)
        if other.tokenizer.digest != self.corpus.tokenizer.digest:
            raise ConfigError(
                f"the mixture {settings.mixture} has another vocabulary than {self.corpus.path}; prepare it with that "
                "corpus's tokenizer (corpus.tokenizer)"
            )
        return Mixture(
            PackedBatches(self.data, batch_size=1, **packing),
            PackedBatches(other.train, batch_size=1, stream="mixture", **packing),
            share=settings.mixture_share,
            batch_size=fit.batch_size,
        )

    def _snapshot_steps(self) -> list[int]:
        cycles = cycles_of(self.settings.frontier, self.steps)
        if cycles is not None:
            return cycles.ends()[:-1]
        last = self.settings.frontier.last_k
        epochs = [round(self.steps_per_epoch * epoch) for epoch in range(1, int(self.settings.epochs) + 1)]
        return sorted({min(step, self.steps) for step in epochs if step})[-last:] if last else []


def first_models(settings: MembersConfig, corpus: Corpus) -> list[LanguageModel]:
    """Return the members before training: drawn from their seeds, or all read from the base model.

    Raises:
        ConfigError: the base has another vocabulary than the corpus, or a shorter context.
    """
    fit = settings.fit
    if settings.base is None:
        shape = fit.model.transformer(corpus.tokenizer.vocab_size, max(fit.max_positions, fit.context))
        first = [member.seed if member.init_seed is None else member.init_seed for member in settings.members]
        return [LanguageModel(shape, seed=seed) for seed in first]
    _, place = resolve(settings.base)
    if load_tokenizer(place).digest != corpus.tokenizer.digest:
        raise ConfigError(
            f"the base {settings.base} has another vocabulary than {corpus.path}; prepare the corpus with the base's "
            f"tokenizer: --settings.corpus.tokenizer {place}"
        )
    models = [load_language_model(place, dtype=torch.float32) for _ in settings.members]
    if models[0].config.max_positions < fit.context:
        raise ConfigError(
            f"the base {settings.base} takes {models[0].config.max_positions} tokens, and context is "
            f"{fit.context}; lower it"
        )
    return models


def scored_identity(corpus: Corpus, settings: MembersConfig) -> str:
    """Return what names the held-out text that a run is scored on, window by window."""
    fit = settings.fit
    return digest({"corpus": corpus.identity, "tokens": fit.evaluation_tokens, "context": fit.context})


def run_identity(settings: MembersConfig, corpus_identity: str) -> str:
    """Return the content hash of a run: its whole config with the corpus's identity for the place it lies at."""
    values = to_dict(settings)
    values["fit"]["sources"] = corpus_identity
    return digest(values)


def members_task(directory: Path, settings: Mapping[str, Any]) -> None:
    """Train members given as plain values, resuming what is there: the task for `train.fan_out`.

    Raises:
        InputError: the config or the corpus cannot be used.
    """
    values = {name: value for name, value in settings.items() if name != "name"}
    train_members(from_dict(MembersConfig, values, source="the task's settings"), directory, exists="resume")
