"""Certificates without a code: posteriors and runs that a stranger draws and runs again, and what it takes to forge."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.certify.certificates import LINEAR_MAP, blobs, requential_certificate, rewrite, stochastic_certificate
from tests.certify.test_verify import ALLOWED, UNDERIVED, altered, leaves

from forethought.certify import Certificate, DeltaLedger, Examples, read_certificate, verify
from forethought.certify.bounds import maurer_seeger, monte_carlo_pac_bayes
from forethought.certify.certificate.claims import word_of
from forethought.certify.certificate.document import DOCUMENT, MESSAGE
from forethought.certify.decoder.posterior import Posterior, divergence_bits, normals, posterior_bytes, read_posterior
from forethought.certify.decoder.student import Session, read_trajectory
from forethought.certify.ledger import entries_of
from forethought.certify.pacbayes import StochasticConfig, certify_stochastic
from forethought.certify.requential import RequentialConfig, certify_requential
from forethought.core import files
from forethought.core.errors import ArtefactError, DataError, InputError, InterruptedRunError

Made = tuple[Certificate, Examples, Path, Path]
STRANGER = """
import json, sys
from forethought.certify import load_data, verify
checked = verify(sys.argv[1], load_data(sys.argv[2]), audit_seed=11)
size = checked.derived.weights.absolute_sum
print(json.dumps({"bound": checked.bound, "weights": size, "modules": sorted(sys.modules)}))
"""
# A billionth more of patience makes no other run: the same labels, and the same claims.
SAME_RUN = {("teacher", "pause_above")}
KINDS = {"stochastic": stochastic_certificate, "requential": requential_certificate}


@pytest.fixture(scope="module", params=list(KINDS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp(request.param)
    certificate, data = KINDS[request.param](folder / "work")
    np.savez(folder / "data.npz", inputs=data.inputs, labels=data.labels)
    return certificate, data, certificate.save(folder / "made.cert"), folder


@pytest.fixture
def forged(made: Made, tmp_path: Path) -> Path:
    place = tmp_path / "forged.cert"
    place.mkdir()
    for name in (DOCUMENT, MESSAGE):
        (place / name).write_bytes((made[2] / name).read_bytes())
    return place


def test_a_fresh_process_derives_the_bound_with_the_decoder_alone(made: Made) -> None:
    certificate, _, place, folder = made
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, str(place), str(folder / "data.npz")],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "2"}, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert math.isclose(found["bound"], certificate.bound, rel_tol=1e-12)
    assert math.isclose(found["weights"], certificate.document.weights.absolute_sum, rel_tol=1e-12)
    rooms = {name.split(".")[1] for name in found["modules"] if name.startswith("forethought.")}
    assert rooms <= {"certify", "core", "nn", "stats"}, "no training loop, no data room, no application"
    parts = {".".join(name.split(".")[:3]) for name in found["modules"] if name.startswith("forethought.certify.")}
    assert parts <= ALLOWED


def test_what_is_printed_is_the_bound_of_what_was_counted(made: Made) -> None:
    document, data = made[0].document, made[1]
    result, bits = document.result, document.bits
    assert bits.total >= bits.divergence + bits.choices
    if document.kind == "stochastic":
        assert (result.n, result.errors) == (400, round(result.train_risk * 400 * 30))
        assert result.bound == monte_carlo_pac_bayes(result.train_risk, 30, 400, bits.total, 0.05)
    else:
        assert (result.n, document.pool.leading, bits.choices) == (400, 100, math.log2(3))
        assert result.bound == maurer_seeger(result.errors / 400, 400, bits.total, 0.05)
    assert result.train_risk < result.bound < 0.67, "a linear map on three clouds is not vacuous even so"
    assert f"{made[0].bound:.4%}" in made[0].statement
    assert verify(made[2], data).to_dict()["verified"] is True


def test_every_byte_of_both_files_is_guarded(forged: Path) -> None:
    for name, step in ((DOCUMENT, 11), (MESSAGE, 5)):
        whole = (forged / name).read_bytes()
        for position in sorted({*range(0, len(whole), step), *range(len(whole) - 20, len(whole))}):
            changed = bytearray(whole)
            changed[position] ^= 1 << (position % 8)
            (forged / name).write_bytes(bytes(changed))
            with pytest.raises(ArtefactError):
                read_certificate(forged)
        (forged / name).write_bytes(whole)
    read_certificate(forged)


def test_a_forger_who_mends_all_hashes_cannot_change_one_claim(made: Made, forged: Path) -> None:
    honest = json.loads((forged / DOCUMENT).read_bytes())
    tried = 0
    for path, value in leaves(honest):
        if path in UNDERIVED | SAME_RUN or path == ("sha256",) or path[0] in ("assumptions", "reported"):
            continue

        def change(values: dict[str, Any], path: tuple[str | int, ...] = path, value: Any = value) -> None:
            values.clear()
            values.update(copy.deepcopy(honest))
            owner: Any = values
            for step in path[:-1]:
                owner = owner[step]
            owner[path[-1]] = altered(value)

        rewrite(forged, change)
        with pytest.raises((ArtefactError, DataError)):
            verify(forged, made[1])
        tried += 1
    assert tried > 35


def swapped(message: bytes, at: int, new: bytes) -> bytes:
    return message[:at] + new + message[at + len(new) :]


def one_deviation_wider(message: bytes) -> bytes:
    """Wider is nearer to the prior, and so cheaper: but the claims are of another posterior."""
    last = np.frombuffer(message[-4:], "<f4")[0]
    return message[:-4] + np.float32(last * 1.1).astype("<f4").tobytes()


def a_deviation_of_zero(message: bytes) -> bytes:
    return message[:-4] + np.float32(0.0).tobytes()


def a_mean_that_is_not_a_number(message: bytes) -> bytes:
    return swapped(message, 12, np.float32(np.nan).tobytes())


def four_billion_weights(message: bytes) -> bytes:
    return swapped(message, 8, b"\xff\xff\xff\xff")


def another_label(message: bytes) -> bytes:
    labels = np.frombuffer(message, "<u2", count=1, offset=16)
    return swapped(message, 16, ((labels + 1) % 3).astype("<u2").tobytes())


def another_student(message: bytes) -> bytes:
    return message[:-8] + np.float64(np.frombuffer(message[-8:], "<f8")[0] + 1e-6).tobytes()


def a_longer_run(message: bytes) -> bytes:
    return swapped(message, 8, (10_000_000).to_bytes(4, "little"))


def half_of_it(message: bytes) -> bytes:
    return message[: len(message) // 2]


def free_bytes_behind(message: bytes) -> bytes:
    return message + b"hidden"


MESSAGES: dict[str, list[Callable[[bytes], bytes]]] = {
    "stochastic": [one_deviation_wider, a_deviation_of_zero, a_mean_that_is_not_a_number, four_billion_weights,
                   half_of_it, free_bytes_behind],
    "requential": [another_label, another_student, a_longer_run, half_of_it, free_bytes_behind],
}  # fmt: skip


def test_forged_messages_are_refused(made: Made, forged: Path) -> None:
    honest = (forged / MESSAGE).read_bytes()
    for attack in MESSAGES[made[0].document.kind]:
        rewrite(forged, lambda values: None, attack(honest))
        with pytest.raises(InputError):
            verify(forged, made[1])


def settings_of(values: dict[str, Any]) -> dict[str, Any]:
    return values["prior"]["network"]["settings"]


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.update(kind="code"),
        lambda values: values.update(kind="nothing"),
        lambda values: values["prior"].update(seed=-1),
        lambda values: values["prior"].update(seed=99),
        lambda values: values.update(chosen={"levels": 0}),
        lambda values: values.update(chosen={next(iter(values["chosen"])): -1}),
        lambda values: values.update(chosen={next(iter(values["chosen"])): 1 << 40}),
        lambda values: settings_of(values).update(hidden=[1 << 20, 1 << 20]),
        lambda values: values["prior"]["network"].update(architecture="given"),
        lambda values: values["prior"]["network"].update(architecture="os.system"),
        lambda values: values["prior"].update(steps=1 << 60, deviations=[]),
        lambda values: values.get("draws", values.get("pool")).update(count=1 << 60, leading=10**9),
        lambda values: values["result"].update(bound=1e-3),
        lambda values: values["bits"].update(divergence=-5.0),
    ],
)
def test_forged_priors_and_draws_are_refused(
    made: Made, forged: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    """With the hash of the prior mended too: the forger writes a whole new declaration."""
    from forethought.core.config import digest

    def forge(values: dict[str, Any]) -> None:
        change(values)
        values["prior_sha256"] = digest(values["prior"])

    rewrite(forged, forge)
    with pytest.raises(InputError):
        verify(forged, made[1])


def test_both_are_paid_for_in_the_ledger_of_their_data(tmp_path: Path) -> None:
    data, path = blobs(300), tmp_path / "ledger.json"
    common = {"network": LINEAR_MAP, "delta": 0.02, "total_delta": 0.05}
    settings = StochasticConfig(steps=2, num_draws=2, checkpoint_every=0, **common)
    first = certify_stochastic(None, data, settings, tmp_path / "a", ledger=path, show=False)
    student = RequentialConfig(steps=3, num_checkpoints=1, pool_is_independent=True, **common)
    second = certify_requential(None, data, 50, student, directory=tmp_path / "b", ledger=path, show=False)
    entries = entries_of(files.read_json(path, what="ledger")["entries"], source="here")
    assert [entry.delta for entry in entries] == [0.02, 0.02]
    assert [found.certificate.document.delta.spent_before for found in (first, second)] == [0.0, 0.02]
    other = StochasticConfig(steps=2, num_draws=2, checkpoint_every=0, seed=5, **common)
    with pytest.raises(InputError, match="exceeds what is left"):
        certify_stochastic(None, data, other, tmp_path / "c", ledger=path, show=False)
    assert DeltaLedger(data.sha256, 0.05, path=path).spent == pytest.approx(0.04)


def test_an_interrupted_requential_run_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = requential_certificate(tmp_path / "whole")
    advance, stopped = Session.advance, []

    def interrupted(self: Session) -> None:
        advance(self)
        if self.step in (11, 22) and self.step not in stopped:
            stopped.append(self.step)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Session, "advance", interrupted)
    for _ in range(2):
        with pytest.raises(InterruptedRunError, match="--exists resume"):
            requential_certificate(tmp_path / "halting")
    again, _ = requential_certificate(tmp_path / "halting")
    assert stopped == [11, 22]
    assert again.message == whole.message
    assert again.to_dict() == whole.to_dict()


def test_a_crash_between_checkpoints_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = requential_certificate(tmp_path / "whole")
    advance = Session.advance

    def crashing(self: Session) -> None:
        if self.step == 17:
            raise KeyboardInterrupt
        advance(self)

    monkeypatch.setattr(Session, "advance", crashing)
    with pytest.raises(KeyboardInterrupt):
        requential_certificate(tmp_path / "crashed")
    monkeypatch.setattr(Session, "advance", advance)
    again, _ = requential_certificate(tmp_path / "crashed")
    assert again.message == whole.message


def test_a_pool_of_its_own_has_to_be_given_and_to_be_the_same(tmp_path: Path) -> None:
    data, pool = blobs(300), blobs(360).inputs[300:] + np.float32(0.01)
    settings = RequentialConfig(network=LINEAR_MAP, steps=3, num_checkpoints=1, pool_is_independent=True)
    place = certify_requential(None, data, pool, settings, show=False).save(tmp_path / "made.cert")
    assert verify(place, data, pool=pool).bound < 1.0
    with pytest.raises(DataError, match="give a pool"):
        verify(place, data)
    with pytest.raises(ArtefactError, match="not the one that the prior declares"):
        verify(place, data, pool=pool[::-1])


def test_draws_that_were_chosen_are_found_by_an_audit(tmp_path: Path) -> None:
    """A forger who may choose the draws needs no good posterior: here the count of mistakes is simply another."""
    import forethought.certify.certificate.drawn as drawn

    data = blobs(400)
    settings = StochasticConfig(network=LINEAR_MAP, steps=2, num_draws=400, prior_deviation=1.0, checkpoint_every=0)
    honest = certify_stochastic(None, data, settings, tmp_path / "a", show=False)
    place = honest.save(tmp_path / "honest.cert")
    audited = verify(place, data, audit_seed=3)
    assert audited.audit is not None
    assert audited.audit["train_risk"] != audited.derived.result.train_risk
    assert not any("audit seed" in said for said in audited.to_dict()["not_verified"])
    assert any("audit seed" in said for said in verify(place, data).to_dict()["not_verified"])
    own, count = (
        word_of("certificate draws", settings.prior.sha256, data.sha256, honest.certificate.message),
        drawn.drawn_mistakes,
    )

    def lucky(*arguments: Any, seed: int, **rest: Any) -> int:
        found = count(*arguments, seed=seed, **rest)
        return found // 3 if seed == own else found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawn, "drawn_mistakes", lucky)
        chosen = certify_stochastic(None, data, settings, tmp_path / "b", show=False).save(tmp_path / "chosen.cert")
        verify(chosen, data)
        with pytest.raises(ArtefactError, match="draws were chosen"):
            verify(chosen, data, audit_seed=3)


def test_the_divergence_is_rounded_up_and_the_file_is_exact() -> None:
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=50).astype(np.float32).astype(np.float64)
    posterior = Posterior(numbers, np.abs(numbers[::-1]) + 0.25)
    found = divergence_bits(posterior, np.zeros(50), 0.7)
    import mpmath

    with mpmath.workdps(40):
        terms = [(mpmath.mpf(float(m)) / 0.7) ** 2 + (mpmath.mpf(float(d)) / 0.7) ** 2 - 1
                 - mpmath.log((mpmath.mpf(float(d)) / 0.7) ** 2)
                 for m, d in zip(posterior.mean, posterior.deviation, strict=True)]  # fmt: skip
        exact = mpmath.fsum(terms) / 2 / mpmath.log(2)
    assert 0 <= found - exact < 1e-12 * exact
    assert divergence_bits(Posterior(np.zeros(5), np.full(5, 0.5)), np.zeros(5), 0.5) < 1e-12
    half = Posterior(numbers, (np.abs(numbers) + 0.5).astype(np.float32).astype(np.float64))
    again = read_posterior(posterior_bytes(half), 50)
    assert np.array_equal(again.mean, half.mean)
    assert np.array_equal(again.deviation, half.deviation)
    draws = normals(1, "t", 100_000)
    assert abs(draws.mean()) < 0.02
    assert draws.std() == pytest.approx(1.0, abs=0.01)
    with pytest.raises(ArtefactError):
        read_trajectory(b"", (1, 1), 1)
