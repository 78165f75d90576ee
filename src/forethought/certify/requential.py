"""Single-draw requential certificates: a bound for a full-precision network, from one training run and no code.

EXPERIMENTAL: the derivation is ours (docs/requential.md) and has not been reviewed elsewhere.

A student learns nothing but labels that a teacher draws, on inputs that are independent of the sample S. Had it
drawn the labels itself, its weights would be independent of S; the log-ratio of the two laws of the labels, summed over
the run, is therefore what the student knows of S, and enters a disintegrated PAC-Bayes bound in place of bits. The
certificate's file holds the labels and the student; to verify is to run teacher and student again.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from forethought.certify.certificate import Certificate, Examples, RequentialDocument
from forethought.certify.certificate.claims import DivergenceClaim, PoolClaim, RequentialResult, TeacherClaim
from forethought.certify.certificate.derive import weight_claim
from forethought.certify.certificate.drawn import Drawn, module_of, pool_sha256, requential_result, split_pool
from forethought.certify.decoder.priors import NetworkRecipe, StudentPrior
from forethought.certify.decoder.student import Session, one_thread, trajectory_bytes
from forethought.certify.lint import Finding, refuse
from forethought.certify.training import CertifiedModel, workplace
from forethought.certify.uncoded import common_claims, drawn_share, examples_of, holdout_of, lint_plain, with_weights
from forethought.core.config import config, from_dict, to_dict
from forethought.core.errors import ConfigError, InterruptedRunError
from forethought.core.progress import track
from forethought.core.run import Run
from forethought.train.interrupt import stop_requests


@config
class RequentialConfig:
    """How teacher and student learn. The student's side is the prior: it is fixed here, before the sample is seen."""

    network: NetworkRecipe = Field(default_factory=NetworkRecipe)
    """A network of the decoder's table, or "given" for a module of one's own."""
    steps: int = Field(default=600, ge=1)
    num_checkpoints: int = Field(default=12, ge=1)
    """Evenly spaced steps at which the student may be taken; the union over them is paid."""
    student_batch: int = Field(default=100, ge=1)
    student_lr: float = Field(default=3e-3, gt=0.0)
    student_seed: int = Field(default=0, ge=0)
    teacher_batch: int = Field(default=500, ge=1)
    teacher_lr: float = Field(default=5e-4, gt=0.0)
    pause_above: float | None = Field(default=0.05, gt=0.0)
    """The teacher waits while the last mean log-ratio a label exceeds this; None: never. Free."""
    seed: int = Field(default=0, ge=0)
    """Of the drawn labels and the teacher."""
    seeds_tried: int = Field(default=1, ge=1)
    """How many such seeds were on the table, of which the best is kept; the union over them is paid."""
    precision: Literal["float32", "float64"] = "float64"
    delta: float = Field(default=0.05, gt=0.0, lt=1.0)
    total_delta: float | None = Field(default=None, gt=0.0, lt=1.0)
    """For all certificates on these data together; None: that of this one."""
    declared: str | None = None
    """SHA-256 of the prior as it was written down before the data were read."""
    pool_is_independent: bool = False
    """The user's word that the pool's inputs are independent of the sample; without it there is no certificate."""
    checkpoint_every: int = Field(default=100, ge=0)

    def __post_init__(self) -> None:
        if self.num_checkpoints > self.steps:
            raise ConfigError(f"num_checkpoints {self.num_checkpoints} exceeds steps {self.steps}; give fewer")

    def prior(self, pool: np.ndarray) -> StudentPrior:
        """Return the prior that a certificate of these settings declares, for a pool of inputs."""
        return StudentPrior(
            network=self.network,
            pool_sha256=pool_sha256(pool),
            steps=self.steps,
            checkpoints=self.num_checkpoints,
            batch=self.student_batch,
            lr=self.student_lr,
            seed=self.student_seed,
            precision=self.precision,
        )

    @property
    def teacher(self) -> TeacherClaim:
        """The side that may depend on the data."""
        return TeacherClaim(
            batch=self.teacher_batch,
            lr=self.teacher_lr,
            seed=self.seed,
            attempts=self.seeds_tried,
            pause_above=self.pause_above,
        )


