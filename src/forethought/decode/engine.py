"""The loop of the engine: collect drafts, schedule, verify, let tokens out. It sees neither tensors nor processes.

One step serves every running request: its share of prompts (in chunks) and, for each request that decodes, its last
token with whatever draft was at hand. The parts are given: a `DraftSource`, a `Scheduler` and a `Verifier`, real ones
or those of the simulator, with the clock that they live by.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from forethought.core.errors import InputError
from forethought.core.faults import fault
from forethought.decode.batching.scheduler import Scheduler
from forethought.decode.detokenize import Decode
from forethought.decode.draft import NO_DRAFT, Draft, DraftSource, Judged, TokenLogprobs, Verifier
from forethought.decode.emission import Emission
from forethought.decode.law.constraint import Constraint
from forethought.decode.law.sampling import SamplingParams, check_vocabulary, sample_params
from forethought.decode.law.verify import Verdict
from forethought.decode.metrics import EngineMetrics
from forethought.decode.outputs import Update
from forethought.decode.request import Request, Work
from forethought.decode.statistics import Statistics


@dataclass(frozen=True)
class Round:
    """What one step did, for whoever plans the next ones: all times in seconds of the engine's clock.

    `verdicts` has (source, tokens drafted, tokens accepted) for every judged request, `context` is the mean length of
    their texts.
    """

    num_rows: int
    num_decoding: int
    stall: float
    verify: float
    total: float
    emitted: int
    verdicts: list[tuple[str, int, int]]
    context: float | None = None


class Steering(Protocol):
    """Whoever sets how much is speculated, from what the rounds brought."""

    def observe(self, happened: Round) -> None:
        """Learn of a round and set the coming ones."""
        ...


@dataclass(eq=False)
class _Sample:
    """One sample of one request, while it lives."""

    group: int
    index: int
    request: Request
    emission: Emission
    arrived: float
    last_token: float | None = None
    started_epoch: int = -1
    num_cached_tokens: int = 0
    statistics: Statistics = field(default_factory=Statistics)


class Engine:
    """Requests in, updates out, one step at a time; for one thread.

    `eos_token_ids` end a text unless a request ignores them; `decode` (tokens to text) is needed for text and stop
    strings; `max_length` is the longest text, prompt included, that the models take.
    """

    def __init__(
        self,
        *,
        verifier: Verifier,
        scheduler: Scheduler,
        source: DraftSource,
        max_length: int,
        vocabulary_size: int,
        eos_token_ids: Sequence[int] = (),
        decode: Decode | None = None,
        clock: Callable[[], float] = time.perf_counter,
        steering: Steering | None = None,
    ) -> None:
        self.counts = EngineMetrics()
        self.source = source
        self.scheduler = scheduler
        self._verifier, self._steering, self._clock = verifier, steering, clock
        self._max_length, self._vocabulary_size = max_length, vocabulary_size
        self._eos_token_ids, self._decode = tuple(eos_token_ids), decode
        self._samples: dict[int, _Sample] = {}
        self._groups: dict[int, list[int]] = {}
        self._pending: list[Update] = []
        self._next_id = 0
        self._foresees = False

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._samples or self._pending)

    def add(self, prompt_tokens: Sequence[int], params: SamplingParams, *, constraint: Constraint | None = None) -> int:
        """Queue a request and return its id; its samples are told apart by `Update.index`.

        Raises:
            InputError: the prompt is empty, holds an unknown token, or leaves no room in the context, or the request
                can never fit the pages there are.
            ConfigError: stop strings without a `decode`, or a constraint for more than one sample.
        """
        prompt = list(prompt_tokens)
        limit = self._check(prompt, params, constraint)
        group, first, arrived = self._next_id, None, self._clock()
        ids: list[int] = []
        for index in range(params.n):
            own = sample_params(params, index)
            emission = Emission(own, limit, self._eos_token_ids, self._decode)
            request = Request(group + index, prompt, own, len(prompt) + limit, parent=first)
            self.scheduler.add(request)
            if constraint is not None:
                self._verifier.constrain(request.id, constraint)
            self._samples[request.id] = _Sample(group, index, request, emission, arrived)
            ids.append(request.id)
            first = first or request
        self._groups[group] = ids
        self._next_id += params.n
        self.counts.prompt_tokens += len(prompt)
        return group

    def abort(self, request_id: int) -> None:
        """End a request at whatever stage it is; its samples end with "abort". An unknown or ended one is no error."""
        for sample_id in list(self._groups.get(request_id, ())):
            sample = self._samples[sample_id]
            self.scheduler.abort(sample_id)
            self._end(sample, "abort")
            self._pending.append(Update(sample.group, sample.index, [], finish_reason="abort"))

    def step(self) -> list[Update]:
        """Run one round of everything and return what it brought."""
        began = self._clock()
        # The plan of this round's drafts, which steering may change before they are judged.
        self._foresees = bool(getattr(self.source, "foresees", False))
        drafts = self._collect()
        collected = self._clock()
        works = self.scheduler.schedule({request_id: draft.tokens for request_id, draft in drafts.items()})
        self._follow_preemptions()
        cut = {work.request.id: drafts.get(work.request.id, NO_DRAFT).cut(work.num_draft) for work in works}
        self._start(works)
        fault("engine.verify")
        verifying = self._clock()
        verdicts = self._verifier.run(works, cut) if works else []
        verified = self._clock()
        updates, self._pending = self._pending, []
        emitted = self._settle(works, cut, verdicts, updates)
        self._count_step(began, collected, verifying, verified)
        if self._steering is not None and emitted is not None:
            self._steering.observe(
                Round(
                    num_rows=sum(len(work.tokens) for work in works),
                    num_decoding=sum(work.decides for work in works),
                    stall=collected - began,
                    verify=verified - verifying,
                    total=self._clock() - began,
                    emitted=emitted,
                    verdicts=[
                        (cut[w.request.id].source, w.num_draft, v.accepted)
                        for w, v in zip(works, verdicts, strict=True)
                        if v.bonus is not None
                    ],
                    context=sum(len(w.request.tokens) for w in works) / max(len(works), 1),
                )
            )
        return updates

    def statistics(self, request_id: int, index: int = 0) -> Statistics:
        """Return the accounts of a sample that still lives."""
        return self._samples[self._groups[request_id][index]].statistics

    def metrics(self) -> dict[str, Any]:
        """Return counters and histograms as plain JSON values, and where scheduler and source stand."""
        values = self.counts.to_dict()
        values["scheduler"] = asdict(self.scheduler.counts)
        source = getattr(self.source, "statistics", None)
        values["source"] = source() if source is not None else {}
        return values

    def close(self) -> None:
        """End every request and give the drafts' processes and memory back."""
        for group in list(self._groups):
            self.abort(group)
        self.source.close()

    def _check(self, prompt: list[int], params: SamplingParams, constraint: Constraint | None) -> int:
        """Return how many tokens may be generated."""
        if not prompt:
            raise InputError("the prompt has no tokens; give at least one, for example the end-of-text token")
        largest, smallest = max(prompt), min(prompt)
        if smallest < 0 or largest >= self._vocabulary_size:
            unknown = smallest if smallest < 0 else largest
            raise InputError(f"the prompt holds token {unknown}; the model knows 0 to {self._vocabulary_size - 1}")
        check_vocabulary(params, self._vocabulary_size)
        room = self._max_length - len(prompt)
        if room < 1:
            raise InputError(
                f"the prompt has {len(prompt)} tokens; the context of {self._max_length} leaves no room for more"
            )
        if constraint is not None and params.n > 1:
            raise InputError(f"n is {params.n} with a constraint; a constraint serves one sample, so send n requests")
        return room if params.max_tokens is None else min(params.max_tokens, room)

    def _collect(self) -> dict[int, Draft]:
        wanting = [r for r in self.scheduler.decoding() if r.params.speculate and r.remaining > 1]
        if not wanting:
            return {}
        found = self.source.collect(wanting)
        # The target adds a token to every draft, so one fewer than still allowed is the most that can be of use.
        return {r.id: found[r.id].cut(r.remaining - 1) for r in wanting if r.id in found}

    def _follow_preemptions(self) -> None:
        for request in self.scheduler.preempted:
            if request.params.speculate:
                self.source.stop(request)

    def _start(self, works: Sequence[Work]) -> None:
        """Tell the source of requests that begin (again), so that it reads their prompts beside the target."""
        for work in works:
            request = work.request
            sample = self._samples[request.id]
            if sample.started_epoch != request.epoch:
                sample.started_epoch = request.epoch
                if request.epoch == 0:
                    sample.num_cached_tokens = work.start
                    self.counts.cached_prompt_tokens += work.start
                if request.params.speculate:
                    self.source.start(request)

    def _settle(
        self, works: Sequence[Work], drafts: Mapping[int, Draft], verdicts: Sequence[Judged], updates: list[Update]
    ) -> int | None:
        """Commit what was judged and return how many tokens left, or None where nothing was judged."""
        now, emitted = self._clock(), None
        kept_by_id: dict[int, list[int]] = {}
        # Every verdict is passed on before any text is made: the draft's side works while this one detokenises.
        for work, verdict in zip(works, verdicts, strict=True):
            if verdict.bonus is None or verdict.error is not None:
                continue
            request, draft = work.request, drafts[work.request.id]
            kept = [*draft.tokens[: verdict.accepted], verdict.bonus]
            kept_by_id[request.id] = kept
            self.scheduler.commit(work, verdict.accepted, kept)
            if request.params.speculate and request.remaining > 0:
                self.source.judged(request, draft, verdict, kept)
        for work, verdict in zip(works, verdicts, strict=True):
            sample = self._samples[work.request.id]
            if verdict.error is not None:
                self._fail(sample, verdict.error, updates)
            elif verdict.bonus is None:
                self.scheduler.commit(work, 0, [])
            else:
                update = self._emit(sample, drafts[work.request.id], verdict, kept_by_id[work.request.id], now)
                updates.append(update)
                emitted = (emitted or 0) + len(update.token_ids)
        return emitted

    def _emit(self, sample: _Sample, draft: Draft, verdict: Judged, kept: list[int], now: float) -> Update:
        fault("engine.emit")
        emission, bonus = sample.emission, kept[-1]
        chunk = emission.push(kept)
        num_emitted = len(chunk.token_ids)
        sample.statistics.count_round(len(draft.tokens), Verdict(verdict.accepted, bonus), num_emitted)
        if self._foresees and sample.last_token is not None:
            sample.statistics.lookups += 1
            sample.statistics.hits += draft.source == "cache"
        self._count_tokens(sample, draft, verdict, num_emitted, now)
        logprobs: list[TokenLogprobs] | None = None if verdict.logprobs is None else verdict.logprobs[:num_emitted]
        if emission.finish_reason is not None:
            self.scheduler.finish(sample.request)
            self._end(sample, emission.finish_reason)
        return Update(
            sample.group,
            sample.index,
            chunk.token_ids,
            chunk.text,
            logprobs,
            emission.finish_reason,
            emission.stop_reason,
            rejected=draft.tokens[verdict.accepted :],
            source=draft.source,
            num_accepted=min(verdict.accepted, num_emitted),
            num_cached_tokens=sample.num_cached_tokens,
        )

    def _fail(self, sample: _Sample, error: str, updates: list[Update]) -> None:
        self.scheduler.finish(sample.request, poisoned=True)
        self._end(sample, "error")
        updates.append(Update(sample.group, sample.index, [], finish_reason="error", error=error))

    def _end(self, sample: _Sample, reason: str) -> None:
        request = sample.request
        self.counts.finished[reason] += 1
        if request.params.speculate and sample.started_epoch >= 0:
            self.source.stop(request)
        self._verifier.forget(request)
        del self._samples[request.id]
        ids = self._groups[sample.group]
        ids.remove(request.id)
        if not ids:
            del self._groups[sample.group]

    def _count_tokens(self, sample: _Sample, draft: Draft, verdict: Judged, num_emitted: int, now: float) -> None:
        counts = self.counts
        counts.generated_tokens += num_emitted
        counts.count_verdict(draft.source, len(draft.tokens), verdict.accepted)
        if sample.last_token is None:
            counts.time_to_first_token.record(now - sample.arrived)
            later = num_emitted - 1
        else:
            # Tokens of one round arrive together: the first waited for the round, the others came with it.
            counts.inter_token_latency.record(now - sample.last_token)
            later = num_emitted - 1
        if later > 0:
            counts.inter_token_latency.record(0.0, later)
        sample.last_token = now

    def _count_step(self, began: float, collected: float, verifying: float, verified: float) -> None:
        counts = self.counts
        counts.steps += 1
        counts.stall_seconds.record(collected - began)
        counts.verify_seconds.record(verified - verifying)
        counts.step_seconds.record(self._clock() - began)
