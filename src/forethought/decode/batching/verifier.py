"""The target's side of a step: rows for the model, then a verdict for each request by its own parameters.

Shape suffixes: N rows, M rows whose logits are wanted, S sequences, P pages, K drafted tokens, R rows of one request
(its drafted tokens and one), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from forethought.core.errors import ForethoughtError
from forethought.decode.draft import NO_DRAFT, Draft, Judged
from forethought.decode.law.chance import Chance
from forethought.decode.law.constraint import Constraint
from forethought.decode.law.logprobs import token_logprobs
from forethought.decode.law.processors import Mask, Processors, forbid, processors_for
from forethought.decode.law.sampling import distribution
from forethought.decode.law.verify import Verdict, verify, verify_greedy
from forethought.decode.request import Request, Work
from forethought.nn.rows import PagedModel, Rows

Setting: TypeAlias = Callable[[], AbstractContextManager[object]]

# What sampling and constraints raise: our own errors, torch's and NumPy's complaints about values, shapes, indices and
# types, and the grammar library's. Whatever else turns up is a defect of the engine and not of one request.
_REQUEST_FAILURES = (ForethoughtError, RuntimeError, ValueError, ArithmeticError, LookupError, TypeError)

_DAMAGED = "the model gave logits without a finite largest value; its weights or input are damaged"


class TargetVerifier:
    """Judges the drafts of many requests with one pass of the target model, each by its own parameters and numbers.

    A verdict is a function of the request's tokens, parameters and draft alone. `eos_token_ids` are those that
    `min_tokens` holds back. Where every deciding request takes the most likely token as it is, the model is asked for
    no more than that. `setting` makes the block that passes and judgements run in, such as a stream of a GPU.
    """

    def __init__(self, model: PagedModel, *, eos_token_ids: Sequence[int] = (), setting: Setting = nullcontext) -> None:
        self._model, self._setting = model, setting
        self._eos_token_ids = tuple(eos_token_ids)
        self._judges: dict[int, _Judge] = {}
        self._constraints: dict[int, Constraint] = {}

    def constrain(self, request_id: int, constraint: Constraint) -> None:
        """Hold a request to a constraint from its first token on; to be said before its first verdict."""
        self._constraints[request_id] = constraint

    def forget(self, request: Request) -> None:
        """Drop what is kept for a request that has ended."""
        self._judges.pop(request.id, None)
        self._constraints.pop(request.id, None)

    def run(self, works: Sequence[Work], drafts: Mapping[int, Draft]) -> list[Judged]:
        """Compute all shares in one pass and return a verdict for each; one request's failure touches no other.

        The drafted tokens are the last of a share; their laws are those of the request's draft, leading rows first.
        """
        with self._setting():
            return self._run(works, drafts)

    def _run(self, works: Sequence[Work], drafts: Mapping[int, Draft]) -> list[Judged]:
        rows = build_rows(works, self._model.page_size)
        judges = [self._judge(work.request) if work.decides else None for work in works]
        if all(judge is None or judge.is_plain_greedy for judge in judges):
            tokens = self._model.greedy(rows).tolist()
            shares = ((judge, work, tokens[share]) for judge, work, share in _shares(judges, works))
            return [_greedy(work, own) if judge else Judged() for judge, work, own in shares]
        logits_MV = self._model.logits(rows)
        return [
            judge.run(logits_MV[share], work, drafts.get(work.request.id, NO_DRAFT)) if judge else Judged()
            for judge, work, share in _shares(judges, works)
        ]

    def _judge(self, request: Request) -> _Judge:
        judge = self._judges.get(request.id)
        if judge is None:
            processors = processors_for(
                request.params, request.prompt, self._eos_token_ids, self._model.config.vocab_size
            )
            judge = _Judge(request, processors, self._constraints.get(request.id))
            self._judges[request.id] = judge
        return judge


class _Judge:
    """What verdicts on one request need and keep."""

    def __init__(self, request: Request, processors: Processors | None, constraint: Constraint | None) -> None:
        params = request.params
        self._params, self._num_prompt = params, len(request.prompt)
        self._chance = Chance(params.seed)
        self._processors, self._constraint = processors, constraint
        self._num_committed = 0
        self._is_changed = processors is not None or constraint is not None
        self.is_plain_greedy = params.temperature == 0.0 and params.logprobs is None and not self._is_changed

    def run(self, logits_RV: Tensor, work: Work, draft: Draft) -> Judged:
        """Judge a draft, given the target's raw logits after the last committed token and each drafted one."""
        try:
            return self._run(logits_RV, work, draft.cut(work.num_draft))
        except _REQUEST_FAILURES as error:
            return Judged(error=str(error) or type(error).__name__)

    def _run(self, raw_RV: Tensor, work: Work, draft: Draft) -> Judged:
        tokens = work.tokens[len(work.tokens) - work.num_draft :]
        if draft.tokens != tokens:
            raise ForethoughtError(f"tokens {tokens} were scheduled and {draft.tokens} drafted; give the draft's own")
        logits_RV, num_allowed = raw_RV, len(raw_RV)
        if self._is_changed:
            logits_RV, num_allowed = self._process(raw_RV, work.request.tokens[self._num_prompt :], tokens)
        verdict = self._verdict(logits_RV, draft, len(work.request.tokens))
        if verdict.accepted >= num_allowed:
            raise ForethoughtError("no token is allowed here: the constraint, min_tokens and logit_bias exclude all")
        if self._params.logprobs is None:
            return Judged(verdict.accepted, verdict.bonus)
        kept = [*tokens[: verdict.accepted], verdict.bonus]
        logprobs = token_logprobs(raw_RV[: len(kept)], kept, self._params.logprobs)
        return Judged(verdict.accepted, verdict.bonus, logprobs)

    def _process(self, raw_RV: Tensor, output: Sequence[int], draft: Sequence[int]) -> tuple[Tensor, int]:
        """Return the logits that count, and how many leading rows allow any token at all.

        Rows that cannot be reached (behind a forbidden drafted token, or from one on that allows nothing) stay raw.
        """
        masks = None if self._constraint is None else self._masks(self._constraint, output, draft)
        num_rows = len(raw_RV) if masks is None else len(masks)
        if self._processors is not None:
            changed_RV = self._processors(raw_RV[:num_rows], output, draft, masks)
        else:
            changed_RV = forbid(raw_RV[:num_rows].clone(), masks or [])
        is_alive_R = torch.isfinite(changed_RV.amax(dim=-1)).tolist()
        num_alive = num_rows if all(is_alive_R) else is_alive_R.index(False)
        if num_alive < len(raw_RV):
            changed_RV = torch.cat([changed_RV[:num_alive], raw_RV[num_alive:]])
        return changed_RV, num_alive if num_alive < num_rows else len(raw_RV)

    def _masks(self, constraint: Constraint, output: Sequence[int], draft: Sequence[int]) -> list[Mask]:
        """Bring the constraint up to the committed tokens and ask it for each row."""
        constraint.commit(output[self._num_committed :])
        self._num_committed = len(output)
        return constraint.masks(draft)

    def _verdict(self, logits_RV: Tensor, draft: Draft, position: int) -> Verdict:
        if self._params.temperature == 0.0:
            largest_R, tokens_R = logits_RV.max(dim=-1)
            if not bool(torch.isfinite(largest_R).all()):
                raise ForethoughtError(_DAMAGED)
            return verify_greedy(tokens_R.tolist(), draft.tokens)
        laws_RV, laws_KV = distribution(logits_RV, self._params), draft.laws_KV
        if laws_KV is not None:
            if laws_KV.shape != laws_RV[1:].shape:
                raise ForethoughtError(f"a draft came with laws {tuple(laws_KV.shape)}, not {tuple(laws_RV[1:].shape)}")
            laws_KV = laws_KV.to(laws_RV)
        tokens_K = torch.tensor(draft.tokens, dtype=torch.int64, device=laws_RV.device)
        return verify(laws_RV, laws_KV, tokens_K, self._chance.verification(position))


