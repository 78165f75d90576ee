"""The ledgers of bits and of delta."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.certify.certificates import LINEAR, blobs, linear_certificate

from forethought.certify import BitLedger, DeltaLedger, Prior, issue, read_certificate, verify
from forethought.certify.ledger import entries_of, ledgers_beside
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


DRAWER = """
import sys
from forethought.certify import DeltaLedger
from forethought.core.errors import InputError
path, name = sys.argv[1:]
ledger = DeltaLedger("a" * 64, 0.05, path=path)
print("ready", flush=True)
sys.stdin.readline()
drawn = 0
for number in range(60):
    try:
        ledger.draw(f"{name} {number}", 0.001)
    except InputError:
        break
    drawn += 1
print(drawn, flush=True)
"""


def test_two_processes_that_draw_at_once_never_overdraw(tmp_path: Path) -> None:
    """Both look at the empty ledger first and draw then, as fast as they can: 50 shares are there, 120 are wanted."""
    path = tmp_path / "delta.json"
    drawers = [
        subprocess.Popen(
            [sys.executable, "-c", DRAWER, str(path), name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for name in ("left", "right")
    ]  # fmt: skip
    for each in drawers:
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n"
    answers = []
    for each in drawers:
        assert each.stdin is not None
        each.stdin.write("go\n")
        each.stdin.flush()
    for each in drawers:
        answers.append(int(each.communicate(timeout=120)[0]))
    ledger = DeltaLedger(DATA, 0.05, path=path)
    assert sum(answers) == len(ledger.entries) == 50
    assert len({entry.purpose for entry in ledger.entries}) == 50
    assert ledger.spent <= 0.05 * (1 + 1e-12)


def test_a_ledger_that_another_draws_from_is_read_again_before_a_draw(tmp_path: Path) -> None:
    path = tmp_path / "delta.json"
    first, second = (DeltaLedger(DATA, 0.05, path=path) for _ in range(2))
    first.draw("first", 0.03)
    with pytest.raises(InputError, match="exceeds what is left"):
        second.draw("second", 0.03)
    assert second.draw("second", 0.02).delta == 0.02
    assert first.draw("second").delta == 0.02, "drawn by the other, and so not paid twice"


def test_a_certificate_is_held_against_the_ledger_of_its_data(tmp_path: Path) -> None:
    data, path = blobs(200), tmp_path / "delta.json"
    ledger = DeltaLedger(data.sha256, 0.05, path=path)
    ledger.draw("another", 0.01)
    message = linear_certificate()[0].message
    made = issue(Prior(LINEAR), LINEAR, message, data, ledger=ledger, delta=0.02).save(tmp_path / "made.cert")
    verify(made, data, ledger=path)
    lone = tmp_path / "lone.json"
    DeltaLedger(data.sha256, 0.05, path=lone).draw(read_certificate(made).document.delta.purpose, 0.02)
    with pytest.raises(ArtefactError, match="not paid from this ledger"):
        verify(made, data, ledger=lone)
    with pytest.raises(ArtefactError, match="is no delta ledger"):
        verify(made, data, ledger=tmp_path / "nowhere.json")


def test_ledgers_of_other_runs_on_the_same_data_are_found(tmp_path: Path) -> None:
    for run, data in (("a", DATA), ("b", DATA), ("c", "c" * 64)):
        (tmp_path / run / "work").mkdir(parents=True)
        DeltaLedger(data, 0.05, path=tmp_path / run / "work" / "delta.json").draw("x", 0.01)
    (tmp_path / "d" / "work").mkdir(parents=True)
    (tmp_path / "d" / "work" / "delta.json").write_text("nothing")
    assert ledgers_beside(tmp_path / "a", DATA, "delta.json") == [tmp_path / "b" / "work" / "delta.json"]
