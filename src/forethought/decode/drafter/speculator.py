"""The draft's side of an engine: it answers verdicts, at once where it foresaw them, and then prepares for the next.

For every request: a verdict comes in; what was prepared for it goes out, or what the fallback makes; one glue pass
writes the trunk anew and shows what may follow each accepted length; the likeliest verdicts become branches of a token
tree, which grows depth by depth (arXiv 2603.03251, algorithm 1). A verdict that comes while the tree grows is answered
with the depth at hand. Requests are served together: a pass has the rows of all that wait for the same thing.

The output law is the target's whatever happens here: a prepared draft was drawn from the law that is sent with it,
after exactly the text that was committed, with random numbers that no verdict has used; which draft is sent, and how
long it is, depends on committed tokens and on time only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from forethought.core.config import from_dict
from forethought.core.errors import ForethoughtError, InputError
from forethought.decode.batching.pages import PageManager
from forethought.decode.drafter.accounts import DraftAccounts
from forethought.decode.drafter.branches import Branches
from forethought.decode.drafter.lane import Drafted, Lane
from forethought.decode.drafter.preparation import NAMES, Preparation
from forethought.decode.drafter.trunk import Trunk
from forethought.decode.served import ServedModel, open_model
from forethought.decode.wire.messages import decode, encode
from forethought.decode.wire.options import SpeculatorOptions
from forethought.decode.wire.protocol import (
    BEYOND,
    EMPTY_HASH,
    MAX_BUDGET,
    MAX_TOKENS,
    Demand,
    Failure,
    Fallback,
    Free,
    Hello,
    Message,
    Origin,
    Outcome,
    Prefill,
    Shutdown,
    Spec,
    Stats,
    Tag,
    disagreement,
    extend_hash,
)
from forethought.nn.devices import usable_device
from forethought.nn.native.model import WeightType
from forethought.nn.paged import Backend, open_paged_model
from forethought.nn.rows import PagedModel


class Speculator:
    """The draft model behind frames: `handle` takes one in, `work` does one unit of what can be done ahead.

    `pages` is the model's own pool; `identity` says what must agree with the target's side (its vocabulary is the
    model's unless given). One thread calls it.

    Raises:
        InputError: the pool and the model have pages of different sizes.
    """

    def __init__(
        self,
        model: PagedModel,
        pages: PageManager,
        options: SpeculatorOptions | None = None,
        *,
        identity: Hello | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.options = options = options or SpeculatorOptions()
        self.accounts = DraftAccounts()
        self.preparation = Preparation(
            model,
            pages,
            self.accounts,
            budget=options.budget,
            num_speculative_tokens=options.num_speculative_tokens,
            max_requests=options.max_requests,
            saguaro=options.saguaro,
            stride=options.stride,
            chunk=options.prefill_chunk,
            max_depth=options.max_depth,
            clock=clock,
        )
        self._identity = identity or Hello(model.config.vocab_size)
        self._lanes: dict[int, Lane] = {}
        self._missed: dict[int, tuple[Lane, Spec]] = {}
        self._outbox: list[bytes] = []

    def handle(self, frame: bytes) -> list[bytes]:
        """Take a frame in and return the replies to it; a frame that makes no sense is answered with an ERROR."""
        try:
            message = decode(frame, self._identity.vocabulary_size)
        except InputError as error:
            self.accounts.malformed += 1
            return [encode(Failure(str(error)))]
        return [*self.replies(), *(encode(reply) for reply in self._react(message))]

    def work(self) -> bool:
        """Run one pass of what can be done ahead; return False where nothing is to be done."""
        try:
            if self._missed:
                self._outbox += [encode(reply) for reply in self._draft_late()]
                return True
            return self.preparation.work()
        except ForethoughtError as error:
            # A model whose logits are no numbers: nothing can be prepared, and requests go on without drafts.
            self.preparation.clear()
            self._outbox.append(encode(Failure(str(error))))
            return True

    def replies(self) -> list[bytes]:
        """Return what `work` has to say: drafts that `defer` left to it, and errors; `handle` does so too."""
        said, self._outbox = self._outbox, []
        return said

    def stats(self) -> DraftAccounts:
        """Return the counts so far."""
        return self.accounts

    def _react(self, message: Message) -> list[Message]:
        match message:
            case Outcome():
                return self._outcome(message)
            case Prefill():
                self._prefill(message)
            case Free():
                lane = self._lanes.get(message.tag.request)
                if lane is not None and message.tag.epoch >= lane.trunk.epoch:
                    self._drop(lane)
            case Stats():
                return [self.accounts.to_message()]
            case Hello():
                return [self._hello(message)]
            case Shutdown():
                for lane in list(self._lanes.values()):
                    self._drop(lane)
            case _:
                pass
        return []

    def _hello(self, other: Hello) -> Message:
        difference = disagreement(other, self._identity)
        return Failure(difference) if difference else self._identity

    def _prefill(self, message: Prefill) -> None:
        request, epoch, round_, _ = message.tag
        known = self._lanes.get(request)
        if known is not None:
            if (epoch, round_) < (known.trunk.epoch, known.trunk.round):
                self.accounts.stale += 1
                return
            self._drop(known)
        while len(self._lanes) >= self.options.max_requests:
            self._drop(next(iter(self._lanes.values())))
            self.accounts.evicted += 1
        if extend_hash(EMPTY_HASH, message.tokens_T.tolist()) != message.tag.prefix_hash:
            self.accounts.malformed += 1
            return
        pages = self.preparation.pages
        trunk = Trunk(message, pages, self.preparation.max_positions)
        lane = Lane(trunk, Branches(trunk, pages), self._within(message.demand), trunk.length - 1)
        self._lanes[request] = lane
        if not trunk.is_full:
            self.preparation.begin(lane)

    def _drop(self, lane: Lane) -> None:
        self._missed.pop(lane.trunk.request, None)
        self._lanes.pop(lane.trunk.request, None)
        self.preparation.drop(lane)

    def _outcome(self, message: Outcome) -> list[Message]:
        lane = self._lanes.get(message.tag.request)
        if lane is None:
            return [self._resync(message.tag)]
        request, epoch, round_, prefix_hash = message.tag
        if (epoch, round_) <= (lane.trunk.epoch, lane.trunk.round):
            if message.tag == lane.tag:
                self.accounts.repeated += 1
                return []
            self.accounts.stale += 1
            return [Spec(message.tag)]
        agreed = prefix_hash == extend_hash(lane.trunk.prefix_hash, message.tokens)
        if not agreed or (epoch, round_) != (lane.trunk.epoch, lane.trunk.round + 1) or request in self._missed:
            self._drop(lane)
            return [self._resync(message.tag)]
        # The order of the dictionary is that of the last use, for whoever must give way.
        self._lanes[request] = self._lanes.pop(request)
        return self._answer(lane, message)

    def _resync(self, tag: Tag) -> Spec:
        self.accounts.resyncs += 1
        return Spec(tag, resync=True)

    def _answer(self, lane: Lane, message: Outcome) -> list[Message]:
        self.accounts.outcomes += 1
        branches, preparation = lane.branches, self.preparation
        num_drafted, lane.demand = len(lane.answer.tokens), self._within(message.demand)
        matched = lane.trunk.commit(message.tokens)
        accepted = min(matched, len(message.tokens) - 1)
        spec = Spec(lane.tag, ready=branches.ready, complete=branches.depth > 0 and branches.is_complete)
        spec.rank = self._observe(lane, message, matched, num_drafted)
        spec.glue_seconds, spec.tree_seconds = lane.glue_seconds, lane.tree_seconds
        branch = preparation.take(lane, accepted, message.tokens[accepted])
        forced = self._forced(lane)
        prepared = None
        if forced != "miss" and lane.wanted > 0:
            if branch is not None and self.options.extend:
                preparation.extend(lane, branch, lane.wanted)
            prepared = lane.follow(message.tokens, matched, branch)
        has_hit = bool(prepared is not None and prepared.tokens) or forced == "hit"
        self._count(lane, accepted, has_hit)
        if prepared is not None and prepared.tokens:
            return [self._send(lane, spec, Origin.CACHE, prepared.part(0, lane.wanted))]
        return self._fall_back(lane, spec, forced == "hit")

    def _fall_back(self, lane: Lane, spec: Spec, forced: bool) -> list[Message]:
        fallback = lane.demand.fallback
        if lane.wanted > 0 and (forced or fallback == Fallback.DRAFT):
            spec.origin = Origin.CACHE if forced else Origin.DRAFT
            self._missed[lane.trunk.request] = (lane, spec)
            return [] if self.options.defer else self._draft_late()
        tokens = lane.look_up(lane.wanted) if fallback == Fallback.NGRAM else []
        self.accounts.copied += len(tokens)
        return [self._send(lane, spec, Origin.NGRAM, Drafted(tokens))]

    def _draft_late(self) -> list[Message]:
        """Answer the verdicts that nothing was prepared for, all together."""
        pairs, self._missed = list(self._missed.values()), {}
        lanes = [lane for lane, _ in pairs]
        lengths = [
            lane.wanted if spec.origin == Origin.CACHE else min(lane.wanted, lane.demand.jit_length)
            for lane, spec in pairs
        ]
        replies: list[Message] = []
        try:
            drafts = self.preparation.draft(lanes, lengths)
        except ForethoughtError as error:
            replies.append(Failure(str(error)))
            drafts = [Drafted([]) for _ in lanes]
            for lane in lanes:
                lane.trunk.propose([])
        replies += [
            self._send(lane, spec, spec.origin, draft) for (lane, spec), draft in zip(pairs, drafts, strict=True)
        ]
        return replies

    def _send(self, lane: Lane, spec: Spec, origin: Origin, drafted: Drafted) -> Spec:
        spec.origin = origin if drafted.tokens else Origin.NONE
        spec.tokens, spec.laws_KV = drafted
        self.accounts.unanswered += not drafted.tokens
        if origin == Origin.CACHE:
            self.accounts.used += len(drafted.tokens)
            self.accounts.cut_short += len(drafted.tokens) < lane.wanted
        if lane.trunk.is_full:
            self.preparation.rest(lane)
        else:
            self.preparation.answered(lane, spec.origin, drafted)
        return spec

    def _within(self, demand: Demand) -> Demand:
        return demand._replace(wanted=min(demand.wanted, self.options.num_speculative_tokens))

    def _forced(self, lane: Lane) -> str | None:
        if self.options.forced != "alternating":
            return self.options.forced
        return "hit" if lane.trunk.round % 2 else "miss"

    def _observe(self, lane: Lane, message: Outcome, matched: int, num_drafted: int) -> int | None:
        """Learn from a verdict on the answer itself, or on none where the answer was none; return the bonus's rank."""
        accepted = len(message.tokens) - 1
        own = message.accepted == accepted or (num_drafted == 0 and accepted == 0)
        guesses = lane.branches.guesses
        if not own or matched != accepted or accepted >= len(guesses):
            return None
        row, bonus = guesses[accepted], message.tokens[-1]
        rank = row.index(bonus) if bonus in row else len(row)
        self.preparation.foresight(lane.trunk).observe(NAMES[lane.origin], accepted, num_drafted, rank)
        ranks = self.accounts.ranks_accepted if accepted == num_drafted else self.accounts.ranks_rejected
        ranks[min(rank, MAX_TOKENS)] += 1
        return rank if rank < len(row) else BEYOND

    def _count(self, lane: Lane, accepted: int, hit: bool) -> None:
        accounts = self.accounts
        accounts.hits += hit
        accounts.misses += not hit
        by_length = accounts.hits_by_length if hit else accounts.misses_by_length
        by_length[min(accepted, MAX_TOKENS)] += 1
        if lane.missed:
            accounts.hits_after_miss += hit
            accounts.misses_after_miss += not hit
        lane.missed = not hit


def open_speculator(
    *,
    model: str,
    num_pages: int,
    page_size: int = 16,
    backend: Backend = "auto",
    dtype: WeightType | None = None,
    num_threads: int = 1,
    device: str = "cpu",
    options: Mapping[str, Any] | None = None,
) -> Speculator:
    """Return the draft's side for a model directory, from plain values as they come over to another process.

    `num_pages` of `page_size` positions hold the texts and the trees, `options` are the fields of SpeculatorOptions.

    Raises:
        ArtefactError: the directory holds no language model or no tokenizer.
        ConfigError: an option is unknown or out of range, or the device cannot be used.
        InputError: the executor cannot be had.
    """
    settings = from_dict(SpeculatorOptions, options or {}, source="the draft's options")
    served = open_model(model)
    executor = open_paged_model(
        served.model.to(usable_device(device)),
        num_pages=num_pages,
        page_size=page_size,
        backend=backend,
        dtype=dtype,
        num_threads=num_threads,
    )
    identity = identity_of(served, settings.num_speculative_tokens, settings.budget)
    return Speculator(executor, PageManager(num_pages, page_size), settings, identity=identity)


def identity_of(served: ServedModel, max_tokens: int = MAX_TOKENS, max_budget: int = MAX_BUDGET) -> Hello:
    """Return what a side with this model says of itself; both sides of a draft must agree on it."""
    digest = bytes.fromhex(served.tokenizer.digest)[:32].ljust(32, b"\0")
    dtype = str(served.model.embedding.weight.dtype).removeprefix("torch.")
    return Hello(served.model.config.vocab_size, digest, max_tokens, max_budget, dtype)
