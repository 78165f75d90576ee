"""The verb `certify run`: train short, certify, report; for built-in examples and for files of one's own."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from forethought.app.arguments import parse, say, table
from forethought.app.certify.pages import certificate_page
from forethought.app.certify.recipes import spec_of
from forethought.app.certify.subjects import arrays_of, read_pair
from forethought.app.page import render
from forethought.certify.certificate.data import Data, Examples, Tokens
from forethought.certify.decoder.priors import NetworkRecipe
from forethought.certify.ledger import ledgers_beside
from forethought.certify.pacbayes import StochasticConfig, certify_stochastic
from forethought.certify.requential import RequentialConfig, certify_requential
from forethought.certify.tokens import certify_tokens
from forethought.certify.training import LEDGER, CertifiedModel, CertifySpec, certify, random_labels
from forethought.core import files
from forethought.core.config import config
from forethought.core.errors import InputError
from forethought.core.run import Exists, Run, open_run

MAX_COPY = 64 << 20
Method = Literal["compress", "stochastic", "requential"]


@dataclass(frozen=True)
class CertifyRunArguments:
    """Train a network to be short, and certify its error (or its loss a token) on data it never needs to see again.

    The run directory holds the certificate (certificate.json and message.bin), the report, and all of training.
    """

    subject: Annotated[Literal["digits", "mnist", "text", "file"], tyro.conf.Positional]
    """digits: scikit-learn's, in seconds; mnist: --data is the folder of its files; text: --data is a text, or JSON
    lines with `text`, by characters; file: --data is a .npz with inputs and labels or tokens, or a .npy of tokens."""
    out: Path
    """The run directory to write."""
    data: Path | None = None
    """Where the data are; digits need none."""
    architecture: Literal["auto", "transformer"] = "auto"
    """transformer: for text and tokens, in place of the window model."""
    max_tokens: int | None = None
    """Certify on the first so many tokens of a text or of tokens; more tokens carry larger models."""
    method: Method = "compress"
    """compress: a short deterministic network; stochastic: PAC-Bayes training of Gaussian weights; requential: a
    full-precision network (experimental; a sixth of the data becomes its unlabelled pool)."""
    random_labels: bool = False
    """The control: labels are drawn at random, and the certificate must come out vacuous."""
    steps: int | None = None
    """Training steps of the first phase, instead of the example's own."""
    quantise_steps: int | None = None
    """Training steps of the second phase, instead of the example's own."""
    seed: int = 0
    """Order of the examples; costs nothing."""
    delta: float = 0.05
    """Failure probability of this certificate."""
    total_delta: float | None = None
    """Failure probability of all certificates on these data together; default: that of this one."""
    ledger: Path | None = None
    """The delta ledger of the data set, if it has other certificates; default: one of its own."""
    declared: Path | None = None
    """The declaration that `certify plan --declare` wrote before the data were read."""
    exists: Exists = "refuse"
    """What to do when the run directory is already there."""
    json: bool = False
    """Print result.json as one last line on standard output."""


@config
class CertifyRun:
    """What a run depends on, for its config.json."""

    subject: str
    data_sha256: str
    method: str
    random_labels: bool
    seed: int
    delta: float
    spec: CertifySpec


def run_verb(arguments: list[str]) -> dict[str, Any]:
    """Run `forethought certify run` and return its result, which carries `bound`.

    Raises:
        InputError: a flag, the data or the directory cannot be used.
        InterruptedRunError: interrupted and saved.
    """
    given = parse(CertifyRunArguments, arguments, verb="certify run")
    train, test = read_pair(given.subject, given.data, max_tokens=given.max_tokens)
    if given.random_labels:
        train, test = _control(train, given.seed), None
    spec = _spec(given, train)
    described = CertifyRun(
        given.subject, train.sha256, given.method, given.random_labels, given.seed, given.delta, spec
    )
    with Run.open(given.out, config=described, recipe=f"certify.{given.subject}", exists=given.exists) as run:
        result = run.result()
        if result is None:
            try:
                result = METHODS[given.method](given, spec, train, test)
            except InputError:
                run.discard()
                raise
            result = {
                "kind": "certify.run",
                "subject": given.subject,
                "method": given.method,
                "seed": given.seed,
                "other_ledgers": _other_ledgers(given, train),
            } | result
            run.write_result(result)
    files.replace_file(given.out / "report.html", render(certificate_page(open_run(given.out))).encode())
    say(f"{given.out}: {summary(result)}", as_json=given.json)
    return result


def _other_ledgers(given: CertifyRunArguments, data: Data) -> list[str]:
    """Other runs in the same folder that drew delta for these data from ledgers of their own."""
    if given.ledger is not None:
        return []
    return [str(path) for path in ledgers_beside(given.out, data.sha256, LEDGER)]


