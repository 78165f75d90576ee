"""The native executor's own promises: the same bits in any company, narrow weights, threads, choices, the build."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.nn.conftest import make_config, make_model
from tests.nn.paged_cases import (
    Case,
    close,
    feed,
    make_case,
    one_by_one,
    random_case,
    random_passes,
    random_tree,
)

from forethought.core.errors import InputError
from forethought.core.rng import generator
from forethought.nn import load_language_model
from forethought.nn.native import NativeError, NativePagedModel, build, library, top_k
from forethought.nn.native.select import top_k_numpy
from forethought.nn.paged import TorchPagedModel, open_paged_model
from forethought.nn.rows import Rows


def native(case: Case, num_threads: int = 1, dtype: str = "float32") -> NativePagedModel:
    assert dtype in ("float32", "bfloat16")
    return NativePagedModel(case.model, case.num_pages, case.page_size, num_threads=num_threads, dtype=dtype)


def same_bits(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("seed", range(40))
def test_a_row_has_the_same_bits_in_any_batch_chunk_page_order_and_number_of_threads(seed: int) -> None:
    case = random_case(3000 + seed)
    alone = feed(native(case), case, one_by_one(case))
    assert same_bits(feed(native(case, num_threads=1 + seed % 3), case, random_passes(case, seed)), alone)
    draw = generator(seed, "other-pages")
    size = int(draw.choice([1, 4, 7, 16, 32, 64]))
    needed = [-(-len(text) // size) for text in case.texts]
    order = draw.permutation(sum(needed) + 3).astype(np.int32)
    moved = Case(case.model, case.texts, np.zeros((len(needed), max(needed)), np.int32), size, len(order))
    for text, pages in enumerate(needed):
        moved.pages_SP[text, :pages], order = order[:pages], order[pages:]
    everything = [[(text, p) for text, tokens in enumerate(case.texts) for p in range(len(tokens))]]
    assert same_bits(feed(native(moved), moved, everything), alone)


def test_inputs_longer_than_a_cached_block_keep_their_bits() -> None:
    model = make_model(make_config(hidden_size=320, num_heads=5, num_kv_heads=5, intermediate_size=600, num_layers=1))
    case = make_case(model, 1, num_texts=2, longest=40, page_size=16)
    case.texts = [generator(0, "long").integers(0, 61, 40).astype(np.int32) for _ in case.texts]
    case.pages_SP = np.arange(6, dtype=np.int32).reshape(2, 3)
    alone = feed(native(case), case, one_by_one(case))
    for rows in (2, 3, 4, 5, 8, 11, 12, 13, 16, 25, 80):
        where = [each[0] for each in one_by_one(case)]
        passes = [where[start : start + rows] for start in range(0, len(where), rows)]
        assert same_bits(feed(native(case), case, passes), alone), rows
    assert same_bits(feed(native(case, num_threads=2), case, [where]), alone)


@pytest.mark.parametrize("seed", range(12))
def test_what_is_attended_gives_the_same_bits_as_page_or_as_extra_slot(seed: int) -> None:
    case = random_case(4000 + seed)
    executor = native(case)
    feed(executor, case, random_passes(case, seed))
    last = len(case.texts[0]) - 1
    rows = case.rows([(0, last)])
    expected = executor.logits(rows).clone()
    for stem in range(last + 1):
        slots = case.slots(0, np.arange(stem, last + 1, dtype=np.int32))
        extra = np.insert(slots, int(stem % 3), -1)[None] if len(slots) >= 3 else slots[None]
        moved = replace(rows, visible_N=np.array([stem], np.int32), extra_NE=np.ascontiguousarray(extra))
        assert torch.equal(executor.logits(moved), expected), stem


def test_rows_of_a_tree_have_their_bits_alone_too() -> None:
    for seed in range(12):
        case = random_case(5000 + seed)
        executor, tree = native(case, num_threads=2), random_tree(case, seed)
        feed(executor, case, random_passes(case, seed))
        together = executor.logits(tree.rows).clone()
        r = tree.rows
        assert r.extra_NE is not None
        for depth in sorted(set(r.positions_N.tolist())):
            for i in np.flatnonzero(r.positions_N == depth):
                one = slice(i, i + 1)
                row = Rows(
                    r.tokens_N[one], r.positions_N[one], r.slots_N[one], r.sequence_N[one], r.visible_N[one],
                    r.pages_SP, np.zeros(1, np.int32), r.extra_NE[one],
                )  # fmt: skip
                assert torch.equal(executor.logits(row)[0], together[i])


def test_the_real_target_has_the_same_bits_in_chunks_and_one_by_one(shared_data: Path) -> None:
    model = load_language_model(shared_data / "models" / "pair" / "target").float()
    case = make_case(model, 11, num_texts=2, longest=40, page_size=16)
    alone = feed(native(case), case, one_by_one(case))
    assert same_bits(feed(native(case, num_threads=2), case, random_passes(case, 2)), alone)


@pytest.mark.parametrize("seed", range(8))
def test_bfloat16_weights_are_the_rounded_model_in_float32(seed: int) -> None:
    case = random_case(6000 + seed)
    passes = random_passes(case, seed)
    narrow = feed(native(case, dtype="bfloat16"), case, passes)
    portable = open_paged_model(
        case.model, num_pages=case.num_pages, page_size=case.page_size, backend="torch", dtype="bfloat16"
    )
    wide = feed(native(case), case, passes)
    with torch.no_grad():
        for parameter in case.model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(parameter.bfloat16())
    assert same_bits(narrow, feed(native(case), case, passes))
    assert all(close(a, b) for a, b in zip(narrow, feed(portable, case, passes), strict=True))
    assert not same_bits(narrow, wide)


def test_a_bfloat16_model_is_packed_as_it_is() -> None:
    model = make_model(make_config()).to(torch.bfloat16)
    executor = open_paged_model(model, num_pages=4, page_size=4, backend="native")
    assert isinstance(executor, NativePagedModel)
    assert executor.dtype == "bfloat16"


def test_calls_from_several_threads_take_turns() -> None:
    case = random_case(40)
    executor = native(case, num_threads=2)
    rows = case.rows([(0, position) for position in range(len(case.texts[0]))])
    expected, wrong = executor.greedy(rows), []

    def call() -> None:
        for _ in range(50):
            if not np.array_equal(executor.greedy(rows), expected):
                wrong.append(1)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong


def test_a_child_process_goes_on_with_threads_of_its_own() -> None:
    program = """