def _greedy(work: Work, target_tokens: Sequence[int]) -> Judged:
    """The verdict by the most likely tokens alone; a negative one stands for logits without a finite largest value."""
    if min(target_tokens) < 0:
        return Judged(error=_DAMAGED)
    verdict = verify_greedy(target_tokens, work.tokens[len(work.tokens) - work.num_draft :])
    return Judged(verdict.accepted, verdict.bonus)


def _shares(judges: Sequence[_Judge | None], works: Sequence[Work]) -> Iterator[tuple[_Judge | None, Work, slice]]:
    """Each share with its part of the wanted rows."""
    start = 0
    for judge, work in zip(judges, works, strict=True):
        end = start + (work.num_draft + 1 if work.decides else 0)
        yield judge, work, slice(start, end)
        start = end


def build_rows(works: Sequence[Work], page_size: int) -> Rows:
    """Return the rows of one pass over these shares: each token sees its own sequence up to itself."""
    num_tokens_S = [len(work.tokens) for work in works]
    starts_S, ends = [work.start for work in works], np.cumsum(num_tokens_S)
    num_pages = max((work.start + len(work.tokens) - 1) // page_size + 1 for work in works)
    pages_SP = np.zeros((len(works), num_pages), dtype=np.int32)
    for row_P, work in zip(pages_SP, works, strict=True):
        used = work.request.pages[:num_pages]
        row_P[: len(used)] = used
    num_rows = int(ends[-1])
    tokens_N = np.fromiter(chain.from_iterable(work.tokens for work in works), dtype=np.int32, count=num_rows)
    sequence_N = np.repeat(np.arange(len(works), dtype=np.int32), num_tokens_S)
    offset_S = np.array(starts_S) - ends + num_tokens_S
    positions_N = (np.arange(num_rows) + offset_S[sequence_N]).astype(np.int32)
    page_N, place_N = np.divmod(positions_N, np.int32(page_size))
    slots_N = pages_SP[sequence_N, page_N] * np.int32(page_size) + place_N
    wanted = [
        range(int(end) - work.num_draft - 1, int(end)) for work, end in zip(works, ends, strict=True) if work.decides
    ]
    logits_M = np.fromiter(chain.from_iterable(wanted), dtype=np.int32)
    return Rows(tokens_N, positions_N, slots_N, sequence_N, positions_N + np.int32(1), pages_SP, logits_M)
