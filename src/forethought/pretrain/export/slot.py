"""The certificate slot of a model card: filled only with a certificate of the very weights that lie beside it.

A certificate bounds the loss of the network that its message decodes to. `certify run` trains such a network itself, so
it says nothing about a model of `pretrain fit` and its kin: only a directory of the decoded weights may carry it.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from forethought.core import files
from forethought.core.artefact import resolve
from forethought.core.errors import ArtefactError, ConfigError, RunExistsError
from forethought.nn import load_language_model

PLACE = "certificate"
_BEGIN, _END = "<!-- certificate -->", "<!-- end of certificate -->"
_NAMES = ("certificate.json", "message.bin")
_MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class Vouched:
    """What a certificate says and of which weights: as its reader found it, not as the model's maker claims."""

    bound: float
    delta: float
    statement: str
    weights_sha256: str
    vacuous: bool = False


def empty_slot() -> str:
    """Return the slot of a model without a certificate, with what would fill it."""
    return _slot(
        "None. A certificate bounds the loss of the network that its message decodes to: a compressed, quantised one "
        "that `forethought certify run` trains for the purpose. It says nothing about the floating-point weights of "
        "this directory unless they are that network, which `forethought certify attach` checks before it fills this "
        "slot."
    )


def weights_sha256(parameters: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of named weights: names, shapes and float32 values, sorted by name, however stored."""
    state = hashlib.sha256(b"forethought weights 1\0")
    for name in sorted(parameters):
        tensor = parameters[name].detach().to(device="cpu", dtype=torch.float32).contiguous()
        state.update(f"{name}\0{tuple(tensor.shape)}\0".encode())
        state.update(tensor.numpy().astype("<f4").tobytes())
    return state.hexdigest()


def attach_certificate(
    model_directory: Path | str, certificate: Path | str, vouched: Vouched, *, replace: bool = False
) -> Path:
    """Copy a certificate into a model's directory and fill the slot of its card, in one publication; return the copy.

    `certificate` is its directory or its certificate.json. The directory is published anew as a whole, so a crash
    leaves the old one or the new one.

    Raises:
        ConfigError: the certificate is of other weights than the directory's.
        RunExistsError: the directory carries another certificate and replace is False.
        ArtefactError: the directory holds no language model, or the certificate lacks a file.
        CheckpointError: the directory is damaged.
        StorageError: the disk refused; the directory is as it was before.
    """
    _, place = resolve(model_directory)
    contents = _certificate_files(Path(certificate))
    if (place / files.MANIFEST).is_file():
        files.verify(place)
    own = weights_sha256(dict(load_language_model(place, dtype=torch.float32).named_parameters()))
    if own != vouched.weights_sha256:
        raise ConfigError(
            f"the certificate {certificate} is of other weights ({vouched.weights_sha256[:16]}) than {place} holds "
            f"({own[:16]}): a certificate vouches for the network that its message decodes to and for no other. Write "
            "that network to a directory of its own with `forethought certify attach --make`"
        )
    kept = place / PLACE
    if kept.is_dir() and not replace and _certificate_files(kept) != contents:
        raise RunExistsError(f"{place} carries another certificate already; say --replace to put this one in its place")
    card = filled(_card_of(place), _filling(vouched, contents))
    with files.staged(place, replace=True) as staging:
        _copy(place, staging)
        for name, data in contents.items():
            files.write_bytes(staging / PLACE / name, data)
        files.write_bytes(staging / "README.md", card.encode())
    return kept


def filled(card: str, text: str) -> str:
    """Return a card with the content of its slot replaced; a card without a slot gets one at its end."""
    before, begin, rest = card.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if begin and end:
        return before + _slot(text) + after
    return f"{card.rstrip()}\n\n## Certificate\n\n{_slot(text)}\n"


def _filling(vouched: Vouched, contents: Mapping[str, bytes]) -> str:
    files_of_it = ", ".join(
        f"`{PLACE}/{name}` (SHA-256 {hashlib.sha256(data).hexdigest()})" for name, data in contents.items()
    )
    return "\n".join(
        [
            f"**Bound: {vouched.bound:.6g}**{' (VACUOUS)' if vouched.vacuous else ''}, failure probability "
            f"{vouched.delta:g}.",
            "",
            vouched.statement,
            "",
            f"It vouches for the weights in this directory and no others: SHA-256 {vouched.weights_sha256} over names, "
            "shapes and float32 values, equal to those that its message decodes to. Not for them in another precision, "
            "fine-tuned, distilled or averaged with others.",
            "",
            f"Files: {files_of_it}. To derive it again: `forethought certify verify DIRECTORY/{PLACE} --data DATA`, "
            "with the very data that it speaks of.",
        ]
    )


def _certificate_files(place: Path) -> dict[str, bytes]:
    folder = place if place.is_dir() else place.parent
    found: dict[str, bytes] = {}
    for name in _NAMES:
        path = folder / name
        if not path.is_file():
            raise ArtefactError(f"{path} is missing; give the directory that `forethought certify run` wrote")
        found[name] = files.read_bounded(path, what="certificate file", limit=_MAX_BYTES)
    return found


def _card_of(place: Path) -> str:
    path = place / "README.md"
    return path.read_text(encoding="utf-8") if path.is_file() else f"# {place.name}\n"


def _copy(place: Path, staging: Path) -> None:
    """Copy what the directory holds, but for what is written anew."""
    for path in sorted(each for each in place.rglob("*") if each.is_file()):
        name = path.relative_to(place)
        if name.parts[0] != PLACE and str(name) not in (files.MANIFEST, "README.md"):
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            with files.explained("copy", path):
                shutil.copyfile(path, staging / name)
    (staging / PLACE).mkdir()


def _slot(text: str) -> str:
    return f"{_BEGIN}\n{text}\n{_END}"
