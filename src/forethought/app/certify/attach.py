"""The verb `certify attach`: a certificate into the directory of the model that its message decodes to.

The rooms `certify` and `pretrain` know nothing of each other: here the decoded weights of the one meet the card of the
other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from forethought.app.arguments import parse, say, table
from forethought.certify.certificate.derive import decode_for
from forethought.certify.certificate.document import Certificate, TokenResult, read_certificate
from forethought.certify.decoder.rebuild import Network, network_of
from forethought.certify.decoder.recipe import TokenScoring
from forethought.core.errors import ConfigError, RunExistsError
from forethought.nn import LanguageModel, load_language_model, save_language_model
from forethought.pretrain.export import Vouched, attach_certificate, weights_sha256


@dataclass(frozen=True)
class AttachArguments:
    """Compare a model's weights with those that a certificate's message decodes to, and put it on the model's card.

    A certificate of other weights is refused. Nothing here needs the data: whether the bound holds is what
    `certify verify` derives again from them.
    """

    certificate: Annotated[Path, tyro.conf.Positional]
    """The directory that holds certificate.json and message.bin, or certificate.json itself."""
    model: Path
    """The model's directory, or a run that made one."""
    make: bool = False
    """Write the decoded network there first, as a Hugging Face directory of its own."""
    tokenizer: Path | None = None
    """With --make: the tokenizer.json of the tokens that were certified, or a directory that holds one."""
    base: Path | None = None
    """The model whose weights the certificate's recipe starts from, where it starts from given ones."""
    replace: bool = False
    """Put it in the place of another certificate."""
    json: bool = False
    """Print the result as one last line on standard output."""


def attach_verb(arguments: list[str]) -> dict[str, Any]:
    """Run `forethought certify attach` and return what the model's card says now.

    Raises:
        InputError: the certificate or the model is refused, or the weights are others.
    """
    given = parse(AttachArguments, arguments, verb="certify attach")
    certificate = read_certificate(given.certificate)
    network = decoded_network(certificate, given.base)
    if given.make:
        _make(network, given)
    vouched = vouched_by(certificate, network)
    place = attach_certificate(given.model, given.certificate, vouched, replace=given.replace)
    rows = {"attached": place, "bound": f"{vouched.bound:.6f}", "weights": f"SHA-256 {vouched.weights_sha256}"}
    say(f"{table(rows)}\n{vouched.statement}", as_json=given.json)
    return {
        "kind": "certify.attach",
        "certificate": str(place),
        "bound": vouched.bound,
        "delta": vouched.delta,
        "vacuous": vouched.vacuous,
        "weights_sha256": vouched.weights_sha256,
    }


def decoded_network(certificate: Certificate, base: Path | None = None) -> Network:
    """Return the language model that a certificate's message decodes to, without any look at data.

    Raises:
        ConfigError: the certificate is not about a language model of this library.
        ArtefactError: the message is not one of the certificate's prior, or the base weights are others.
    """
    recipe = certificate.document.prior.resolve(certificate.document.chosen)
    if recipe.architecture != "transformer":
        raise ConfigError(
            f"this certificate is about a network of the kind {recipe.architecture!r}, and a model's directory holds a "
            "transformer; certify one with `forethought certify run ... --architecture transformer`"
        )
    message = decode_for(recipe, certificate.message)
    start = None if base is None else dict(load_language_model(base, dtype=torch.float32).named_parameters())
    return network_of(recipe, message.numbers, buffers=message.buffers, base=start)


def vouched_by(certificate: Certificate, network: Network) -> Vouched:
    """Return what a certificate says of its decoded weights, in the words that a card carries."""
    document, result = certificate.document, certificate.document.result
    notes = [certificate.statement]
    if isinstance(result, TokenResult):
        notes.append(f"Smoothed: mixed with the uniform law, whose share is {result.smoothing:.4g}.")
    scoring = network.recipe.scoring
    if isinstance(scoring, TokenScoring) and scoring.precision != "float32":
        notes.append(f"Its loss was counted in {scoring.precision}; this directory holds the weights as float32.")
    return Vouched(
        bound=certificate.bound,
        delta=document.delta.total,
        statement=" ".join(notes),
        weights_sha256=weights_sha256(network.weights),
        vacuous=certificate.vacuous,
    )


def _make(network: Network, given: AttachArguments) -> None:
    if given.model.exists():
        raise RunExistsError(f"{given.model} already exists; give --make another name, or leave --make out")
    if isinstance(network.module, LanguageModel):
        save_language_model(network.module.float(), given.model, given.tokenizer, dtype=torch.float32)
