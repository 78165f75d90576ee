"""The executor of static shapes: every case of the other executors, and what only it can get wrong."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.nn import test_paged as shared
from tests.nn.conftest import make_config, make_model
from tests.nn.paged_cases import Case, close, feed, make_case, random_case, random_passes, random_tree
from torch.utils._python_dispatch import TorchDispatchMode

from forethought.core.errors import InputError
from forethought.core.rng import generator
from forethought.nn.graphed import GraphedPagedModel
from forethought.nn.graphed_layout import Layout, bucket, rows_per_group
from forethought.nn.graphed_runner import PlainRunner
from forethought.nn.native import top_k
from forethought.nn.rows import Rows


@pytest.fixture(autouse=True)
def _known_as_graphed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shared.EXECUTORS, "graphed", GraphedPagedModel)
    monkeypatch.setattr(shared, "NUM_CASES", 40)


@pytest.mark.parametrize("part", range(4))
def test_any_passes_over_any_pages_give_the_dense_logits(part: int) -> None:
    shared.test_any_passes_over_any_pages_give_the_dense_logits("graphed", part)


@pytest.mark.parametrize("part", range(4))
def test_rows_of_a_tree_give_the_logits_under_an_explicit_mask(part: int) -> None:
    shared.test_rows_of_a_tree_give_the_logits_under_an_explicit_mask("graphed", part)


@pytest.mark.parametrize(
    "case",
    [
        shared.test_what_a_dead_sequence_left_in_a_page_does_not_matter,
        shared.test_only_wanted_rows_come_back_in_the_order_asked,
        shared.test_greedy_takes_the_lowest_id_among_equals,
        shared.test_one_logit_that_is_no_number_gives_no_token,
        shared.test_a_pool_without_pages_is_refused,
        shared.test_positions_past_the_context_turn_on,
    ],
)
def test_what_holds_for_every_executor_holds_for_this_one(case: Any) -> None:
    case("graphed")


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_give_no_token_and_no_crash(poison: float) -> None:
    shared.test_logits_that_are_not_finite_give_no_token_and_no_crash("graphed", poison)


@pytest.mark.parametrize("branch", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_a_chain_is_greedy_again_and_again(branch: bool, seed: int) -> None:
    shared.test_a_chain_is_greedy_again_and_again("graphed", branch, seed)


@pytest.mark.parametrize("wrong", sorted(shared.WRONG))
def test_rows_that_name_what_is_not_there_are_refused(wrong: str) -> None:
    shared.test_rows_that_name_what_is_not_there_are_refused("graphed", wrong)


@pytest.mark.parametrize("slots", [[[2, 2]], [[2, 16]], [[-1, 2]], [[2, 3], [4, 5]]])
def test_slots_of_a_chain_that_are_not_there_are_refused(slots: list[list[int]]) -> None:
    shared.test_slots_of_a_chain_that_are_not_there_are_refused("graphed", slots)


def test_the_real_pair_says_what_the_dense_models_say(shared_data: Path) -> None:
    shared.test_the_real_pair_says_what_the_dense_models_say("graphed", shared_data)


def open_graphed(case: Case, **options: Any) -> GraphedPagedModel:
    return GraphedPagedModel(case.model, case.num_pages, case.page_size, **options)


def stores(executor: GraphedPagedModel) -> list[torch.Tensor]:
    return [store.clone() for store in (*executor._keys_SKD, *executor._values_SKD)]


@pytest.mark.parametrize("seed", range(6))
def test_rows_that_fill_a_bucket_touch_no_page(seed: int) -> None:
    case = random_case(3000 + seed)
    executor = open_graphed(case)
    every = case.num_pages * case.page_size
    for where in random_passes(case, seed):
        before, rows = stores(executor), case.rows(where)
        executor.logits(rows)
        others = np.setdiff1d(np.arange(every + 2), [*rows.slots_N.tolist(), every])
        for old, new in zip(before, stores(executor), strict=True):
            assert torch.equal(old[others], new[others])
    assert all(not store[every + 1].any() for store in stores(executor))


def test_a_page_of_a_spoiled_sequence_can_be_used_again() -> None:
    case = make_case(make_model(make_config()), 3, num_texts=2, page_size=8, longest=12)
    executor = open_graphed(case)
    for store in (*executor._keys_SKD, *executor._values_SKD):
        store[: case.num_pages * case.page_size] = torch.nan
    for text, logits in enumerate(feed(executor, case, random_passes(case, 3))):
        assert close(logits, case.dense(text))


def test_a_spoiled_sequence_leaves_the_others_of_its_pass_alone() -> None:
    case = make_case(make_model(make_config(tie_embeddings=False)), 9, num_texts=3)
    with torch.no_grad():
        case.model.embedding.weight[2] = torch.nan
    case.texts = [np.where(text == 2, 3, text) for text in case.texts]
    expected = case.dense(0)
    case.texts[1][:] = 2
    logits = feed(open_graphed(case), case, random_passes(case, 9))
    assert close(logits[0], expected)
    assert torch.isnan(logits[1]).all()


def test_a_damaged_token_0_does_no_harm_to_passes_that_fill_up_with_it() -> None:
    case = make_case(make_model(make_config(tie_embeddings=False)), 11, num_texts=3)
    case.texts = [np.where(text == 0, 3, text) for text in case.texts]
    expected = [case.dense(text) for text in range(3)]
    with torch.no_grad():
        case.model.embedding.weight[0] = torch.nan
    for text, logits in enumerate(feed(open_graphed(case), case, random_passes(case, 11))):
        assert close(logits, expected[text])


def test_a_row_that_sees_nothing_does_not_see_what_lies_about() -> None:
    case = make_case(make_model(make_config()), 5, num_texts=1, page_size=4)
    executor = open_graphed(case)
    one = np.zeros(1, dtype=np.int32)
    rows = Rows(one + 5, one, one, one, one, case.pages_SP, one)
    empty = executor.logits(rows).clone()
    feed(executor, case, random_passes(case, 5))
    assert torch.equal(executor.logits(rows), empty)
    assert close(empty, shared.TorchPagedModel(case.model, case.num_pages, 4).logits(rows))


@pytest.mark.parametrize("graphed_rows", [1, 4, 256])
def test_the_bound_of_the_graphs_changes_no_logit(graphed_rows: int) -> None:
    case = random_case(51)
    logits = feed(open_graphed(case, graphed_rows=graphed_rows), case, random_passes(case, 51))
    for text, each in enumerate(logits):
        assert close(each, case.dense(text))


def test_few_shapes_serve_many_passes_and_the_oldest_give_way() -> None:
    model = make_model(make_config(max_positions=600))
    case = make_case(model, 7, num_texts=1, longest=1, page_size=16)
    case.texts[0] = generator(7, "test.text").integers(0, 61, 500).astype(np.int32)
    case.pages_SP, case.num_pages = np.arange(32, dtype=np.int32)[None], 32
    executor = open_graphed(case, max_graphs=3)
    shapes = set()
    for start in range(0, 490, 5):
        executor.greedy(case.rows([(0, start + i) for i in range(5)]))
        shapes |= set(executor._steps)
        assert len(executor._steps) <= 3
    assert len(shapes) == 3  # contexts up to 256, 384 and 512
    assert close(executor.logits(case.rows([(0, 489)])), case.dense(0)[489:490])


class _NoWaiting(TorchDispatchMode):
    """Refuses what a graph cannot capture: waiting for the device, sizes that depend on data, copies from the host.

    A scalar operand of `where` becomes a tensor on the host, which is then copied; that of `masked_fill` does not.
    """

    FORBIDDEN = (
        *("_local_scalar_dense", "item", "is_nonzero", "equal", "allclose"),
        *("nonzero", "masked_select", "unique", "index", "index_put", "index_put_", "masked_scatter"),
        *("where", "scalar_tensor", "lift_fresh", "tensor", "lift"),
    )

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        result = func(*args, **(kwargs or {}))
        moved = (
            ("to" in name or "copy" in name) and isinstance(result, torch.Tensor) and result.device != args[0].device
        )
        if moved or name.split(".")[1] in self.FORBIDDEN:
            raise AssertionError(f"{name} within a pass")
        self.seen.append(name)
        return result


@pytest.mark.parametrize("seed", range(4))
def test_nothing_in_a_pass_waits_for_the_device(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case(4000 + seed)
    executor, tree = open_graphed(case), random_tree(case, seed)
    calls: list[int] = []

    def run(key: object, compute: Any) -> None:
        with _NoWaiting() as watch:
            compute()
        calls.append(len(watch.seen))

    monkeypatch.setattr(executor._runner, "run", run)
    feed(executor, case, random_passes(case, seed))
    assert close(executor.logits(tree.rows), tree.expected_NV)
    assert min(calls) > 20


class _Replaying(PlainRunner):
    """A runner that, like a graph, only ever runs what it was given first under a key."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, Callable[[], None]] = {}

    def run(self, key: Hashable, compute: Callable[[], None]) -> None:
        self._kept.setdefault(key, compute)()

    def forget(self, key: Hashable) -> None:
        del self._kept[key]


