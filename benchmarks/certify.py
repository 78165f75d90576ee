"""Certificates: how tight on the digits, how fast the inversion, the search and the verification are, on one thread.

The digits certificate is made three times with other orders of the examples; its bound is shown with its range. With
MNIST beside the checkout (../shared/data/images/mnist) the full form also makes and verifies that certificate.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path

import torch

from forethought.app.certify.recipes import digits, mnist
from forethought.certify import occam_binomial, verify
from forethought.certify.training import CertifiedModel, certify, random_labels
from forethought.certify.training_search import CertifySpec
from forethought.data.images import LabelledImages, load_digits, load_mnist
from forethought.stats import median_interval
from harness import run_benchmark

MNIST = Path(__file__).resolve().parents[2] / "shared" / "data" / "images" / "mnist"
Pair = tuple[object, object]


def measure(quick: bool) -> dict[str, object]:
    """Time the inversion; certify digits, their random-label control and, in the full form, MNIST; verify each."""
    torch.set_num_threads(1)
    figures: dict[str, object] = {"threads": 1} | inversion(5 if quick else 50)
    train, test = load_digits()
    spec = digits()
    if quick:
        spec = shorter(spec, steps=600, quantise_steps=300)
    bounds: list[float] = []
    for seed in range(1 if quick else 3):
        seeded = dataclasses.replace(spec, training=dataclasses.replace(spec.training, seed=seed))
        made, found = certificate("digits", train, test, seeded)
        bounds.append(found.bound)
        figures |= made
    figures["digits_bound_low"], figures["digits_bound_high"] = min(bounds), max(bounds)
    control = certify(None, random_labels(pair(train), 10), spec, show=False)
    figures["control_bound"], figures["control_vacuous"] = control.bound, control.vacuous
    if not quick and MNIST.is_dir():
        made, _ = certificate("mnist", load_mnist(MNIST), load_mnist(MNIST, "test"), mnist())
        figures |= made
    return figures


def inversion(rounds: int) -> dict[str, object]:
    """Return milliseconds of an exact binomial inversion at n = 60,000 far in the tail."""
    times: list[float] = []
    for _ in range(rounds):
        started = time.perf_counter()
        occam_binomial(2400, 60_000, 3163.0, 0.05)
        times.append(1e3 * (time.perf_counter() - started))
    spread = median_interval(times)
    return {"inversion_ms": spread.estimate, "inversion_ms_low": spread.low, "inversion_ms_high": spread.high}


def certificate(
    name: str, train: LabelledImages, test: LabelledImages, spec: CertifySpec
) -> tuple[dict[str, object], CertifiedModel]:
    """Return the figures of one certificate, with the seconds of making it and of verifying it."""
    started = time.process_time()
    found = certify(None, pair(train), spec, test=pair(test), show=False)
    made = time.process_time() - started
    with tempfile.TemporaryDirectory() as folder:
        place = found.save(Path(folder) / "certificate")
        checked = verify(place, pair(train))
    document = found.certificate.document
    figures: dict[str, object] = {
        f"{name}_bound": found.bound,
        f"{name}_train_risk": document.result.train_risk,
        f"{name}_test_risk": None if found.holdout is None else found.holdout.risk,
        f"{name}_bits": document.bits.total,
        f"{name}_cpu_seconds": made,
        f"{name}_verify_seconds": checked.seconds,
    }
    return figures, found


def shorter(spec: CertifySpec, *, steps: int, quantise_steps: int) -> CertifySpec:
    """Return a specification with fewer steps of training."""
    training = dataclasses.replace(spec.training, steps=steps, quantise_steps=quantise_steps)
    return dataclasses.replace(spec, training=training)


def pair(images: LabelledImages) -> Pair:
    """Return images as (inputs, labels)."""
    return images.inputs, images.labels


if __name__ == "__main__":
    run_benchmark("certify", measure)
