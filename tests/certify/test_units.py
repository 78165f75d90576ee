"""What counts as one example: groups, copies, and samples of the data, each in a file that a stranger verifies."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.certify.certificates import LINEAR, blobs, linear_certificate, rewrite
from tests.certify.test_coverage import DELTAS, TRIALS, surely_at_most

from forethought.certify import Certificate, DeltaLedger, Examples, Prior, load_data, verify
from forethought.certify.bounds import occam_binomial, occam_kl, subsampled_zero_one
from forethought.certify.certificate import derive, groups_of_copies, issue
from forethought.certify.certificate.claims import SampleClaim, word_of
from forethought.core.errors import ArtefactError, DataError, InputError
from forethought.core.rng import generator


def grouped(data: Examples, num_groups: int) -> Examples:
    return Examples(data.inputs, data.labels, np.arange(data.size) * 7 % num_groups + 100)


def issued(data: Examples, sample: int | None = None) -> Certificate:
    honest, _ = linear_certificate()
    prior, ledger = Prior(LINEAR), DeltaLedger(data.sha256, 0.05)
    claim = None if sample is None else SampleClaim(size=sample)
    derived = derive(prior, {}, honest.message, data, 0.05, sample=claim)
    return issue(prior, LINEAR, honest.message, data, ledger=ledger, delta=0.05, derived=derived)


def test_a_certificate_over_groups_counts_groups(tmp_path: Path) -> None:
    data = grouped(blobs(), 150)
    certificate = issued(data)
    result, plain = certificate.document.result, issued(blobs()).document.result
    assert (result.n, result.examples, result.loss) == (150, 1200, "grouped_zero_one")
    assert result.errors == plain.errors
    assert result.bound == occam_kl(result.train_risk, 150, certificate.document.bits.total, 0.05) > plain.bound
    assert "150 independent groups of 1200 examples" in certificate.statement
    place = certificate.save(tmp_path / "made.cert")
    np.savez(tmp_path / "data.npz", inputs=data.inputs, labels=data.labels, groups=data.groups)
    assert verify(place, load_data(tmp_path / "data.npz")).bound == certificate.bound
    for other in [(data.inputs, data.labels), grouped(blobs(), 151), (data.inputs, data.labels, data.groups[::-1])]:
        with pytest.raises(ArtefactError, match="not those of the certificate"):
            verify(place, other)

    def more_groups(values: dict) -> None:
        values["result"]["n"] = 1200

    rewrite(place, more_groups)
    with pytest.raises(ArtefactError, match=r"result\.n = 1200, but 150"):
        verify(place, data)


def test_groups_of_unequal_size_weigh_the_same() -> None:
    data = blobs()
    wrong_alone = Examples(data.inputs, data.labels, np.where(np.arange(1200) < 2, np.arange(1200), 7))
    result = issued(wrong_alone).document.result
    assert result.n == 3
    flipped = Examples(
        data.inputs, np.where(np.arange(1200) < 2, (data.labels + 1) % 3, data.labels), wrong_alone.groups
    )
    assert issued(flipped).document.result.train_risk > 0.6, "two groups of one example are two thirds of the risk"


def test_copies_are_counted_once_by_their_groups() -> None:
    data = blobs(600)
    twice = np.concatenate([data.inputs, data.inputs]), np.concatenate([data.labels, data.labels])
    groups = groups_of_copies(twice[0])
    assert len(set(groups.tolist())) == 600
    honest, boast = issued(Examples(*twice, groups)), issued(Examples(*twice))
    assert honest.document.result.n == 600
    assert honest.bound > boast.bound, "without groups every copy would count"
    assert honest.bound == pytest.approx(issued(Examples(data.inputs, data.labels, np.arange(600))).bound, abs=1e-12)


@pytest.mark.parametrize("delta", DELTAS)
def test_groups_are_covered_and_their_examples_as_units_are_not(delta: float) -> None:
    """Ten examples a group err together: the group's mean is one draw, and ten times as many draws are a lie."""
    groups, each, bits = 60, 10, 4.0
    draw = generator(8, "coverage.groups")
    risks = draw.beta(0.5, 2.0, size=(TRIALS, 4, groups))  # four hypotheses, chosen after the sample
    errors = draw.binomial(each, risks).sum(axis=2).min(axis=1)
    table = np.arange(groups * each + 1)
    by_group = np.array([occam_kl(k / (groups * each), groups, bits, delta) for k in table])[errors]
    by_example = np.array([occam_binomial(int(k), groups * each, bits, delta) for k in table])[errors]
    assert surely_at_most(int((by_group < 0.2).sum()), delta)
    assert float((by_example < 0.2).mean()) > 2 * delta


@pytest.mark.parametrize("groups", [np.zeros(3, np.int64), np.zeros((1200, 1), np.int64), np.zeros(1200)])
def test_odd_groups_are_refused(groups: np.ndarray) -> None:
    with pytest.raises(DataError, match="one whole number an example"):
        Examples(blobs().inputs, blobs().labels, groups)


def test_a_risk_counted_on_a_sample_pays_for_the_sample(tmp_path: Path) -> None:
    data = blobs()
    certificate = issued(data, sample=500)
    result = certificate.document.result
    assert (result.n, result.sampled, result.loss) == (1200, 500, "sampled_zero_one")
    assert result.bound == subsampled_zero_one(result.errors, 500, 1200, certificate.document.bits.total, 0.05)
    assert result.bound > issued(data).bound
    place = certificate.save(tmp_path / "made.cert")
    assert verify(place, data).bound == certificate.bound
    audited = verify(place, data, audit_seed=5)
    assert audited.audit is not None
    assert audited.audit["train_risk"] != result.train_risk
    assert any("audit seed" in said for said in verify(place, data).to_dict()["not_verified"])

    def fewer(values: dict) -> None:
        values["sample"]["size"] = 499

    rewrite(place, fewer)
    with pytest.raises(ArtefactError, match="claims result"):
        verify(place, data)

    def none(values: dict) -> None:
        del values["sample"]

    rewrite(place, none)
    with pytest.raises(ArtefactError):
        verify(place, data)


def test_a_sample_that_was_chosen_is_found_by_an_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    derivation = sys.modules["forethought.certify.certificate.derive"]
    data = blobs()
    moved = Examples(data.inputs, np.where(np.arange(1200) % 2 == 0, (data.labels + 1) % 3, data.labels))
    own, raw = word_of("certificate sample", moved.sha256, linear_certificate()[0].message), derivation.raw_words

    def odd_rows(seed: int, stream: str, count: int, step: int = 0) -> np.ndarray:
        found = raw(seed, stream, count, step)
        return (
            found % np.uint64(600) * np.uint64(2) + np.uint64(1) if (seed, stream) == (own, "certify.sample") else found
        )

    monkeypatch.setattr(derivation, "raw_words", odd_rows)
    certificate = issued(moved, sample=400)
    assert certificate.document.result.train_risk < 0.2 < 0.5 < issued(moved).document.result.train_risk
    place = certificate.save(tmp_path / "made.cert")
    with pytest.raises(ArtefactError, match="draws were chosen"):
        verify(place, moved, audit_seed=5)


def test_samples_and_groups_or_tokens_are_not_combined() -> None:
    with pytest.raises(DataError, match="not combined with groups"):
        issued(grouped(blobs(), 50), sample=10)
    with pytest.raises(InputError):
        SampleClaim(size=0)
    assert math.isclose(issued(blobs(), sample=1).document.result.train_risk % 1.0, 0.0)