@pytest.mark.parametrize("seed", range(8))
def test_a_pass_reads_and_writes_the_buffers_that_it_was_captured_with(seed: int) -> None:
    case = random_case(5000 + seed)
    executor = open_graphed(case, max_graphs=2)
    executor._runner = _Replaying()
    logits = feed(executor, case, random_passes(case, seed))
    for text, each in enumerate(logits):
        assert close(each, case.dense(text))
    tree = random_tree(case, seed)
    assert close(executor.logits(tree.rows), tree.expected_NV)


def test_a_shape_that_gave_way_is_captured_anew() -> None:
    case = make_case(make_model(make_config()), 17, num_texts=1, longest=1, page_size=16)
    case.texts[0] = generator(17, "test.text").integers(0, 61, 30).astype(np.int32)
    case.pages_SP, case.num_pages = np.arange(2, dtype=np.int32)[None], 2
    executor, dense = open_graphed(case, max_graphs=1), case.dense(0)
    executor._runner = _Replaying()
    for start, end in ((0, 1), (1, 3), (3, 4), (4, 8), (8, 9), (9, 11), (11, 15)):
        logits = executor.logits(case.rows([(0, position) for position in range(start, end)]))
        assert close(logits, dense[start:end])


def test_a_chain_that_ends_early_leaves_those_of_other_sequences_alone() -> None:
    case = make_case(make_model(make_config(tie_embeddings=False)), 13, num_texts=3, longest=9, page_size=16)
    last = [len(text) - 1 for text in case.texts]
    rows = case.rows(list(enumerate(last)))
    slots = np.stack([case.slots(t, np.arange(p + 1, p + 5, dtype=np.int32)) for t, p in enumerate(last)])
    before = [[(t, p) for t, text in enumerate(case.texts) for p in range(len(text) - 1)]]
    whole = open_graphed(case)
    feed(whole, case, before)
    first = whole.greedy_chain(rows, slots)
    # The token that the first chain draws first is no number any more, so that it draws no second one.
    spoiled = int(first[0, 0])
    others = [m for m in range(3) if spoiled not in first[m] and spoiled not in case.texts[m]]
    assert others
    with torch.no_grad():
        case.model.embedding.weight[spoiled] = torch.nan
    broken = open_graphed(case)
    feed(broken, case, before)
    second = broken.greedy_chain(rows, slots)
    assert second[0].tolist() == [spoiled, -1, -1, -1, -1]
    assert np.array_equal(second[others], first[others])


