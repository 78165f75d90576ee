"""Putting an engine together from a model and what the user asked for."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from forethought.core.errors import ConfigError
from forethought.decode.batching.budget import SchedulerConfig
from forethought.decode.batching.pages import PageManager
from forethought.decode.batching.scheduler import Scheduler
from forethought.decode.batching.verifier import TargetVerifier
from forethought.decode.draft import DraftSource
from forethought.decode.drafter.process import DraftProcess
from forethought.decode.drafter.speculator import identity_of, open_speculator
from forethought.decode.engine import Engine
from forethought.decode.options import EngineConfig, SpeculativeConfig
from forethought.decode.placement import (
    draft_core,
    draft_device,
    num_pages_for,
    num_threads_for,
    priority_setting,
    transport_for,
    weight_type,
)
from forethought.decode.planning.curves import measure
from forethought.decode.planning.model_of_speed import CostCurves, Plan
from forethought.decode.planning.planner import Planner, PlannerConfig
from forethought.decode.served import ServedModel, open_model
from forethought.decode.single.cached import check_same_vocabulary
from forethought.decode.sources.ngram import NgramSource, NoSource
from forethought.decode.sources.remote import RemoteSource
from forethought.decode.sources.steered import SteeredSource, demand_of
from forethought.decode.transports.in_process import InProcessTransport
from forethought.decode.transports.threads import ThreadTransport, stream_setting
from forethought.decode.transports.transport import Transport
from forethought.nn.devices import usable_device
from forethought.nn.paged import Backend, ChainModel, open_paged_model

DEFAULT_LENGTH, DEFAULT_BUDGET = 5, 16
MEASURED_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
_PAGE = 16
# What the engine does around a pass, the draft's side around each of its own, and to answer a verdict, as measured on
# one core (docs/diary.md); the planner corrects them by what rounds really take.
HOST_SECONDS, PASS_SECONDS, ANSWER_SECONDS = 1.4e-4, 2.5e-5, 6e-5


@dataclass(frozen=True)
class Built:
    """An engine, and what the face of it wants to know."""

    engine: Engine
    max_model_len: int
    backend: str
    planner: Planner | None
    draft_process_id: int | None


def build_engine(served: ServedModel, settings: EngineConfig, speculative: SpeculativeConfig) -> Built:
    """Return an engine for a model.

    Raises:
        ConfigError: the settings contradict each other or the model.
        ArtefactError: the draft's directory holds no language model.
    """
    config, place = served.model.config, usable_device(settings.device)
    max_model_len = min(settings.max_model_len or config.max_positions, config.max_positions)
    num_pages = num_pages_for(config, settings, max_model_len)
    target = open_paged_model(
        served.model.to(place),
        num_pages=num_pages,
        page_size=settings.block_size,
        backend=settings.backend,
        dtype=weight_type(settings.dtype),
        num_threads=num_threads_for(settings, speculative),
    )
    scheduling = SchedulerConfig(
        max_model_len=max_model_len,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=max(settings.max_num_batched_tokens, settings.max_num_seqs),
        num_speculative_tokens=longest_draft(speculative),
        enable_chunked_prefill=settings.enable_chunked_prefill,
        enable_prefix_caching=settings.enable_prefix_caching,
    )
    pages = PageManager(num_pages, settings.block_size, settings.enable_prefix_caching)
    with ExitStack() as started:
        drafts = _Drafts(served, target, settings, speculative, max_model_len, started)
        engine = Engine(
            verifier=TargetVerifier(target, eos_token_ids=served.end_of_text, setting=priority_setting(place)),
            scheduler=Scheduler(scheduling, pages),
            source=drafts.source,
            max_length=max_model_len,
            vocabulary_size=config.vocab_size,
            eos_token_ids=served.end_of_text,
            decode=served.tokenizer.decode,
            steering=drafts.planner,
        )
        started.pop_all()
    return Built(engine, max_model_len, type(target).__name__, drafts.planner, drafts.process_id)


class _Drafts:
    """The source of an engine's drafts and its planner; what it starts is undone by `started`, if anything fails."""

    def __init__(
        self,
        served: ServedModel,
        target: ChainModel,
        settings: EngineConfig,
        speculative: SpeculativeConfig,
        max_model_len: int,
        started: ExitStack,
    ) -> None:
        self._served, self._target = served, target
        self._settings, self._speculative = settings, speculative
        self.planner: Planner | None = None
        self.process_id: int | None = None
        self.source: DraftSource = NoSource()
        if speculative.method is None:
            return
        ngrams = NgramSource(
            DEFAULT_LENGTH, shortest=speculative.prompt_lookup_min, longest=speculative.prompt_lookup_max
        )
        remote: RemoteSource | None = None
        link = 0.0
        draft: ServedModel | None = None
        if speculative.model is not None and speculative.method != "ngram":
            draft = open_model(speculative.model)
            check_same_vocabulary(served.model, draft.model)
            if draft.tokenizer.digest != served.tokenizer.digest:
                raise ConfigError(
                    f"the draft {speculative.model} has another tokenizer than the model; give one made for it"
                )
            transport = self._transport(draft, max_model_len)
            started.callback(transport.close)
            transport_ready = getattr(transport, "wait_until_ready", None)
            if transport_ready is not None:
                transport_ready()
            link = transport.capabilities.round_trip or 0.0
            identity = identity_of(served)
            remote = RemoteSource(transport, identity, demand_of(Plan()))
        plan = plan_of(speculative)
        if plan is None:
            costs = self._costs(draft, link)
            self.planner = Planner(planner_settings(speculative), costs)
            plan = self.planner.plan
        source = SteeredSource(plan, remote, ngrams)
        if self.planner is not None:
            self.planner.on_change = source.follow
            if remote is not None:
                remote.observer = self.planner
        self.source = source

    def _transport(self, draft: ServedModel, max_model_len: int) -> Transport:
        speculative = self._speculative
        longest, budget = longest_draft(speculative), largest_budget(speculative)
        one = -(-max_model_len // _PAGE) + -(-(longest + 1) * (budget + 1) // _PAGE) + 2
        place = draft_device(self._settings, speculative)
        order: dict[str, Any] = {
            "model": str(draft.directory),
            "num_pages": one * self._settings.max_num_seqs,
            "page_size": _PAGE,
            "backend": self._backend(place),
            "dtype": weight_type(speculative.dtype),
            "num_threads": speculative.num_threads,
            "device": str(place),
            "options": {
                "num_speculative_tokens": longest,
                "budget": budget,
                "saguaro": speculative.saguaro,
                "max_requests": self._settings.max_num_seqs,
                # Drafts made on the spot for several requests are made together, and hold no prepared one up.
                "defer": True,
            },
        }
        way = transport_for(self._settings, speculative)
        if way == "process":
            process = DraftProcess(order, core=draft_core(speculative), num_threads=speculative.num_threads)
            self.process_id = process.process_id
            return process
        if way == "thread":
            setting = nullcontext if place.type == "cpu" else stream_setting(place)
            return ThreadTransport(lambda: open_speculator(**order), setting=setting)
        return InProcessTransport(open_speculator(**order))

    def _backend(self, place: torch.device) -> Backend:
        """The draft's executor: the target's, unless it lives on a device of another kind."""
        here = torch.device(self._settings.device).type == place.type
        return self._settings.backend if here else "auto"

    def _costs(self, draft: ServedModel | None, link: float) -> CostCurves:
        """Measure what passes cost; the draft is measured here too, on a pool of its own that is dropped again."""
        contexts = tuple(c for c in (64, 512) if c + MEASURED_SIZES[-1] < self._served.model.config.max_positions)
        own = measure(self._target, MEASURED_SIZES, contexts=contexts or (0,), greedy=True)
        if draft is None:
            return CostCurves(target=own, host=HOST_SECONDS)
        place = draft_device(self._settings, self._speculative)
        copy = open_paged_model(
            draft.model.to(place),
            num_pages=-(-(contexts[-1] if contexts else 0) // _PAGE) + MEASURED_SIZES[-1] // _PAGE + 1,
            page_size=_PAGE,
            backend=self._backend(place),
            dtype=weight_type(self._speculative.dtype),
            num_threads=self._speculative.num_threads,
        )
        theirs = measure(copy, MEASURED_SIZES, contexts=contexts or (0,), greedy=True)
        theirs = replace(theirs, seconds=tuple(tuple(s + PASS_SECONDS for s in row) for row in theirs.seconds))
        answer = link + ANSWER_SECONDS
        return CostCurves(target=own, draft=theirs, link=answer, draft_link=answer, host=HOST_SECONDS)


def plan_of(speculative: SpeculativeConfig) -> Plan | None:
    """Return the plan that was asked for in full, or None where something of it is left to the planner."""
    length, budget = speculative.num_speculative_tokens, speculative.budget
    if speculative.method is None:
        return Plan()
    if length == "auto" or (speculative.method == "ssd" and budget == "auto"):
        return None
    return Plan(
        speculative.method,
        length,
        budget if speculative.method == "ssd" and budget != "auto" else 0,
        speculative.fan_out,
        speculative.fallback,
        length,
    )


def planner_settings(speculative: SpeculativeConfig) -> PlannerConfig:
    """Return what the planner may choose from: all that the method includes, and fixed what was given."""
    settings = PlannerConfig(fan_out=speculative.fan_out)
    if speculative.method == "ngram":
        settings = replace(settings, methods=("ngram",))
    elif speculative.method == "draft":
        settings = replace(settings, methods=("ngram", "draft"))
    if speculative.num_speculative_tokens != "auto":
        settings = replace(settings, lengths=(speculative.num_speculative_tokens,))
    if speculative.budget != "auto":
        settings = replace(settings, budgets=(speculative.budget,))
    return settings


def longest_draft(speculative: SpeculativeConfig) -> int:
    """Return the longest draft that will ever be asked for."""
    if speculative.method is None:
        return 0
    length = speculative.num_speculative_tokens
    return max(PlannerConfig().lengths) if length == "auto" else length


def largest_budget(speculative: SpeculativeConfig) -> int:
    """Return the most verdicts that will ever be prepared for in a round."""
    if speculative.method != "ssd":
        return 0
    return max(PlannerConfig().budgets) if speculative.budget == "auto" else speculative.budget
