"""The job of certificates: a small transformer of the same corpus, certified, verified elsewhere, and on its card."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from forethought.app.certify.attach import attach_verb
from forethought.app.certify.run import run_verb
from forethought.app.demo.settings import DemoConfig
from forethought.core import files
from forethought.core.errors import TaskError
from forethought.data import Corpus, open_corpus

PLACE, TEXT, MODEL, VERIFIED = "certificate", "certificate-text.jsonl", "certified-model", "verified.json"


def certify_text(settings: DemoConfig, out: Path) -> dict[str, Any]:
    """Train and certify, verify in a fresh process, put the certificate on the card of the decoded model."""
    size, place = settings.certificate, out / PLACE
    if not (out / TEXT).exists():
        write_documents(open_corpus(out / "corpus"), out / TEXT, size.tokens)
    arguments = ["text", "--data", str(out / TEXT), "--architecture", "transformer", "--out", str(place)]
    arguments += ["--max-tokens", str(size.tokens), "--exists", "resume", "--json"]
    for name, value in (("--steps", size.steps), ("--quantise-steps", size.quantise_steps)):
        arguments += [] if value is None else [name, str(value)]
    result = run_verb(arguments)
    certificate, model = place / "certificate", out / MODEL
    data = place / "data.npz"
    verified = verify_elsewhere(certificate, data if data.exists() else out / TEXT)
    files.write_json(place / VERIFIED, verified)
    make = [] if model.exists() else ["--make"]
    card = attach_verb([str(certificate), "--model", str(model), *make, "--replace", "--json"])
    names = ("bound", "vacuous", "train_risk", "trivial", "bits", "n", "test_loss", "trigram_loss", "unigram_loss")
    return {
        **{name: result.get(name) for name in (*names, "statement", "verify")},
        "verified_bound": verified["bound"],
        "verify_seconds": verified["seconds"],
        "weights_sha256": card["weights_sha256"],
        "command": f"forethought certify verify {certificate} --data {data}",
    }


def verify_elsewhere(certificate: Path, data: Path) -> dict[str, Any]:
    """Verify a certificate by `forethought certify verify` in a process that imports no training code.

    Raises:
        TaskError: it was refused; the message is the verifier's.
    """
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
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise TaskError(f"the certificate did not verify: {done.stderr.strip()[-400:]}")
    return json.loads(done.stdout.splitlines()[-1])


def write_documents(corpus: Corpus, path: Path, num_characters: int) -> None:
    """Write documents of a corpus as JSON lines: of training so many characters, of the test a tenth as many."""
    lines = [
        json.dumps({"text": text, "split": split}) + "\n"
        for split, limit in (("train", num_characters), ("test", num_characters // 10))
        for text in _documents(corpus, split, limit)
    ]
    files.replace_file(path, "".join(lines).encode())


def _documents(corpus: Corpus, split: str, limit: int) -> Iterator[str]:
    dataset, written = getattr(corpus, split), 0
    ends = [*np.asarray(dataset.document_starts)[1:].tolist(), dataset.num_tokens]
    for start, end in zip(np.asarray(dataset.document_starts).tolist(), ends, strict=True):
        tokens = [
            token for token in np.asarray(dataset.tokens[start:end]).tolist() if token != corpus.tokenizer.end_of_text
        ]
        text = corpus.tokenizer.decode(tokens)
        yield text
        written += len(text)
        if written >= limit:
            return