def test_the_likeliest_are_those_of_the_logits() -> None:
    case = random_case(61)
    executor = open_graphed(case)
    rows = case.rows([(0, position) for position in range(len(case.texts[0]))])
    logits, size = executor.logits(rows).clone(), case.model.config.vocab_size
    excluded = logits.argmax(dim=1).numpy()
    excluded[::2] = -1
    for count in (1, 3, size - 1):
        assert np.array_equal(executor.likeliest(rows, count, excluded), top_k(logits, count, excluded))
    assert np.array_equal(executor.likeliest(rows, size), top_k(logits, size))
    for count, left_out in ((0, None), (size, excluded), (2, excluded[:0])):
        with pytest.raises(InputError):
            executor.likeliest(rows, count, left_out)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_are_used_as_they_are(dtype: torch.dtype) -> None:
    case = random_case(30)
    case.model.to(dtype)
    for text, each in enumerate(feed(open_graphed(case), case, random_passes(case, 1))):
        expected = case.dense(text)
        assert each.dtype == torch.float32
        assert (each - expected).abs().max() <= 0.1 * expected.abs().max()


def test_an_empty_pass_gives_nothing() -> None:
    case = random_case(1)
    rows = case.rows([(0, 0)])
    none = np.empty(0, dtype=np.int32)
    empty = replace(rows, tokens_N=none, positions_N=none, slots_N=none, sequence_N=none, visible_N=none, logits_M=none)
    executor = open_graphed(case)
    assert executor.logits(empty).shape == (0, case.model.config.vocab_size)
    assert executor.greedy(empty).shape == (0,)