def certify_requential(
    module: nn.Module | None,
    data: object,
    pool: np.ndarray | int,
    settings: RequentialConfig,
    *,
    test: object | None = None,
    directory: Path | str | None = None,
    ledger: Path | str | None = None,
    show: bool = True,
) -> CertifiedModel:
    """Train teacher and student and certify the best inspected student; EXPERIMENTAL.

    kl(train risk || risk) <= (sum_t ln Q_t(y_t) / P_t(y_t) + ln(2 sqrt(n) / delta) + ln(checkpoints seeds)) / n.
    `pool` holds unlabelled inputs, or says how many leading rows of `data` serve as them: these are not counted, and
    their labels are not used. With a directory, an interrupted run goes on there to the same bits.

    Raises:
        AssumptionError: an assumption fails, or the pool was not declared independent of the sample.
        InputError: the data, the module or the ledger are refused.
        InterruptedRunError: interrupted and saved; the same call goes on.
    """
    started = time.perf_counter()
    given = examples_of(data)
    leading = pool if isinstance(pool, int) else 0
    findings = _lint_pool(given, pool, settings)
    refuse(findings)
    sample, rows = split_pool(given, None if isinstance(pool, int) else pool, leading)
    prior = settings.prior(rows)
    findings += lint_plain(module, sample, declared=settings.declared, prior_sha256=prior.sha256)
    code, _ = module_of(settings.network, copy.deepcopy(module))
    with workplace(directory) as place, one_thread():
        session = Session(code, prior, settings.teacher, (sample.inputs, sample.labels), rows)
        path, weights = _train(session, sample, settings, given.sha256, Path(place), show)
        chosen = min(range(len(path)), key=lambda i: (path[i]["result"]["bound"], i))
        message = trajectory_bytes(np.stack(session.drawn[: prior.inspected[chosen]]), weights)
        delta = drawn_share(given, prior, "requential", settings, directory, ledger)
        result = from_dict(RequentialResult, path[chosen]["result"])
        bits = from_dict(DivergenceClaim, path[chosen]["bits"])
        found = Drawn(code, weights, bits, weight_claim(weights), result)
        holdout = None
        if test is not None:
            held = examples_of(test)
            session.student.restore_weights(weights)
            holdout = holdout_of(session.errors((held.inputs, held.labels)), held.size, settings.delta)
    claim = PoolClaim(sha256=prior.pool_sha256, size=len(rows), leading=leading)
    document = RequentialDocument(
        **common_claims(prior, given, message, found, findings, holdout),
        chosen={"checkpoints": chosen},
        delta=delta,
        pool=claim,
        teacher=settings.teacher,
    )
    shown = [{"step": row["result"]["steps"], "bits": row["bits"]["divergence"], **row["result"]} for row in path]
    extra = {"path": shown, "step": result.steps, "experimental": True, "pool": to_dict(claim)}
    seconds, certificate = time.perf_counter() - started, Certificate(document, message)
    return CertifiedModel(certificate, with_weights(found), tuple(findings), (), holdout, seconds, extra)


def _train(
    session: Session, sample: Examples, settings: RequentialConfig, data_sha256: str, directory: Path, show: bool
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Run to the end, resumably; return the figures of every inspected student, and the weights of the best."""
    described = _Described(settings, data_sha256, session.prior.pool_sha256)
    path: list[dict[str, Any]] = []
    best: dict[str, Tensor] = {}
    with Run.open(directory / "requential", config=described, recipe="certify.requential", exists="resume") as run:
        saved = run.checkpoints.latest()
        if saved is not None:
            session.restore(saved.tensors("session"), saved.state["session"])
            path, best = list(saved.state["path"]), _ordered(saved.tensors("best"), session)
        with stop_requests() as stop, track("requential", settings.steps) if show else _Silent() as progress:
            while session.step < settings.steps:
                session.advance()
                if session.step in session.prior.inspected:
                    result, bits = requential_result(session, session.prior, settings.teacher, sample, settings.delta)
                    if all(result.bound < row["result"]["bound"] for row in path):
                        best = {name: value.detach().clone() for name, value in session.student.weights.items()}
                    path.append({"result": to_dict(result), "bits": to_dict(bits)})
                progress.update(session.step, bits=session.bits())
                every = settings.checkpoint_every
                if stop.requested or session.step == settings.steps or (every and session.step % every == 0):
                    _save(run, session, path, best)
                if stop.requested and session.step < settings.steps:
                    raise InterruptedRunError(
                        f"interrupted after step {session.step} of {settings.steps}; saved in {directory}; "
                        "run the same command with --exists resume to go on"
                    )
    return path, best


def _save(run: Run, session: Session, path: list[dict[str, Any]], best: Mapping[str, Tensor]) -> None:
    tensors, state = session.state()
    kept = best or {name: value.detach() for name, value in session.student.weights.items()}
    run.checkpoints.save(session.step, {"session": tensors, "best": kept}, {"session": state, "path": path})


def _ordered(weights: Mapping[str, Tensor], session: Session) -> dict[str, Tensor]:
    return {name: weights[name] for name in session.student.weights}


@config
class _Described:
    settings: RequentialConfig
    data_sha256: str
    pool_sha256: str


class _Silent:
    """A progress display that shows nothing."""

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, _done: float, **_facts: object) -> None:
        return None


def _lint_pool(data: Examples, pool: np.ndarray | int, settings: RequentialConfig) -> list[Finding]:
    findings: list[Finding] = []
    if not settings.pool_is_independent:
        findings.append(
            Finding(
                "pool-not-independent",
                "error",
                "the bound needs unlabelled inputs that are independent of the sample (a public pool, or a split made "
                "beforehand); say pool_is_independent=True if that is so",
            )
        )
    if isinstance(pool, int):
        if not 0 < pool < data.size:
            message = f"{pool} leading rows of {data.size} as a pool leave nothing; give 1 to {data.size - 1}"
            return [*findings, Finding("pool-shape", "error", message)]
        sample, rows = data.inputs[pool:], data.inputs[:pool]
    else:
        sample, rows = data.inputs, pool
    if rows.shape[1:] != sample.shape[1:] or not len(rows):
        message = f"the pool has shape {rows.shape}; give rows of shape {sample.shape[1:]}, at least one"
        return [*findings, Finding("pool-shape", "error", message)]
    mine = {row.tobytes() for row in np.ascontiguousarray(sample)}
    shared = sum(row.tobytes() in mine for row in np.ascontiguousarray(rows.astype(sample.dtype)))
    if shared:
        message = f"{shared} inputs of the pool are in the sample bit for bit, so the pool is not independent of it"
        findings.append(Finding("pool-overlaps-sample", "error", message))
    return findings
