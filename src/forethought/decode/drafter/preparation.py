"""The passes of the draft model: reading texts, drafting on the spot, glue passes, and trees depth by depth.

Each unit of work is one pass for all requests that wait for the same thing. Where pages run out a request is merely not
prepared for; nothing here fails for want of memory.

Shape suffixes: K drafted tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from forethought.core.errors import InputError
from forethought.decode.batching.pages import PageManager
from forethought.decode.drafter.accounts import DraftAccounts
from forethought.decode.drafter.branches import fork
from forethought.decode.drafter.drafting import Step, draft_step, guess, read, sampler
from forethought.decode.drafter.foresight import FanOut, Foresight
from forethought.decode.drafter.lane import Drafted, Lane
from forethought.decode.drafter.trunk import Share, Trunk
from forethought.decode.wire.protocol import Origin, Spread
from forethought.lookahead import OutcomeCache
from forethought.nn.rows import PagedModel

NAMES = {Origin.NONE: "none", Origin.CACHE: "cache", Origin.DRAFT: "draft", Origin.NGRAM: "ngram"}
_KINDS: dict[Spread, FanOut] = {
    Spread.UNIFORM: "uniform",
    Spread.GEOMETRIC: "geometric",
    Spread.EMPIRICAL: "empirical",
}
# A draft made on the spot first reads what is new since the last one; more than this is left to passes of its own.
_LONGEST_TAIL = 64


class Preparation:
    """What the draft model does for the requests that are followed; `saguaro` is the constant C.

    `budget` and `num_speculative_tokens` are the most that is ever prepared, `chunk` how many tokens of new texts a
    pass reads, `stride` how many depths of greedy trees a unit of work grows, and `max_depth` ends trees early.

    Raises:
        InputError: the pool and the model have pages of different sizes.
    """

    def __init__(
        self,
        model: PagedModel,
        pages: PageManager,
        accounts: DraftAccounts,
        *,
        budget: int,
        num_speculative_tokens: int,
        max_requests: int,
        saguaro: float = 1.0,
        chunk: int = 256,
        stride: int = 1,
        max_depth: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if pages.page_size != model.page_size or pages.num_pages > model.num_pages:
            raise InputError(
                f"a pool of {pages.num_pages} pages of {pages.page_size} for a model with {model.num_pages} of "
                f"{model.page_size}; build the pool with the model's numbers"
            )
        self.pages, self.clock = pages, clock
        self.max_positions, self.vocabulary_size = model.config.max_positions, model.config.vocab_size
        self.chunk, self._stride = chunk, stride
        self._model, self._accounts = model, accounts
        self._budget, self._max_depth = budget, max_depth
        # Requests, all of them and by what they wait for, each in the order of arrival.
        self._lanes: dict[int, Lane] = {}
        self._to_read: dict[int, Lane] = {}
        self._to_glue: dict[int, Lane] = {}
        self._to_grow: dict[int, Lane] = {}
        self._has_just_read = False
        self._serial = 0
        self._cache: OutcomeCache[tuple[int, int], int] = OutcomeCache(max(1, budget) * max_requests)
        # The verdicts on greedy drafts and on sampled ones have little in common.
        self._foresight = [Foresight("empirical", max(1, budget), num_speculative_tokens) for _ in range(2)]
        self._sampled = sampler(saguaro, num_speculative_tokens, self.foresight)
        self._counting = np.arange(self.max_positions + 1, dtype=np.int32)

    def foresight(self, trunk: Trunk) -> Foresight:
        """Return what is known about verdicts on drafts like this request's."""
        return self._foresight[trunk.is_greedy]

    def begin(self, lane: Lane) -> None:
        """Prepare for the first verdict on a text, reading it first."""
        self._serial += 1
        lane.serial, lane.answered_at = self._serial, self.clock()
        self._lanes[lane.trunk.request] = lane
        if lane.trunk.num_written < lane.read_to:
            self._to_read[lane.trunk.request] = lane
        self._schedule(lane)

    def answered(self, lane: Lane, origin: Origin, answer: Drafted) -> None:
        """Prepare for the verdict on an answer."""
        self._serial += 1
        lane.serial, lane.origin, lane.answer, lane.answered_at = self._serial, origin, answer, self.clock()
        lane.glue_seconds = lane.tree_seconds = 0.0
        lane.trunk.propose(answer.tokens)
        lane.branches.clear()
        if lane.wanted == 0 and lane.trunk.num_written < lane.trunk.length - 1:
            # Read while nobody waits: the first draft that is wanted again would wait for all of it.
            lane.read_to = lane.trunk.length - 1
            self._to_read[lane.trunk.request] = lane
        self._schedule(lane)

    def take(self, lane: Lane, accepted: int, token: int) -> int | None:
        """Return the branch that was prepared for a verdict, and stop preparing for others."""
        self._to_glue.pop(lane.trunk.request, None)
        self._to_grow.pop(lane.trunk.request, None)
        return self._cache.take(lane.trunk.request, lane.serial, (accepted, token))

    def drop(self, lane: Lane) -> None:
        """Forget a request and give its pages back."""
        for waiting in (self._lanes, self._to_read, self._to_glue, self._to_grow):
            waiting.pop(lane.trunk.request, None)
        self._cache.forget(lane.trunk.request)
        lane.branches.release()
        lane.trunk.release()

    def rest(self, lane: Lane) -> None:
        """Give the pages of a request back that nothing can be drafted for any more."""
        lane.branches.release()
        lane.trunk.release()

    def work(self) -> bool:
        """Run one pass; return False where nothing is to be done."""
        busy = bool(self._to_glue or self._to_grow)
        if self._to_read and not (busy and self._has_just_read):
            self._has_just_read = True
            self._read()
            return True
        self._has_just_read = False
        if self._to_glue:
            self._glue()
        elif self._to_grow:
            self._grow()
        return busy

    def clear(self) -> None:
        """Prepare for nothing that is not yet answered."""
        self._to_glue.clear()
        self._to_grow.clear()

    def draft(self, lanes: Sequence[Lane], lengths: Sequence[int]) -> list[Drafted]:
        """Draft on from each request's text at once, as many tokens as asked for; none where pages or texts lack."""
        began = self.clock()
        laws: list[list[Tensor]] = [[] for _ in lanes]
        able = [self._can_draft(lane, length) for lane, length in zip(lanes, lengths, strict=True)]
        lengths = [length * can for length, can in zip(lengths, able, strict=True)]
        depth, num_passes = 0, 1
        while active := [place for place, length in enumerate(lengths) if depth < length]:
            num_later = min(lengths[place] for place in active) - depth - 1
            steps = [self._next_step(lanes[place].trunk, depth, num_later) for place in active]
            for place, step, column in zip(active, steps, draft_step(self._model, steps, self._sampled), strict=True):
                step.trunk.push(column.tokens_BD[0].tolist())
                step.trunk.num_written = _end(step.trunk) - 1
                num_passes = column.tokens_BD.shape[1]
                if column.laws_BV is not None:
                    laws[place].append(column.laws_BV)
            depth += num_passes
        self._accounts.drafted += sum(lengths)
        self._accounts.draft_seconds += self.clock() - began
        return [
            Drafted(lane.trunk.drafted(), torch.cat(law).numpy() if law else None)
            for lane, law in zip(lanes, laws, strict=True)
        ]

    def extend(self, lane: Lane, branch: int, length: int) -> None:
        """Draft one branch on to at most `length` tokens, for a verdict that came before its tree was complete."""
        branches, began = lane.branches, self.clock()
        while branches.ready < min(length, branches.depth):
            (column,) = draft_step(self._model, [_tree_step(lane, 1, branch)], self._sampled)
            branches.push(column, branch)
            self._accounts.drafted += 1
        self._accounts.draft_seconds += self.clock() - began

    def _can_draft(self, lane: Lane, length: int) -> bool:
        trunk = lane.trunk
        if length < 1:
            return False
        if trunk.length - trunk.num_written > max(self.chunk, _LONGEST_TAIL):
            lane.read_to = trunk.length - 1
            self._to_read[trunk.request] = lane
            return False
        return self._reserved(partial(trunk.reserve, trunk.length + length))

    def _next_step(self, trunk: Trunk, depth: int, num_later: int) -> Step:
        end = trunk.length + depth
        share = trunk.share(min(trunk.num_written, end - 1), end, 1, self._counting)
        return Step(trunk, share, [end], depth, trunk.slots[None, end : end + num_later])

    def _schedule(self, lane: Lane) -> None:
        request = lane.trunk.request
        if request in self._to_read:
            if lane.trunk.num_written < lane.read_to:
                return
            del self._to_read[request]
        if lane.demand.budget > 0 and self._budget > 0 and self._depth(lane) > 0:
            self._to_glue[request] = lane

    def _read(self) -> None:
        began, room = self.clock(), self.chunk
        shares: list[Share] = []
        for lane in list(self._to_read.values()):
            trunk = lane.trunk
            start, stop = trunk.num_written, min(lane.read_to, trunk.num_written + room)
            if not self._reserved(partial(trunk.reserve, stop)):
                del self._to_read[trunk.request]
            elif start < stop:
                shares.append(trunk.share(start, stop, 1, self._counting))
                trunk.num_written = stop
                room -= stop - start
            if trunk.num_written >= lane.read_to:
                trunk.register(trunk.num_written)
                self._schedule(lane)
            if room < 1:
                break
        if shares:
            read(self._model, shares)
        self._accounts.read += self.chunk - room
        self._accounts.read_seconds += self.clock() - began

    def _glue(self) -> None:
        """Write the trunks anew behind the committed text and fork where verdicts are likely."""
        began, lanes = self.clock(), list(self._to_glue.values())
        self._to_glue.clear()
        lanes = [lane for lane in lanes if self._reserved(partial(lane.trunk.reserve, _end(lane.trunk)))]
        if not lanes:
            return
        shares = [self._glue_share(lane.trunk) for lane in lanes]
        guesses = guess(self._model, shares, [lane.answer.tokens for lane in lanes], self._budget)
        end = 0
        for lane in lanes:
            lane.trunk.num_written = _end(lane.trunk)
            start, end = end, end + lane.trunk.num_drafted + 1
            self._fork(lane, guesses[start:end])
        seconds = self.clock() - began
        for lane in lanes:
            lane.glue_seconds = seconds
        self._accounts.glue_passes += 1
        self._accounts.glue_seconds += seconds

    def _glue_share(self, trunk: Trunk) -> Share:
        start = min(trunk.num_written, trunk.length - 1)
        return trunk.share(start, _end(trunk), trunk.num_drafted + 1, self._counting)

    def _fork(self, lane: Lane, guesses: list[list[int]]) -> None:
        trunk, demand, depth = lane.trunk, lane.demand, self._depth(lane)
        lane.branches.guesses = guesses
        budget = min(demand.budget, self._budget)
        fan_out = self.foresight(trunk).fan_out(
            NAMES[lane.origin], len(lane.answer.tokens), budget=budget, kind=_KINDS[demand.spread]
        )
        accepted, tokens = fork(guesses, fan_out)
        if not tokens or not self._reserved(partial(lane.branches.reserve, budget, depth)):
            return
        lane.branches.start(accepted, tokens, depth, self.vocabulary_size)
        work = {outcome: branch for branch, outcome in enumerate(zip(accepted, tokens, strict=True))}
        self._cache.prepare(trunk.request, lane.serial, work)
        self._to_grow[trunk.request] = lane

    def _grow(self) -> None:
        """Draft one more token of every branch."""
        began, lanes = self.clock(), list(self._to_grow.values())
        stride = min(self._stride, *(lane.branches.depth - lane.branches.ready for lane in lanes))
        columns = draft_step(self._model, [_tree_step(lane, stride) for lane in lanes], self._sampled)
        now = self.clock()
        for lane, column in zip(lanes, columns, strict=True):
            lane.branches.push(column)
            lane.tree_seconds += now - began
            self._accounts.prepared += column.tokens_BD.size
            if lane.branches.is_complete:
                del self._to_grow[lane.trunk.request]
                self._accounts.complete += 1
                self._accounts.preparing_seconds += now - lane.answered_at
        self._accounts.tree_passes += 1
        self._accounts.tree_seconds += now - began

    def _depth(self, lane: Lane) -> int:
        return lane.depth if self._max_depth is None else min(lane.depth, self._max_depth)

    def _reserved(self, attempt: Callable[[], bool]) -> bool:
        """Try for pages, at need after taking back those scratch pages that hold nothing of use."""
        if attempt():
            return True
        for lane in list(self._lanes.values()):
            if lane.branches.is_complete:
                lane.branches.release_pages()
        if attempt():
            return True
        self._accounts.out_of_pages += 1
        return False


def _end(trunk: Trunk) -> int:
    return trunk.length + trunk.num_drafted


def _tree_step(lane: Lane, num_passes: int, only: int | None = None) -> Step:
    branches = lane.branches
    later_BD = branches.later(num_passes - 1, only)
    laws_BV = branches.laws(only)
    return Step(lane.trunk, branches.share(only), branches.positions(only), branches.ready, later_BD, laws_BV)