import os, numpy as np
from forethought.nn import LanguageModel, TransformerConfig
from forethought.nn.native import NativePagedModel
from forethought.nn.rows import Rows
model = NativePagedModel(LanguageModel(TransformerConfig(vocab_size=64, hidden_size=64, num_layers=1, num_heads=2)),
                         2, 16, num_threads=2)
at = np.arange(8, dtype=np.int32)
rows = Rows(at, at, at, at * 0, at + 1, np.zeros((1, 1), np.int32), at)
expected = model.greedy(rows)
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(model.greedy(rows), expected) else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, "-c", program], timeout=120, check=False, env=environment)
    assert done.returncode == 0


def test_the_largest_logits_come_in_order_with_the_lowest_id_first_among_equals() -> None:
    draw = generator(0, "top-k")
    for _ in range(300):
        rows, vocabulary = int(draw.integers(1, 5)), int(draw.integers(2, 70))
        logits = draw.integers(-3, 4, (rows, vocabulary)).astype(np.float32)
        logits[draw.random(logits.shape) < 0.1] = -np.inf
        logits[draw.random(logits.shape) < 0.05] = np.nan
        excluded = draw.integers(-1, vocabulary, rows) if draw.integers(2) else None
        k = int(draw.integers(1, vocabulary - (excluded is not None) + 1))
        ids = top_k(logits, k, excluded)
        assert np.array_equal(ids, top_k_numpy(logits, k, excluded))
        for row in range(rows):
            left = [i for i in range(vocabulary) if excluded is None or i != excluded[row]]
            value = np.nan_to_num(logits[row], nan=-np.inf, neginf=-np.inf)
            assert ids[row].tolist() == sorted(left, key=lambda i: (-value[i], i))[:k]
    strided = torch.from_numpy(draw.random((4, 96)).astype(np.float32))[:, :61]
    assert np.array_equal(top_k(strided, 5), strided.topk(5).indices.numpy())


