"""Certificates: milliseconds of an inversion, seconds of verification in a fresh process and of a small certificate.

How tight certificates are is measured by the studies (benchmarks/studies/certify_*.py); nothing here trains for long.
The MNIST certificate verified here was trained for a moment, which changes neither its network, nor the shape of its
message, nor what a verifier does. Without MNIST beside the checkout (../shared/data/images/mnist) noise of its size
takes its place.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from forethought.app.certify.recipes import digits, mnist
from forethought.certify import kl_inverse, occam_binomial
from forethought.certify.bounds import freedman
from forethought.certify.training import certify
from forethought.certify.training_search import CertifySpec
from forethought.core.rng import generator
from forethought.data.images import LabelledImages, load_digits, load_mnist
from forethought.stats import median_interval
from harness import run_benchmark

MNIST = Path(__file__).resolve().parents[2] / "shared" / "data" / "images" / "mnist"
SIZE = 60_000


def measure(quick: bool) -> dict[str, object]:
    """Time the inversions, a digits certificate, and the verification of certificates of the digits and of MNIST."""
    torch.set_num_threads(1)
    rounds = 10 if quick else 100
    figures: dict[str, object] = {"threads": 1}
    figures |= timed("inversion_ms", rounds, lambda: occam_binomial(2400, SIZE, 3163.0, 0.05))
    figures |= timed("far_inversion_ms", rounds, lambda: occam_binomial(29_000, SIZE, 10_000.0, 0.05))
    figures |= timed("kl_inversion_ms", rounds, lambda: kl_inverse(0.04, 0.0365))
    losses = generator(0, "benchmark.losses").exponential(1.5, 1_000_000).clip(0, 9)
    guesses = np.full_like(losses, 1.5)
    figures |= timed("freedman_million_tokens_ms", 3, lambda: freedman(losses, guesses, 35e3, 0.05, loss_range=9.0))
    train, test = load_digits()
    figures |= certificate("digits", train, shorter(digits(), 600 if quick else 3000, 300 if quick else 1500), test)
    figures |= certificate("mnist", images(), shorter(mnist(), 20, 20), None)
    return figures


def timed(name: str, rounds: int, call: Callable[[], object]) -> dict[str, object]:
    """Return the median time of a call in milliseconds with its interval, after one call that warms up."""
    times: list[float] = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - started))
    spread = median_interval(times[1:])
    return {name: spread.estimate, f"{name}_low": spread.low, f"{name}_high": spread.high}


def certificate(name: str, train: LabelledImages, spec: CertifySpec, test: LabelledImages | None) -> dict[str, object]:
    """Return the figures of one certificate, with the seconds of making it and of verifying it in a fresh process."""
    data = (train.inputs, train.labels)
    started = time.process_time()
    found = certify(None, data, spec, test=None if test is None else (test.inputs, test.labels), show=False)
    made = time.process_time() - started
    with tempfile.TemporaryDirectory() as folder:
        place, arrays = found.save(Path(folder) / "certificate"), Path(folder) / "data.npz"
        np.savez(arrays, inputs=train.inputs, labels=train.labels)
        seconds, own, bound = verified(place, arrays)
    if bound != found.bound:
        raise SystemExit(f"the verified bound {bound} of {name} is not the one that was issued, {found.bound}")
    return {
        f"{name}_bound": found.bound,
        f"{name}_bits": found.certificate.document.bits.total,
        f"{name}_make_cpu_seconds": made,
        f"{name}_verify_process_seconds": seconds,
        f"{name}_verify_seconds": own,
    }


def verified(certificate: Path, data: Path) -> tuple[float, float, float]:
    """Return the seconds of a whole `certify verify` process, of the verification in it, and the bound it derived."""
    command = [
        sys.executable,
        "-m",
        "forethought",
        "certify",
        "verify",
        str(certificate),
        "--data",
        str(data),
        "--json",
    ]
    started = time.perf_counter()
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    seconds = time.perf_counter() - started
    told = json.loads(done.stdout.splitlines()[-1])
    return seconds, told["seconds"], told["bound"]


def images() -> LabelledImages:
    """Return MNIST's training images, or noise of the same size where they are not at hand."""
    if MNIST.is_dir():
        return load_mnist(MNIST)
    draw = generator(0, "benchmark.images")
    inputs = draw.random((SIZE, 1, 28, 28), dtype=np.float32)
    return LabelledImages(inputs, draw.integers(0, 10, SIZE), 10)


def shorter(spec: CertifySpec, steps: int, quantise_steps: int) -> CertifySpec:
    """Return a specification with its steps of training replaced."""
    training = dataclasses.replace(spec.training, steps=steps, quantise_steps=quantise_steps)
    return dataclasses.replace(spec, training=training)


if __name__ == "__main__":
    run_benchmark("certify", measure)
