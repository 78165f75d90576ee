"""Both executors against the dense model, on random shapes, pages, passes and trees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.nn.conftest import make_config, make_model
from tests.nn.paged_cases import Case, close, feed, make_case, random_case, random_passes, random_tree

from forethought.core.errors import InputError
from forethought.nn import load_language_model
from forethought.nn.native import NativePagedModel
from forethought.nn.paged import ChainModel, TorchPagedModel, greedy_chain, open_paged_model
from forethought.nn.paged_cache import PagedCache
from forethought.nn.rows import Rows

NUM_CASES = 60
EXECUTORS = {"torch": TorchPagedModel, "native": NativePagedModel}


@pytest.fixture(params=sorted(EXECUTORS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def build(kind: str, case: Case, **options: Any) -> ChainModel:
    return EXECUTORS[kind](case.model, case.num_pages, case.page_size, **options)


@pytest.mark.parametrize("part", range(4))
def test_any_passes_over_any_pages_give_the_dense_logits(kind: str, part: int) -> None:
    for seed in range(part, NUM_CASES, 4):
        case = random_case(seed)
        logits = feed(build(kind, case), case, random_passes(case, seed))
        for text, each in enumerate(logits):
            assert close(each, case.dense(text)), (seed, text, case.model.config)


@pytest.mark.parametrize("part", range(4))
def test_rows_of_a_tree_give_the_logits_under_an_explicit_mask(kind: str, part: int) -> None:
    for seed in range(part, NUM_CASES, 4):
        case = random_case(1000 + seed)
        executor, tree = build(kind, case), random_tree(case, seed)
        feed(executor, case, random_passes(case, seed))
        assert close(executor.logits(tree.rows), tree.expected_NV), (seed, case.model.config)


def test_what_a_dead_sequence_left_in_a_page_does_not_matter(kind: str) -> None:
    model = make_model(make_config())
    case = make_case(model, 3, num_texts=1, page_size=4)
    executor = build(kind, case)
    every = np.arange(case.num_pages * case.page_size, dtype=np.int32)
    huge = Rows(
        tokens_N=np.zeros_like(every),
        positions_N=np.zeros_like(every),
        slots_N=every,
        sequence_N=np.zeros_like(every),
        visible_N=np.zeros_like(every),
        pages_SP=case.pages_SP,
        logits_M=every[:0],
    )
    assert executor.logits(huge).shape == (0, model.config.vocab_size)
    assert close(feed(executor, case, random_passes(case, 3))[0], case.dense(0))


def test_only_wanted_rows_come_back_in_the_order_asked(kind: str) -> None:
    case = random_case(5)
    executor = build(kind, case)
    where = [(0, position) for position in range(len(case.texts[0]))]
    rows = case.rows(where)
    wanted = np.array([len(where) - 1, 0, 0], dtype=np.int32)
    assert close(executor.logits(replace(rows, logits_M=wanted)), case.dense(0)[torch.from_numpy(wanted).long()])
    assert executor.logits(replace(rows, logits_M=wanted[:0])).shape == (0, case.model.config.vocab_size)


def test_greedy_takes_the_lowest_id_among_equals(kind: str) -> None:
    model = make_model(make_config(tie_embeddings=False))
    assert model.unembedding is not None
    with torch.no_grad():
        model.unembedding.weight[:] = 0.0
        model.unembedding.weight[[7, 40, 60]] = torch.randn(32, generator=torch.Generator().manual_seed(0))
    case = make_case(model, 1, num_texts=1, longest=20)
    rows = case.rows([(0, position) for position in range(len(case.texts[0]))])
    best = build(kind, case).greedy(rows)
    assert set(best.tolist()) <= {0, 7}
    assert np.array_equal(best, case.dense(0).numpy().argmax(axis=1))


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_give_no_token_and_no_crash(kind: str, poison: float) -> None:
    case = random_case(8)
    with torch.no_grad():
        case.model.norm.weight[0] = poison
    rows = case.rows([(0, position) for position in range(len(case.texts[0]))])
    executor = build(kind, case)
    assert not torch.isfinite(executor.logits(rows)).all()
    assert set(executor.greedy(rows).tolist()) == {-1}
    slots = np.empty((len(rows.tokens_N), 0), dtype=np.int32)
    assert set(executor.greedy_chain(rows, slots).ravel().tolist()) == {-1}


def test_one_logit_that_is_no_number_gives_no_token(kind: str) -> None:
    case = make_case(make_model(make_config(tie_embeddings=False)), 9, num_texts=1)
    assert case.model.unembedding is not None
    with torch.no_grad():
        case.model.unembedding.weight[5] = torch.nan
    assert build(kind, case).greedy(case.rows([(0, 0)])).tolist() == [-1]
    with torch.no_grad():
        case.model.unembedding.weight[5] = 0.0
        case.model.unembedding.weight[60] = torch.nan  # past the last whole vector
    assert build(kind, case).greedy(case.rows([(0, 0)])).tolist() == [-1]


def test_one_spoiled_row_leaves_the_others_alone() -> None:
    case = make_case(make_model(make_config(tie_embeddings=False)), 9, num_texts=3)
    with torch.no_grad():
        case.model.embedding.weight[2] = torch.nan
    case.texts = [np.where(text == 2, 3, text) for text in case.texts]
    expected = case.dense(0)
    case.texts[1][:] = 2
    logits = feed(build("native", case), case, random_passes(case, 9))
    assert close(logits[0], expected)
    assert torch.isnan(logits[1]).all()


@pytest.mark.parametrize("branch", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_a_chain_is_greedy_again_and_again(kind: str, branch: bool, seed: int) -> None:
    case, num_later = random_case(2000 + seed), 4
    last = [len(text) - 1 for text in case.texts]
    size, free = case.page_size, sorted(set(range(case.num_pages)) - set(case.pages_SP.ravel().tolist()))
    pages = [[page for page in line if page >= 0] for line in case.pages_SP.tolist()]
    slots = np.empty((len(last), num_later), dtype=np.int32)
    for text, position in enumerate(last):
        for step in range(num_later):
            at = position + 1 + step
            if at // size >= len(pages[text]):
                pages[text].append(free.pop())
            slots[text, step] = pages[text][at // size] * size + at % size
    case.pages_SP = np.array([line + [-1] * (99 - len(line)) for line in pages], dtype=np.int32)
    executor = build(kind, case)
    feed(executor, case, [[(t, p) for t, text in enumerate(case.texts) for p in range(len(text) - 1)]])
    rows = case.rows(list(enumerate(last)))
    if branch:
        extra = np.full((len(last), 3), -1, dtype=np.int32)
        extra[:, 1] = rows.slots_N
        rows = replace(rows, visible_N=rows.visible_N - 1, extra_NE=extra)
    ids = executor.greedy_chain(rows, slots)
    assert ids.shape == (len(last), num_later + 1)
    assert np.array_equal(ids, greedy_chain(executor, rows, slots))
    for text, line in enumerate(ids.tolist()):
        case.texts[text] = np.concatenate([case.texts[text], np.array(line[:-1], dtype=np.int32)])
        assert line == case.dense(text)[last[text] :].argmax(dim=1).tolist()


WRONG: dict[str, dict[str, Any]] = {
    "token beyond the vocabulary": {"tokens_N": np.array([0, 61], np.int32)},
    "negative token": {"tokens_N": np.array([0, -1], np.int32)},
    "negative position": {"positions_N": np.array([0, -1], np.int32)},
    "position past context and pool": {"positions_N": np.array([0, 96 + 16], np.int32)},
    "slot beyond the pool": {"slots_N": np.array([0, 16], np.int32)},
    "slot written twice": {"slots_N": np.array([3, 3], np.int32)},
    "no such sequence": {"sequence_N": np.array([0, 1], np.int32)},
    "more visible than pages": {"visible_N": np.array([1, 13], np.int32)},
    "negative visible": {"visible_N": np.array([1, -1], np.int32)},
    "page beyond the pool": {"pages_SP": np.array([[4, 1, 2]], np.int32)},
    "page not given": {"pages_SP": np.array([[-1, 1, 2]], np.int32)},
    "wanted row not there": {"logits_M": np.array([2], np.int32)},
    "extra beyond the pool": {"extra_NE": np.array([[1], [16]], np.int32)},
    "extra below -1": {"extra_NE": np.array([[1], [-2]], np.int32)},
    "extras of other rows": {"extra_NE": np.array([[1]], np.int32)},
    "short array": {"positions_N": np.array([0], np.int32)},
    "flat pages": {"pages_SP": np.array([0, 1, 2], np.int32)},
}


@pytest.mark.parametrize("wrong", sorted(WRONG))
def test_rows_that_name_what_is_not_there_are_refused(kind: str, wrong: str) -> None:
    case = make_case(make_model(make_config()), 0, num_texts=1, page_size=4)
    executor = EXECUTORS[kind](case.model, 4, 4)
    rows = Rows(
        tokens_N=np.array([5, 6], np.int32),
        positions_N=np.array([0, 1], np.int32),
        slots_N=np.array([0, 1], np.int32),
        sequence_N=np.array([0, 0], np.int32),
        visible_N=np.array([1, 2], np.int32),
        pages_SP=np.array([[0, 1, -1]], np.int32),
        logits_M=np.array([1], np.int32),
    )
    before = executor.logits(rows).clone()
    bad = replace(rows, **WRONG[wrong])
    none = np.empty((len(bad.logits_M), 0), np.int32)
    for call in (executor.logits, executor.greedy, lambda given: executor.greedy_chain(given, none)):
        with pytest.raises(InputError):
            call(bad)
    assert torch.equal(executor.logits(rows), before)


@pytest.mark.parametrize("slots", [[[2, 2]], [[2, 16]], [[-1, 2]], [[2, 3], [4, 5]]])
def test_slots_of_a_chain_that_are_not_there_are_refused(kind: str, slots: list[list[int]]) -> None:
    case = make_case(make_model(make_config()), 0, num_texts=1, page_size=4)
    executor = EXECUTORS[kind](case.model, 4, 4)
    one = np.zeros(1, np.int32)
    rows = Rows(one, one, one, one, one + 1, np.array([[0]], np.int32), one)
    with pytest.raises(InputError):
        executor.greedy_chain(rows, np.array(slots, np.int32))
    with pytest.raises(InputError):  # the fourth pass would need a second page
        executor.greedy_chain(rows, np.array([[1, 2, 3, 4]], np.int32))


def test_a_pool_without_pages_is_refused(kind: str) -> None:
    model = make_model(make_config())
    for num_pages, page_size in ((0, 4), (4, 0), (1 << 20, 1 << 20)):
        with pytest.raises(InputError):
            EXECUTORS[kind](model, num_pages, page_size)


def test_positions_past_the_context_turn_on(kind: str) -> None:
    case = random_case(21)
    far = make_config(max_positions=8)
    model = make_model(far)
    case = make_case(model, 2, num_texts=1, longest=1, page_size=4)
    executor = EXECUTORS[kind](model, 400, 4)
    rows = case.rows([(0, 0)])
    turned = replace(rows, positions_N=np.array([1500], np.int32), extra_NE=np.empty((1, 0), np.int32))
    tokens = torch.from_numpy(rows.tokens_N.astype(np.int64))[None]
    with torch.inference_mode():
        expected = model(tokens, positions=torch.tensor([1500]))[0]
    assert close(executor.logits(turned), expected)


def test_the_real_pair_says_what_the_dense_models_say(kind: str, shared_data: Path) -> None:
    for name in ("draft", "target"):
        model = load_language_model(shared_data / "models" / "pair" / name).float()
        case = make_case(model, 4, num_texts=2, longest=60, page_size=16)
        executor = build(kind, case)
        logits = feed(executor, case, random_passes(case, 4))
        for text, each in enumerate(logits):
            dense = case.dense(text)
            assert close(each, dense)
            assert torch.equal(each.argmax(dim=1), dense.argmax(dim=1))


def test_the_portable_executor_follows_the_models_type() -> None:
    case = random_case(30)
    case.model.to(torch.bfloat16)
    logits = feed(TorchPagedModel(case.model, case.num_pages, case.page_size), case, random_passes(case, 1))
    for text, each in enumerate(logits):
        expected = case.dense(text)
        assert (each - expected).abs().max() <= 0.1 * expected.abs().max()


def test_a_view_of_pages_is_not_a_cache_to_cut() -> None:
    case = random_case(31)
    view = PagedCache(case.model.config, case.num_pages, case.page_size).view(case.rows([(0, 0)]))
    assert view.length == 0
    with pytest.raises(InputError):
        view.truncate(0)
    with pytest.raises(InputError):
        view.select([0])


def test_a_wrong_backend_or_type_is_refused() -> None:
    model = make_model(make_config())
    for wrong in ({"backend": "cpp"}, {"dtype": "float16"}, {"num_threads": 0}):
        with pytest.raises(InputError):
            open_paged_model(model, num_pages=4, page_size=4, **wrong)  # pyright: ignore[reportArgumentType]
