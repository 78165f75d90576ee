"""The ledgers of bits and of delta."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from forethought.certify import BitLedger, DeltaLedger
from forethought.certify.ledger import entries_of
from forethought.core.errors import ArtefactError, InputError

DATA = "a" * 64


def test_bits_add_up_and_round_up() -> None:
    ledger = BitLedger(symbols=1_577.3, codebook=144.0, choices=math.log2(6), buffers=32.0)
    assert ledger.total >= math.fsum((1_577.3, 144.0, math.log2(6), 32.0))
    assert ledger.to_dict()["total"] == ledger.total
    assert BitLedger(0.0).total == 0.0


@pytest.mark.parametrize("bits", [-2.0, math.nan, math.inf])
@pytest.mark.parametrize("item", ["symbols", "codebook", "choices", "buffers"])
def test_there_are_no_credits(item: str, bits: float) -> None:
    with pytest.raises(InputError, match=item):
        BitLedger(**({"symbols": 1.0} | {item: bits}))


def test_delta_is_shared_by_all_certificates_of_a_data_set(tmp_path: Path) -> None:
    path = tmp_path / "delta.json"
    ledger = DeltaLedger(DATA, 0.05, path=path)
    assert ledger.draw("first", 0.03).delta == 0.03
    assert ledger.draw("second").delta == pytest.approx(0.01)
    again = DeltaLedger(DATA, 0.05, path=path)
    assert again.entries == ledger.entries
    assert again.left == pytest.approx(0.01)
    with pytest.raises(InputError, match="exceeds what is left"):
        again.draw("third", 0.02)
    assert again.draw("third", 0.01).delta == 0.01
    with pytest.raises(InputError, match="share"):
        again.draw("fourth")


def test_a_purpose_is_paid_once_and_keeps_its_delta() -> None:
    ledger = DeltaLedger(DATA, 0.05)
    assert ledger.draw("model zoo", 0.02) == ledger.draw("model zoo") == ledger.draw("model zoo", 0.02)
    assert ledger.spent == 0.02
    with pytest.raises(InputError, match="was drawn at delta"):
        ledger.draw("model zoo", 0.01)


def test_an_endless_series_of_halves_never_exceeds_the_total() -> None:
    ledger = DeltaLedger(DATA, 0.05)
    for number in range(40):
        ledger.draw(f"certificate {number}")
    assert ledger.spent <= 0.05


def test_a_ledger_file_of_other_data_or_another_total_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "delta.json"
    DeltaLedger(DATA, 0.05, path=path).draw("first")
    with pytest.raises(ArtefactError, match="no delta ledger of this data set"):
        DeltaLedger("b" * 64, 0.05, path=path)
    with pytest.raises(ArtefactError, match="total"):
        DeltaLedger(DATA, 0.1, path=path)


@pytest.mark.parametrize(
    "entries",
    [{}, [1], [{"purpose": "x"}], [{"purpose": "x", "delta": -0.01}], [{"purpose": 1, "delta": 0.01}],
     [{"purpose": "x", "delta": True}], [{"purpose": "x", "delta": "0.1"}],
     [{"purpose": "x", "delta": 0.1, "more": 1}]],
)  # fmt: skip
def test_forged_entries_are_refused(entries: object) -> None:
    with pytest.raises(ArtefactError, match=r"delta ledger|not between"):
        entries_of(entries, source="here")


@pytest.mark.parametrize("total", [0.0, 1.0, -0.1, math.nan])
def test_a_total_is_a_failure_probability(total: float) -> None:
    with pytest.raises(InputError, match="total"):
        DeltaLedger(DATA, total)
