"""The verbs of certificates: run, verify, plan, holdout and phenomena, as a user calls them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from forethought.app.cli import main

QUICK = ["--steps", "200", "--quantise-steps", "100"]


def last_line(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("certify") / "run"
    assert main(["certify", "run", "digits", "--out", str(out), *QUICK, "--json"]) == 0
    return out


def test_a_run_leaves_a_certificate_a_report_and_a_result(certified: Path):
    result = json.loads((certified / "result.json").read_text())
    assert result["kind"] == "certify.run"
    assert result["train_risk"] < result["bound"] < 1.0
    assert result["holdout"]["n"] == 397
    page = (certified / "report.html").read_text()
    for said in (
        "What is guaranteed, and what is not",
        "All bounds side by side",
        "The ledger",
        "data that were not used",
    ):
        assert said in page
    assert "prior-not-declared" in page


def test_a_finished_run_is_not_run_again(certified: Path, capsys: pytest.CaptureFixture[str]):
    before = (certified / "certificate" / "certificate.json").read_bytes()
    command = ["certify", "run", "digits", "--out", str(certified), *QUICK, "--json"]
    assert main(command) == 2
    capsys.readouterr()
    assert main([*command, "--exists", "resume"]) == 0
    assert last_line(capsys)["kind"] == "certify.run"
    assert (certified / "certificate" / "certificate.json").read_bytes() == before


def test_a_stranger_verifies_in_a_fresh_process_without_training_code(certified: Path):
    place, data = certified / "certificate", certified / "data.npz"
    script = (
        "import sys\nfrom forethought.app.cli import main\n"
        f"status = main(['certify', 'verify', {str(place)!r}, '--data', {str(data)!r}, '--json'])\n"
        "bad = [name for name in sys.modules if name.startswith(('forethought.certify.compress', "
        "'forethought.certify.training', 'forethought.certify.tokens.', 'forethought.train'))]\n"
        "assert not bad, bad\nsys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["verified"]
    assert found["bound"] == json.loads((certified / "result.json").read_text())["bound"]


def test_a_tampered_message_is_refused(certified: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    place = tmp_path / "forged"
    place.mkdir()
    for name in ("certificate.json", "message.bin"):
        (place / name).write_bytes((certified / "certificate" / name).read_bytes())
    message = bytearray((place / "message.bin").read_bytes())
    message[-20] ^= 1
    (place / "message.bin").write_bytes(bytes(message))
    assert main(["certify", "verify", str(place), "--data", str(certified / "data.npz")]) == 2
    assert "message.bin" in capsys.readouterr().err


def test_a_declaration_is_written_once_and_removes_the_doubt(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "declared.json"
    assert main(["certify", "plan", "--declare", str(path)]) == 0
    assert main(["certify", "plan", "--declare", str(path)]) == 2
    capsys.readouterr()
    out = ["--out", str(tmp_path / "run"), "--steps", "20", "--quantise-steps", "10", "--json"]
    assert main(["certify", "run", "digits", "--declared", str(path), *out]) == 0
    assert last_line(capsys)["findings"] == []


def test_the_control_is_called_vacuous(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["certify", "run", "digits", "--random-labels", "--out", str(tmp_path / "r"), *QUICK, "--json"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out.strip().splitlines()[-1])
    assert result["vacuous"]
    assert result["bound"] > 0.9
    assert "VACUOUS" in printed.err
    assert "VACUOUS" in (tmp_path / "r" / "report.html").read_text()


def test_plan_and_holdout_give_the_closed_forms(capsys: pytest.CaptureFixture[str]):
    assert main(["certify", "plan", "--n", "60000", "--train-risk", "0.05", "--target", "0.10", "--json"]) == 0
    assert last_line(capsys)["budgets"][0]["bits"] == pytest.approx(1442, abs=1)
    assert main(["certify", "holdout", "--errors", "0", "--n", "100", "--json"]) == 0
    assert last_line(capsys)["bound"] == pytest.approx(1 - 0.05 ** (1 / 100))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["plan"], "--n and --target"),
        (["plan", "--n", "100", "--target", "0.1", "--train-risk", "0.5"], "above the target"),
        (["holdout", "--errors", "5", "--n", "4"], "errors 5"),
        (["run", "mnist", "--out", "x"], "needs --data"),
        (["run", "digits", "--out", "x", "--architecture", "transformer"], "text or tokens"),
        (["phenomena", "benign"], "benign-overfitting"),
        (["verify", "nowhere", "--data", "digits"], "nowhere"),
    ],
)
def test_bad_input_is_one_clear_line(arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]):
    assert main(["certify", *arguments]) == 2
    assert word in capsys.readouterr().err


def test_a_file_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = np.repeat(np.eye(4, dtype=np.float32), 60, axis=0) + np.linspace(0, 0.3, 240, dtype=np.float32)[:, None]
    np.savez(tmp_path / "own.npz", inputs=rows, labels=np.repeat(np.arange(4), 60))
    out = ["--out", str(tmp_path / "run"), "--steps", "60", "--quantise-steps", "30", "--json"]
    assert main(["certify", "run", "file", "--data", str(tmp_path / "own.npz"), *out]) == 0
    assert last_line(capsys)["n"] == 240


def test_phenomena_go_on_after_the_last_finished_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = ["certify", "phenomena", "order-polynomial", "degree-descent", "--out", str(tmp_path / "p"), "--json"]
    assert main(command) == 0
    first = last_line(capsys)
    (tmp_path / "p" / "result.json").unlink()
    (tmp_path / "p" / "degree-descent.json").unlink()
    assert main([*command, "--exists", "resume"]) == 0
    assert last_line(capsys) == first
    page = (tmp_path / "p" / "report.html").read_text()
    assert page.count("<svg") >= 6
    assert "Double descent" in page


@pytest.mark.parametrize("method", ["stochastic", "requential"])
def test_the_other_methods_report_what_they_guarantee(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = ["--out", str(tmp_path / "run"), "--steps", "40", "--json"]
    assert main(["certify", "run", "digits", "--method", method, *out]) == 0
    result = last_line(capsys)
    assert result["train_risk"] < result["bound"]
    assert result["vacuous"] == (result["bound"] >= result["trivial"])
    assert result["statement"].replace("&", "") in (tmp_path / "run" / "report.html").read_text()
    place, data = tmp_path / "run" / "certificate", tmp_path / "run" / "data.npz"
    checks = ["--audit-seed", "3", "--ledger", str(tmp_path / "run" / "work" / "delta-ledger.json"), "--json"]
    assert main(["certify", "verify", str(place), "--data", str(data), *checks]) == 0
    assert last_line(capsys)["bound"] == result["bound"]


def test_a_text_is_certified_by_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "text.txt").write_text("to be, or not to be, that is the question.\n" * 300)
    out = ["--out", str(tmp_path / "run"), "--steps", "30", "--quantise-steps", "15", "--json"]
    assert main(["certify", "run", "text", "--data", str(tmp_path / "text.txt"), *out]) == 0
    result = last_line(capsys)
    assert result["vacuous"] == (result["bound"] >= result["uniform_loss"])
    assert result["test_loss"] < result["uniform_loss"]
    assert "nats" in (tmp_path / "run" / "report.html").read_text()