@given(st.integers(0, 1 << 20))
def test_a_bucket_is_a_power_of_two_or_half_as_much_again(size: int) -> None:
    found = bucket(size)
    assert size <= found <= max(size, 1) * 1.5
    assert bucket(found) == found
    assert found in (0, 1, 3) or not found & (found - 1) or (found % 3 == 0 and not (found // 3) & (found // 3 - 1))


@settings(deadline=None)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=20).filter(any))
def test_every_row_has_a_cell_of_its_own_in_a_group_of_its_sequence(counts: list[int]) -> None:
    sequence = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    sequence = generator(sum(counts), "test.order").permutation(sequence)
    count = len(sequence)
    numbers = np.arange(count, dtype=np.int32)
    pages = np.zeros((len(counts), 1), dtype=np.int32)
    rows = Rows(numbers, numbers, numbers, sequence, numbers * 0 + 1, pages, numbers[:1])
    layout = Layout(rows, 16, 1, 4096, 256)
    cells = layout._cell_N
    assert len(set(cells.tolist())) == count
    assert cells.max() < layout.shape.num_cells
    groups = cells // layout.shape.rows_per_group
    for group in np.unique(groups):
        assert len(set(sequence[groups == group].tolist())) == 1
        assert layout._sequence_G[group] == sequence[groups == group][0]
    # Never many more than with a group for every row, or with one group a sequence.
    simple = bucket(sum(c > 0 for c in counts)) * (bucket(max(counts)) + 32)
    assert layout.shape.num_groups * (rows_per_group(np.array(counts)) + 32) <= min(simple, bucket(count) * 33)


@pytest.mark.parametrize("wrong", [{"graphed_rows": 0}, {"least_context": 0}, {"max_graphs": 0}])
def test_a_setting_below_1_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        GraphedPagedModel(make_model(make_config()), 4, 4, **wrong)  # pyright: ignore[reportArgumentType]


needs_graphs = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that captures graphs")


def at_accelerator(case: Case) -> GraphedPagedModel:
    model = copy.deepcopy(case.model).to(str(torch.accelerator.current_accelerator()))
    return GraphedPagedModel(model, case.num_pages, case.page_size)


def nearly(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return close(0.1 * actual.cpu(), 0.1 * expected)  # 1e-4: sums go by another order there


@needs_graphs
@pytest.mark.parametrize("seed", range(12))
def test_graphs_give_the_dense_logits(seed: int) -> None:
    case = random_case(6000 + seed)
    executor, tree = at_accelerator(case), random_tree(case, seed)
    for _ in range(2):  # captured, then replayed
        for text, each in enumerate(feed(executor, case, random_passes(case, seed))):
            assert nearly(each, case.dense(text))
        assert nearly(executor.logits(tree.rows), tree.expected_NV)
        assert np.array_equal(executor.greedy(tree.rows), executor.logits(tree.rows).argmax(dim=1).cpu().numpy())


@needs_graphs
def test_two_threads_capture_and_replay_beside_each_other() -> None:
    case = random_case(6100)
    wrong: list[str] = []

    def work(seed: int) -> None:
        try:
            with torch.cuda.stream(torch.cuda.Stream(priority=-(seed % 2))):
                executor = at_accelerator(case)
                for repeat in range(6):
                    logits = feed(executor, case, random_passes(case, repeat))
                    wrong.extend(f"{seed}" for t, each in enumerate(logits) if not nearly(each, case.dense(t)))
        except RuntimeError as error:
            wrong.append(str(error))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
