"""A real server over loopback for each test that wants one, in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from forethought.data import Tokenizer
from forethought.decode import LLM
from forethought.serve import ServedLanguageModel
from tests.serve.house import House
from tests.serve.table import TableModel, make_tokenizer
from tests.serve.tiny import write_pair


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    torch.set_num_threads(1)
    return make_tokenizer()


@pytest.fixture
def new_house(tokenizer: Tokenizer) -> Generator[Callable[..., House]]:
    """Open a server over a table model; it is closed when the test ends."""
    with ExitStack() as stack:

        def opened(*, pace: float = 0.0, slots: int = 8, max_length: int = 4096, **settings: Any) -> House:
            def model() -> TableModel:
                return TableModel(tokenizer, pace=pace, slots=slots, max_length=max_length)

            return stack.enter_context(House(settings.pop("open_model", model), **settings))

        yield opened


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> tuple[Path, Path]:
    """The directories of a tiny random target and a draft close to it."""
    return write_pair(tmp_path_factory.mktemp("tiny"), tokenizer)


@pytest.fixture(scope="module")
def real_house(tiny_pair: tuple[Path, Path]) -> Generator[House]:
    """A server over the real engine, which speculates speculatively with the tiny pair."""
    target, draft = tiny_pair
    speculation = {
        "method": "ssd", "model": str(draft), "num_speculative_tokens": 3, "budget": 4, "transport": "in-process",
    }  # fmt: skip

    def model() -> ServedLanguageModel:
        return ServedLanguageModel(LLM(target, speculative_config=speculation, max_num_seqs=8, num_threads=1))

    with House(model, name="table") as opened:
        yield opened


@pytest.fixture(scope="module")
def house(tokenizer: Tokenizer) -> Generator[House]:
    """One server over a table model for the tests of a module that leave it as they found it."""
    with House(lambda: TableModel(tokenizer)) as opened:
        yield opened