def test_a_choice_that_does_not_fit_is_refused() -> None:
    logits = np.zeros((2, 4), np.float32)
    wrong = [(logits, 0, None), (logits, 5, None), (logits, 4, np.zeros(2)), (logits, 1, np.zeros(3))]
    for given in [*wrong, (logits.astype(np.float64), 1, None), (logits[0], 1, None)]:
        with pytest.raises(InputError):
            top_k(*given)


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of compiled libraries, and no library loaded before or after."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.load_library.cache_clear()
    yield tmp_path / "forethought" / "native"
    library.load_library.cache_clear()


def open_tiny(backend: str = "auto"):
    assert backend in ("auto", "native")
    return open_paged_model(make_model(make_config()), num_pages=4, page_size=4, backend=backend)


def test_without_a_compiler_the_portable_executor_serves(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    executor = open_tiny()
    assert isinstance(executor, TorchPagedModel)
    assert "compiler" in str(executor.fallback_reason)
    with pytest.raises(NativeError, match="no C\\+\\+ compiler"):
        open_tiny("native")
    logits = np.array([[1.0, 3.0, 3.0, 2.0]], np.float32)
    assert top_k(logits, 3).tolist() == [[1, 2, 3]]


def test_a_compiler_that_fails_is_quoted(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = fresh.parent / "tools"
    tools.mkdir(parents=True)
    (tools / "c++").write_text("#!/bin/sh\n[ \"$1\" = --version ] && exit 0\necho 'error: out of ideas' >&2\nexit 1\n")
    (tools / "c++").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    assert "out of ideas" in str(open_tiny().fallback_reason)
    with pytest.raises(NativeError, match="out of ideas"):
        open_tiny("native")
    assert not [path for path in fresh.iterdir() if path.name.startswith(".build")]


def test_a_float64_model_is_left_to_the_portable_executor() -> None:
    model = make_model(make_config()).double()
    executor = open_paged_model(model, num_pages=4, page_size=4)
    assert isinstance(executor, TorchPagedModel)
    assert "float64" in str(executor.fallback_reason)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of one build, made by two processes at once."""
    cache = tmp_path_factory.mktemp("cache") / "native"
    program = (
        "import sys; from pathlib import Path; from forethought.nn.native.build import library_path; "
        "print(library_path(Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", program, str(cache)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {each.communicate(timeout=200)[0].strip() for each in both}
    assert [each.returncode for each in both] == [0, 0]
    assert len(paths) == 1
    return Path(paths.pop()).parent


def test_two_processes_may_build_at_once(compiled: Path) -> None:
    assert sorted(path.name for path in compiled.parent.iterdir()) == [compiled.name]
    assert stat.S_IMODE(compiled.parent.stat().st_mode) == 0o700
    assert library.bind(build.library_path(compiled.parent)).forethought_create


def test_a_damaged_library_is_built_anew_and_never_loaded(compiled: Path) -> None:
    path = compiled / build.LIBRARY
    whole = path.read_bytes()
    path.unlink()  # what this process has loaded must stay as it is
    path.write_bytes(whole[: len(whole) // 2])
    assert build.library_path(compiled.parent) == path
    assert path.stat().st_size > len(whole) // 2
    assert library.bind(path).forethought_create


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_cache_that_others_can_write_is_refused(compiled: Path, mode: int) -> None:
    for path in (compiled.parent, compiled, compiled / build.LIBRARY):
        before = stat.S_IMODE(path.stat().st_mode)
        path.chmod(mode)
        try:
            with pytest.raises(NativeError, match="nobody else can write"):
                build.library_path(compiled.parent)
        finally:
            path.chmod(before)


def test_a_cache_of_somebody_else_is_refused(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: compiled.stat().st_uid + 1)
    with pytest.raises(NativeError, match="belongs to user"):
        build.library_path(compiled.parent)


def test_a_link_in_place_of_the_cache_is_refused(compiled: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(compiled.parent)
    with pytest.raises(NativeError, match="is a link"):
        build.library_path(tmp_path / "link")


def test_a_file_that_is_no_library_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "kernels.so").write_bytes(b"nothing")
    with pytest.raises(NativeError, match="cannot be loaded"):
        library.bind(tmp_path / "kernels.so")
