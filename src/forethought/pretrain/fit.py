"""From text to a trained, exported language model in one resumable run directory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from forethought.core.artefact import resolve
from forethought.core.config import from_dict, to_dict
from forethought.core.errors import ConfigError, DataError, InputError
from forethought.core.progress import track
from forethought.core.run import TIMINGS, Exists, Run, read_records
from forethought.data import (
    IGNORED_TARGET,
    Batch,
    Corpus,
    PackedBatches,
    load_tokenizer,
)
from forethought.nn import LanguageModel, load_language_model, num_parameters, save_language_model
from forethought.pretrain.affordable import (
    PLAN,
    StepPlan,
    held_out_tokens,
    keep_plan,
    kept_plan,
    plan_steps,
    planned,
    step_seconds,
)
from forethought.pretrain.config import FitConfig
from forethought.pretrain.evaluate import bits_per_byte, mean_loss, measure, ngram_baselines
from forethought.pretrain.export.card import CARD, model_card, weights_note
from forethought.pretrain.inputs import check_corpus, open_or_prepare
from forethought.pretrain.objective import distillation_loss, next_token_loss
from forethought.pretrain.slices import training_part
from forethought.stats import median_interval
from forethought.train import OptimiserConfig, Parallel, build_optimisers, open_parallel, open_run, train
from forethought.train.state import gather, module_tensors, restore_module

BASELINE_TOKENS = 4_000_000


def fit(
    settings: FitConfig,
    out: Path | str,
    *,
    recipe: str = "custom",
    recipe_config: FitConfig | None = None,
    exists: Exists = "refuse",
    fallback: bool = False,
    title: str = "fit",
    seconds: float | None = None,
    tell: Callable[[StepPlan], object] = lambda _plan: None,
) -> dict[str, Any]:
    """Prepare the corpus, train, evaluate and export; return what result.json holds.

    `seconds` is a budget of wall-clock time, reading the corpus included: the steps that it affords, out of those of
    the config, are measured, told to `tell` and kept in the directory; a resumed run keeps to them.

    The run directory holds the corpus (unless a prepared one was given), the checkpoints and the model in Hugging Face
    layout. A finished run that is resumed returns its result at once.

    Raises:
        InputError: the corpus, the config or the directory cannot be used.
        InterruptedRunError: interrupted and saved.
        TrainingError: the loss is no longer finite.
    """
    out, started = Path(out), time.monotonic()
    with open_parallel(settings.parallel, settings.device) as parallel:
        run = open_run(
            parallel,
            out,
            config=settings,
            recipe=recipe,
            recipe_config=recipe_config,
            exists=exists,
            allow=("parallel", "device"),
        )
        with run:
            finished = run.result()
            if finished is not None:
                return finished
            try:
                corpus = open_or_prepare(settings, out, parallel)
                if parallel.is_main:
                    check_corpus(run, corpus)
                work = _Fit(settings, corpus, run, parallel)
                work.afford(seconds, started, tell)
            except InputError:
                run.discard()
                raise
            return work.execute(title=title, fallback=fallback, recipe=recipe)


def fit_task(directory: Path, settings: Mapping[str, Any]) -> None:
    """Fit one config given as plain values, resuming what is there: the task for `train.fan_out`.

    Raises:
        InputError: the config or the corpus cannot be used.
    """
    values = {name: value for name, value in settings.items() if name != "name"}
    fit(from_dict(FitConfig, values, source="the task's settings"), directory, recipe="task", exists="resume")


class _Fit:
    """One fit under way: its model, its data and where its results go."""

    def __init__(self, settings: FitConfig, corpus: Corpus, run: Run, parallel: Parallel) -> None:
        self.settings, self.corpus, self.run, self.parallel = settings, corpus, run, parallel
        _check_splits(corpus)
        training_part(corpus, 0, window=settings.context, rows=settings.batch_size * settings.loop.accumulate)
        positions = max(settings.max_positions, settings.context)
        self.shape = settings.model.transformer(corpus.tokenizer.vocab_size, positions)
        self.module = LanguageModel(self.shape, seed=settings.seed).to(parallel.device)
        self.batches = PackedBatches(
            corpus.train,
            batch_size=settings.batch_size,
            context=settings.context,
            seed=settings.seed,
            document_mask=settings.document_mask,
            rank=parallel.rank,
            world_size=parallel.world_size,
        )
        self.plain_loss = self._loss()
        self.loss = _balanced(self.plain_loss, parallel)
        self.plan: StepPlan | None = None

    def afford(self, seconds: float | None, started: float, tell: Callable[[StepPlan], object]) -> None:
        """Take only the steps that a budget affords, counted from `started`; a run that has a plan keeps it."""
        if self.parallel.any((self.run.directory / PLAN).is_file()):
            self.plan = kept_plan(self.run.directory, seconds)
        elif seconds is not None:
            if self.run.checkpoints.steps():
                raise ConfigError(
                    f"{self.run.directory} was begun without a budget, and its rate falls to its end at step "
                    f"{self.settings.loop.steps:,}; resume it without --budget, or give a directory of its own"
                )
            self.plan = self._planned(seconds, started)
            if self.parallel.is_main:
                keep_plan(self.run.directory, self.plan)
        if self.plan is not None:
            self.settings = planned(self.settings, self.plan)
            tell(self.plan)

    def _planned(self, seconds: float, started: float) -> StepPlan:
        settings, corpus = self.settings, self.corpus
        measured = step_seconds(self.module, self.plain_loss, self.batches.batch, settings)
        counted = min(corpus.train.num_tokens, BASELINE_TOKENS) if settings.baselines else 0
        sizes = {
            "num_parameters": num_parameters(self.shape).total,
            "num_held_out": held_out_tokens(corpus, settings.final_tokens),
            "num_counted": counted,
        }
        # All ranks have to take as many steps: what they measured and what has passed is averaged.
        took = {"step": measured, "passed": time.monotonic() - started}
        took = self.parallel.mean_figures(took)
        return plan_steps(
            settings,
            seconds,
            seconds - took["passed"],
            took["step"],
            steps_per_epoch=self.batches.steps_per_epoch / settings.loop.accumulate,
            **sizes,
        )

    def execute(self, *, title: str, fallback: bool, recipe: str) -> dict[str, Any]:
        settings = self.settings
        model = self.parallel.wrap(self.module)
        steps_per_epoch = self.batches.steps_per_epoch / settings.loop.accumulate
        records = train(
            self.module,
            model=model,
            loss=self.loss,
            batches=self.batches.batch,
            optimisers=build_optimisers(self.module, settings.optimiser, steps_per_epoch=steps_per_epoch),
            run=self.run,
            settings=settings.loop,
            seed=settings.seed,
            parallel=self.parallel,
            evaluate=self._evaluate,
            fallback=fallback,
        )
        tokens = settings.batch_size * settings.context * settings.loop.accumulate
        with track(title, settings.loop.steps) as progress:
            speed = _Speed(tokens)
            for record in records:
                held_out = (record.evaluation or {}).get("validation_loss")
                progress.update(record.step, loss=record.metrics.get("loss"), tokens_per_s=speed(), validation=held_out)
        return self._conclude(recipe, steps_per_epoch)

    def _loss(self) -> Callable[[nn.Module, Batch], Any]:
        settings, device = self.settings, self.parallel.device
        if settings.teacher is None:
            return partial(next_token_loss, device=device)
        teacher = _load_teacher(settings.teacher, self.corpus, device)
        chosen = settings.distillation
        return partial(
            distillation_loss, teacher=teacher, share=chosen.share, temperature=chosen.temperature, device=device
        )

    def _evaluate(self, model: nn.Module) -> Mapping[str, float]:
        settings, dataset = self.settings, self.corpus.validation
        loss = mean_loss(model, dataset, settings, self.parallel.device)
        return {"validation_loss": loss, "validation_bits_per_byte": bits_per_byte(loss, dataset)}

    def _conclude(self, recipe: str, steps_per_epoch: float) -> dict[str, Any]:
        settings, corpus, parallel = self.settings, self.corpus, self.parallel
        parameters = num_parameters(self.shape)
        done = self.run.checkpoints.steps()[-1]
        tokens = done * settings.batch_size * settings.context * settings.loop.accumulate
        result: dict[str, Any] = {
            "kind": "pretrain.fit",
            "recipe": recipe,
            "seed": settings.seed,
            "steps": done,
            "epochs": done / steps_per_epoch,
            "train_tokens_seen": tokens,
            "parameters": parameters.total,
            "parameters_non_embedding": parameters.non_embedding,
            "vocab_size": self.shape.vocab_size,
            "teacher": settings.teacher,
            **_decay(settings.optimiser, steps_per_epoch),
            "corpus": corpus.report,
            "model": "model",
        }
        if self.plan is not None:
            result["budget"] = asdict(self.plan)
        for name, dataset in (("validation", corpus.validation), ("test", corpus.test)):
            result |= measure(self.module, dataset, name, settings, parallel.device)
        result |= _throughput(self.run, tokens / done)
        weights = gather(module_tensors(self.module), parallel)
        if parallel.is_main:
            if settings.baselines:
                result |= ngram_baselines(
                    corpus.train,
                    corpus.validation,
                    self.shape.vocab_size,
                    train_limit=BASELINE_TOKENS,
                    evaluation_limit=settings.final_tokens,
                )
            self._export(weights, result)
            self.run.write_result(result)
        parallel.barrier()
        return result

    def _export(self, weights: dict[str, Tensor], result: dict[str, Any]) -> None:
        # Into a plain module: that of a sharded run holds no whole tensor.
        plain = LanguageModel(self.shape)
        restore_module(weights, plain, Parallel(torch.device("cpu")), source="the trained module")
        facts = {name: result[name] for name in ("recipe", "seed", "steps", "validation_loss", "test_loss")}
        teacher = None if self.settings.teacher is None else weights_note(self.settings.teacher)
        name = self.run.directory.name
        card = model_card(
            {**result, "teacher": teacher}, name=name, recipe=str(result["recipe"]), settings=to_dict(self.settings)
        )
        save_language_model(
            plain,
            self.run.directory / "model",
            self.corpus.path,
            replace=True,
            extra_facts=facts,
            extra_files={CARD: card.encode()},
        )


def _decay(optimiser: OptimiserConfig, steps_per_epoch: float) -> dict[str, float | None]:
    rate = optimiser.muon_lr if optimiser.name == "muon" else optimiser.lr
    decay = optimiser.decay(steps_per_epoch, lr=rate)
    return {"weight_decay": decay, "tau": 1.0 / (rate * decay * steps_per_epoch) if decay else None}


def _balanced(loss: Callable[[nn.Module, Batch], Any], parallel: Parallel) -> Callable[[nn.Module, Batch], Any]:
    """Weigh each rank's mean by its number of targets, so that the mean over the ranks is that of a single process."""
    if parallel.world_size == 1:
        return loss

    def balanced(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        count = torch.tensor(float((batch.targets_BT != IGNORED_TARGET).sum()), device=parallel.device)
        weight = count / parallel.mean(count)
        value, figures = loss(model, batch)
        return value * weight, {name: figure * weight for name, figure in figures.items()}

    return balanced


def _check_splits(corpus: Corpus) -> None:
    """Refuse a corpus with an empty split before hours of training end in a split that cannot be measured."""
    for dataset in (corpus.train, corpus.validation, corpus.test):
        if not dataset.num_tokens:
            raise DataError(
                f"{dataset.path} holds no tokens, and a fit measures every split; prepare the corpus with more text, "
                "or with a larger share for this split"
            )


class _Speed:
    """Tokens a second since the last call, smoothed over the last few."""

    def __init__(self, tokens_per_step: int) -> None:
        self._clock = time.perf_counter
        self._tokens = tokens_per_step
        self._last = self._clock()
        self._smooth: float | None = None

    def __call__(self) -> int:
        now = self._clock()
        speed = self._tokens / max(now - self._last, 1e-9)
        self._last = now
        self._smooth = speed if self._smooth is None else 0.9 * self._smooth + 0.1 * speed
        return round(self._smooth)


def _load_teacher(directory: str, corpus: Corpus, device: torch.device) -> nn.Module:
    _, place = resolve(directory)
    teacher = load_language_model(place, device=device)
    if load_tokenizer(place).digest != corpus.tokenizer.digest:
        raise ConfigError(
            f"the teacher {directory} has another vocabulary than the corpus; soft labels need the same tokens. "
            "Prepare the corpus with the teacher's tokenizer, or fit the student on the teacher's corpus"
        )
    return teacher.requires_grad_(False)


def _throughput(run: Run, tokens_per_step: float) -> dict[str, Any]:
    run.flush()
    records = read_records(run.directory / TIMINGS)
    if len(records) < 4:
        return {}
    # A record tells the time since the one before it, which is several steps ago where not every step is logged.
    speed = median_interval(
        [tokens_per_step * (now["step"] - last["step"]) / now["seconds"] for last, now in pairwise(records)]
    )
    return {"tokens_per_second": speed.estimate, "tokens_per_second_interval": [speed.low, speed.high]}