def summary(result: dict[str, Any]) -> str:
    """Return the figures of a certificate that a person wants to see first."""
    rows: dict[str, object] = {
        "bound": f"{result['bound']:.4f}" + (" VACUOUS" if result["vacuous"] else ""),
        "training risk": result["train_risk"],
        "trivial predictor": result["trivial"],
    }
    bits = result.get("bits", result.get("divergence_bits"))
    if bits is not None:
        rows["bits"] = bits["total"] if isinstance(bits, dict) else bits
    if result.get("holdout"):
        rows["held-out risk"] = f"{result['holdout']['risk']:.4f} (its own bound {result['holdout']['bound']:.4f})"
    for name in ("test_loss", "trigram_loss"):
        if result.get(name) is not None:
            rows[name.replace("_", " ")] = result[name]
    if result.get("other_ledgers"):
        rows["delta"] = f"{len(result['other_ledgers'])} other run(s) here on these data; give all one --ledger"
    return f"\n{table(rows)}\n{result['statement']}"


def _spec(given: CertifyRunArguments, data: Data) -> CertifySpec:
    spec = spec_of(given.subject, data, given.architecture)
    training = dataclasses.replace(spec.training, seed=given.seed)
    if given.steps is not None:
        training = dataclasses.replace(training, steps=given.steps)
    if given.quantise_steps is not None:
        training = dataclasses.replace(training, quantise_steps=given.quantise_steps)
    declared = None
    if given.declared is not None:
        declared = str(files.read_json(given.declared, what="declaration").get("prior_sha256"))
    return dataclasses.replace(
        spec,
        training=training,
        delta=given.delta,
        total_delta=given.total_delta or given.delta,
        declared=declared,
        purpose=f"certify run {given.subject}",
    )


def _control(data: Data, seed: int) -> Data:
    if not isinstance(data, Examples):
        raise InputError("--random-labels goes with labelled examples: digits, mnist, or a file with labels")
    return Examples(*random_labels(data, int(data.labels.max()) + 1, seed=seed))


def _compress(given: CertifyRunArguments, spec: CertifySpec, train: Data, test: Data | None) -> dict[str, Any]:
    work = given.out / "work"
    if isinstance(train, Tokens):
        held = test.tokens if isinstance(test, Tokens) else None
        certified = certify_tokens(None, train, spec, test=held, directory=work, ledger=given.ledger)
    else:
        certified = certify(None, train, spec, test=test, directory=work, ledger=given.ledger)
    return _saved(given, train, certified)


def _keep(given: CertifyRunArguments, train: Data) -> str:
    """Keep small data beside the certificate, and return the command with which anybody verifies."""
    where = f"forethought certify verify {given.out / 'certificate'} --data"
    arrays = arrays_of(train)
    if sum(array.nbytes for array in arrays.values()) > MAX_COPY:
        return f"{where} {given.data}"
    path = given.out / "data.npz"
    with files.open_write(path) as stream:
        np.savez_compressed(stream, **arrays)
    return f"{where} {path}"


def _stochastic(given: CertifyRunArguments, spec: CertifySpec, train: Data, test: Data | None) -> dict[str, Any]:
    settings = StochasticConfig(network=_network(spec, train), steps=given.steps or 3000, **_shares(given))
    found = certify_stochastic(None, train, settings, given.out / "work", test=test, ledger=given.ledger)
    return _saved(given, train, found)


def _requential(given: CertifyRunArguments, spec: CertifySpec, train: Data, test: Data | None) -> dict[str, Any]:
    network, steps = _network(spec, train), given.steps or 600
    settings = RequentialConfig(network=network, steps=steps, pool_is_independent=True, **_shares(given))
    # The pool is cut off by a rule that knows nothing of the data, and its labels are never looked at.
    pool, work = max(1, train.size // 6), given.out / "work"
    found = certify_requential(None, train, pool, settings, test=test, directory=work, ledger=given.ledger)
    return _saved(given, train, found)


def _shares(given: CertifyRunArguments) -> dict[str, Any]:
    return {"seed": given.seed, "delta": given.delta, "total_delta": given.total_delta or given.delta}


def _network(spec: CertifySpec, data: Data) -> NetworkRecipe:
    if not isinstance(data, Examples):
        raise InputError("this method takes labelled examples; use --method compress for tokens")
    recipe = spec.prior.recipe
    if recipe.architecture == "mlp":
        return NetworkRecipe(architecture="mlp", settings=recipe.settings)
    # Convolutions pay in a message; a whole network that is drawn or run again is better plain and small.
    sizes = {"num_inputs": math.prod(data.inputs.shape[1:]), "num_classes": recipe.settings["num_classes"]}
    return NetworkRecipe(architecture="mlp", settings={**sizes, "hidden": [128]})


def _saved(given: CertifyRunArguments, train: Data, certified: CertifiedModel) -> dict[str, Any]:
    certified.save(given.out / "certificate", replace=True)
    return certified.to_dict() | {"certificate": "certificate", "verify": _keep(given, train)}


METHODS = {"compress": _compress, "stochastic": _stochastic, "requential": _requential}
