"""The target's side of a draft that lives elsewhere: a `DraftSource` over a transport.

A verdict is passed on at once, its answer collected when the next drafts are wanted. Whatever does not come in time is
done without: a request whose answer is late copies its draft from its own text, or decodes plainly, and the late answer
is known as such and dropped. A draft that has died or fallen silent is given up for good; the tokens stay the same.

Shape suffixes: K drafted tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from forethought.core.errors import ConfigError, InputError
from forethought.decode.draft import NO_DRAFT, Draft, Judged, Source
from forethought.decode.drafter.accounts import DraftAccounts
from forethought.decode.request import Request
from forethought.decode.sources.links import Health, Link, Observer, law_rows
from forethought.decode.sources.ngram import NgramIndex, ngram_draft
from forethought.decode.sources.shadow import ShadowCaster
from forethought.decode.transports.transport import BacklogError, Transport, TransportError
from forethought.decode.wire.messages import decode, encode
from forethought.decode.wire.options import RemoteOptions
from forethought.decode.wire.protocol import (
    BEYOND,
    EMPTY_HASH,
    MAX_TOKENS,
    Demand,
    DraftSampling,
    Failure,
    Free,
    Hello,
    Message,
    Origin,
    Outcome,
    Prefill,
    Shutdown,
    Spec,
    Stats,
    disagreement,
    extend_hash,
)

_SOURCES: dict[Origin, Source] = {
    Origin.NONE: "none",
    Origin.CACHE: "cache",
    Origin.DRAFT: "draft",
    Origin.NGRAM: "ngram",
}
_SEND_SECONDS = 0.05
# Where no draft is wanted the other side is told of so many tokens at once: a message costs the target's core 20 us.
_HELD_TOKENS = 24
# Of so many texts at a time it is learned what prompt look-up would bring.
_NUM_WATCHED = 4


class RemoteSource:
    """The draft behind `transport`; `demand` is what is asked of it, and may be changed between any two steps.

    `identity` names the vocabulary and the tokenizer that the draft must share. With a budget of 0 in `demand` this is
    classic draft-target speculation, with more it is SSD. `observer` may be set later. A request with `speculate` False
    is none of its business.

    Raises:
        ConfigError: the other side has another vocabulary, tokenizer or release.
    """

    def __init__(
        self,
        transport: Transport,
        identity: Hello,
        demand: Demand,
        options: RemoteOptions | None = None,
        *,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.observer = observer
        self.demand = demand
        self.options = options or RemoteOptions()
        self.health = Health()
        self._identity, self._clock = identity, clock
        self._links: dict[int, Link] = {}
        self._num_watched = 0
        self._accounts: DraftAccounts | None = None
        self._silent = 0.0
        self._transport = transport
        self._open()

    def start(self, request: Request) -> None:
        """Have the draft read a request's text."""
        if not request.params.speculate:
            return
        own, params = self.options.draft_temperature, request.params
        sampling = DraftSampling(
            params.temperature if own is None else own, params.top_k, params.top_p, params.min_p, params.seed
        )
        link = Link(
            request.id,
            request.epoch,
            NgramIndex(request.tokens),
            request.max_length,
            sampling,
            extend_hash(EMPTY_HASH, request.tokens),
        )
        self._links[request.id] = link
        self._prefill(link)

    def collect(self, requests: Sequence[Request]) -> Mapping[int, Draft]:
        """Return the drafts of these requests, after waiting for those under way no longer than `patience`."""
        links = [self._links[request.id] for request in requests if request.id in self._links]
        self._await({link.request: link for link in links if link.is_awaited})
        drafts: dict[int, Draft] = {}
        for link in links:
            if link.must_resync:
                link.must_resync = False
                self._prefill(link)
            draft = link.given = self._draft(link)
            if draft.tokens:
                drafts[link.request] = draft
        return drafts

    def judged(self, request: Request, draft: Draft, verdict: Judged, kept: Sequence[int]) -> None:
        """Pass a verdict on at once."""
        link = self._links.get(request.id)
        if link is None or verdict.bonus is None or verdict.error is not None:
            return
        own = link.is_own(draft)
        link.judged = (draft.source, len(draft.tokens), verdict.accepted)
        self._watch(link, draft, kept)
        if len(link.held) + len(kept) > MAX_TOKENS + 1:
            self._tell(link, self.demand._replace(wanted=0), -1)
        link.commit(kept)
        demand = self.demand._replace(wanted=max(0, min(self.demand.wanted, link.room)))
        if demand.wanted > 0 or len(link.held) >= _HELD_TOKENS:
            self._tell(link, demand, verdict.accepted if own else -1)

    def _watch(self, link: Link, draft: Draft, kept: Sequence[int]) -> None:
        if self.observer is None:
            return
        if link.caster is None:
            if self._num_watched >= _NUM_WATCHED:
                return
            link.caster, self._num_watched = ShadowCaster(), self._num_watched + 1
        shadow = link.caster.commit(link.text, kept, link.room, after_miss=draft.source != "cache")
        if shadow is not None:
            self.observer.observe_shadow(shadow)

    def _tell(self, link: Link, demand: Demand, accepted: int) -> None:
        told = link.tell()
        if self.health.alive and not link.must_resync:
            link.is_awaited = demand.wanted > 0
            self._send(Outcome(link.tag, accepted, told, demand), link)

    def stop(self, request: Request) -> None:
        """Have the draft forget a request."""
        link = self._links.pop(request.id, None)
        if link is not None:
            self._num_watched -= link.caster is not None
            self._send(Free(link.tag))

    def close(self) -> None:
        """Tell the other side to end and close the transport."""
        self._send(Shutdown())
        self.health.alive = False
        self._links.clear()
        self._transport.close()

    def restart(self, transport: Transport) -> None:
        """Go on with another draft, which reads the texts of all requests.

        Raises:
            ConfigError: the other side has another vocabulary, tokenizer or release.
        """
        self._transport = transport
        self.health.alive, self._silent = True, 0.0
        self._open()
        for link in self._links.values():
            link.is_awaited, link.spec, link.must_resync = False, None, True

    def statistics(self) -> dict[str, Any]:
        """Return the health of the connection and the draft's own accounts as of the last answer to this question."""
        self._send(Stats(np.zeros(0, dtype=np.int64), np.zeros(0)))
        self._await({})
        known = {} if self._accounts is None else self._accounts.to_dict()
        return {"healthy": self.health.alive, "health": dict(vars(self.health)), "draft": known}

    def _open(self) -> None:
        self._send(self._identity)
        deadline = self._clock() + self.options.opening
        while self.health.alive:
            message = self._receive(max(0.0, deadline - self._clock()))
            if isinstance(message, Hello):
                difference = disagreement(self._identity, message)
                if difference:
                    raise ConfigError(difference)
                return
            if isinstance(message, Failure):
                raise ConfigError(f"the draft's side refuses: {message.text}")
            if message is None and self.health.alive:
                self._give_up(f"the draft's side said nothing within {self.options.opening:g} s")

    def _prefill(self, link: Link) -> None:
        tokens = np.array(link.text.tokens, dtype=np.int32)
        link.is_awaited = False
        if link.held:
            link.tell()
        if self.health.alive:
            self._send(Prefill(link.tag, tokens, link.sampling, link.max_length, self.demand), link)

    def _draft(self, link: Link) -> Draft:
        """The draft of a request for this round: the answer, or what can be had without one."""
        spec = link.spec
        if spec is None or (not spec.tokens and spec.resync):
            return ngram_draft(link.text, min(self.demand.wanted, link.room)) if self._may_copy() else NO_DRAFT
        return Draft(spec.tokens, link.laws_KV, _SOURCES[spec.origin]).cut(link.room)

    def _may_copy(self) -> bool:
        return self.options.late == "ngram"

    def _await(self, awaited: dict[int, Link]) -> None:
        """Take frames in until these requests have their answers, or patience ends."""
        began = self._clock()
        deadline = began + (self.options.patience if awaited else 0.0)
        while self.health.alive:
            now = self._clock()
            message = self._receive(max(0.0, deadline - now) if awaited else 0.0)
            if message is None:
                break
            link = self._take(message)
            if link is not None:
                awaited.pop(link.request, None)
            if not awaited and not self._transport_has_more():
                break
        for link in awaited.values():
            link.is_awaited = False
            self.health.late += 1
        if awaited:
            self._silent += self._clock() - began
            if self._silent > self.options.silence:
                self._give_up(f"the draft's side has said nothing for {self._silent:.1f} s")

    def _take(self, message: Message) -> Link | None:
        """Act on a message; return the request that it answers."""
        match message:
            case Spec():
                return self._take_spec(message)
            case Stats():
                self._accounts = DraftAccounts.from_message(message)
            case Failure():
                self.health.malformed += 1
                self.health.warning = message.text
            case _:
                pass
        return None

    def _take_spec(self, spec: Spec) -> Link | None:
        link = self._links.get(spec.tag.request)
        # With tokens held back the text is no longer in the state that this answers, though the tag still says so.
        if link is None or spec.tag != link.tag or link.spec is not None or link.held:
            self.health.stale += 1
            return None
        laws_KV = None
        if spec.laws_KV is not None:
            laws_KV = law_rows(spec.laws_KV, self._identity.vocabulary_size)
            if laws_KV is None:
                self.health.malformed += 1
                return None
        link.spec, link.laws_KV, link.is_awaited = spec, laws_KV, False
        if self.observer is not None and spec.rank is not None:
            self.observer.observe_rank(*link.judged, None if spec.rank == BEYOND else spec.rank)
        if spec.resync:
            link.must_resync = True
            self.health.resyncs += 1
        return link

    def _transport_has_more(self) -> bool:
        try:
            return self._transport.poll()
        except (TransportError, OSError):
            return False

    def _receive(self, timeout: float) -> Message | None:
        """The next message that makes sense, or None where none comes in time."""
        try:
            frame = self._transport.receive(timeout)
            while frame is not None:
                self._silent = 0.0
                try:
                    return decode(frame, self._identity.vocabulary_size)
                except InputError:
                    self.health.malformed += 1
                frame = self._transport.receive(0.0)
        except (TransportError, OSError) as error:
            self._give_up(f"the draft's side has gone: {error}")
        return None

    def _send(self, message: Message, link: Link | None = None) -> None:
        if not self.health.alive:
            return
        try:
            self._transport.send(encode(message), _SEND_SECONDS)
        except BacklogError:
            self.health.unsent += 1
            if link is not None:
                link.is_awaited, link.must_resync = False, True
        except (TransportError, OSError) as error:
            self._give_up(f"the draft's side has gone: {error}")

    def _give_up(self, warning: str) -> None:
        self.health.alive, self.health.warning = False, f"{warning}; decoding goes on without it"
        for link in self._links.values():
            link.is_awaited = False
