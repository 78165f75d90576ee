"""Verification by a stranger: a fresh process, the decoder alone, every claim, every byte."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.certify.certificates import (
    HASHED,
    TRANSFORMER,
    WINDOW,
    drawn_certificate,
    linear_certificate,
    rewrite,
)

from forethought.certify import Certificate, Examples, Recipe, Tokens, read_certificate, verify
from forethought.certify.certificate.document import DOCUMENT, MESSAGE
from forethought.core.errors import ArtefactError, DataError

STRANGER = """
import json, sys
from forethought.certify import load_data, verify
found = []
for place in sys.argv[1:]:
    checked = verify(place + "/made.cert", load_data(place + "/data.npz"))
    weights = {name: w.ravel().tolist()[:50] for name, w in checked.derived.network.weights.items()}
    found.append({"result": checked.to_dict(), "weights": weights})
print(json.dumps({"found": found, "modules": sorted(sys.modules)}))
"""
ALLOWED = {
    "forethought.certify." + name
    for name in ("bounds", "certificate", "codes", "decoder", "given", "ledger", "verifying")
}


def saved(tmp_path: Path, recipe: Recipe | None = None) -> tuple[Certificate, Examples | Tokens, Path]:
    certificate, data = linear_certificate() if recipe is None else drawn_certificate(recipe)
    return certificate, data, certificate.save(tmp_path / "made.cert")


def test_a_fresh_process_derives_weights_risk_and_bound_with_the_decoder_alone(tmp_path: Path) -> None:
    places = [tmp_path / "classifier", tmp_path / "tokens"]
    made = [saved(place, recipe) for place, recipe in zip(places, (None, TRANSFORMER), strict=True)]
    for place, (_, data, _) in zip(places, made, strict=True):
        arrays = vars(data) if isinstance(data, Tokens) else {"inputs": data.inputs, "labels": data.labels}
        np.savez(place / "data.npz", **{name: array for name, array in arrays.items() if name != "kind"})
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, *map(str, places)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout)
    for (certificate, data, place), found in zip(made, answer["found"], strict=True):
        result = certificate.document.result
        assert math.isclose(found["result"]["bound"], result.bound, rel_tol=1e-12)
        assert math.isclose(found["result"]["train_risk"], result.train_risk, rel_tol=1e-12)
        here = verify(place, data).derived.network.weights
        for name, values in found["weights"].items():
            assert np.allclose(here[name].numpy().ravel()[:50], values, rtol=1e-12, atol=1e-15)
    rooms = {name.split(".")[1] for name in answer["modules"] if name.startswith("forethought.")}
    assert rooms <= {"certify", "core", "nn", "stats"}, "no training loop, no data room, no application"
    parts = {".".join(name.split(".")[:3]) for name in answer["modules"] if name.startswith("forethought.certify.")}
    assert parts <= ALLOWED, "neither compression nor anything else that makes certificates"


@pytest.mark.parametrize("recipe", [None, HASHED, WINDOW, TRANSFORMER], ids=["mlp", "conv", "window", "transformer"])
def test_verification_repeats_what_was_issued(tmp_path: Path, recipe: Recipe | None) -> None:
    certificate, data, place = saved(tmp_path, recipe)
    checked = verify(place, data)
    assert checked.bound == certificate.bound
    assert checked.derived.result == certificate.document.result
    assert checked.derived.weights == certificate.document.weights
    said = checked.to_dict()
    assert said["verified"] is True
    assert said["vacuous"] is certificate.vacuous
    assert any("prior was declared" in part for part in said["not_verified"])
    assert verify(place / DOCUMENT, data).bound == checked.bound


def test_other_data_are_not_the_data_of_the_certificate(tmp_path: Path) -> None:
    _, data, place = saved(tmp_path)
    assert isinstance(data, Examples)
    moved = data.inputs.copy()
    moved[7, 3] = np.nextafter(moved[7, 3], 10.0)
    for other in [(moved, data.labels), (data.inputs, np.roll(data.labels, 1)), (data.inputs[:-1], data.labels[:-1])]:
        with pytest.raises(ArtefactError, match="not those of the certificate"):
            verify(place, other)
    with pytest.raises(ArtefactError, match="not those of the certificate"):
        verify(place, data.labels)
    with pytest.raises(DataError):
        verify(place, "data.npz")


def test_every_byte_of_both_files_is_guarded(tmp_path: Path) -> None:
    """All bytes of the message, and of the document one in seven and all of the last hundred."""
    _, _, place = saved(tmp_path)
    for name, step in ((DOCUMENT, 7), (MESSAGE, 1)):
        whole = (place / name).read_bytes()
        positions = {*range(0, len(whole), step), *range(len(whole) - 100, len(whole))}
        for position in sorted(positions):
            changed = bytearray(whole)
            changed[position] ^= 1 << (position % 8)
            (place / name).write_bytes(bytes(changed))
            with pytest.raises(ArtefactError):
                read_certificate(place)
        (place / name).write_bytes(whole)
    read_certificate(place)


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from leaves(inner, (*path, index))
    else:
        yield path, value


def altered(value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return 1
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * (1 - 1e-9) if value else 1e-9
    return ("0" if value[:1] != "0" else "1") + value[1:]


# What nobody can derive from the files and the data; `not_verified` says so.
UNDERIVED = {
    ("delta", "total"),
    ("delta", "spent_before"),
    ("delta", "purpose"),
    ("version",),
    ("reported", "test_risk"),
}


@pytest.mark.parametrize("recipe", [None, WINDOW], ids=["classifier", "tokens"])
def test_a_forger_who_mends_all_hashes_cannot_change_one_claim(tmp_path: Path, recipe: Recipe | None) -> None:
    certificate, data, place = saved(tmp_path, recipe)
    honest = json.loads((place / DOCUMENT).read_bytes())
    tried = 0
    for path, value in leaves(honest):
        if path in UNDERIVED or path == ("sha256",):
            continue

        def change(values: dict[str, Any], path: tuple[str | int, ...] = path, value: Any = value) -> None:
            values.clear()
            values.update(copy.deepcopy(honest))
            owner: Any = values
            for step in path[:-1]:
                owner = owner[step]
            owner[path[-1]] = altered(value)

        rewrite(place, change)
        with pytest.raises((ArtefactError, DataError)):
            verify(place, data)
        tried += 1
    assert tried > 40
    certificate.save(place, replace=True)
    verify(place, data)


def test_a_better_bound_than_the_message_earns_is_refused_with_both_figures(tmp_path: Path) -> None:
    certificate, data, place = saved(tmp_path)

    def boast(values: dict[str, Any]) -> None:
        values["result"]["bound"] = 0.01

    rewrite(place, boast)
    with pytest.raises(ArtefactError, match=r"claims result\.bound = 0\.01, but 0\.\d+ follows"):
        verify(place, data)
    assert certificate.bound > 0.01


def test_a_message_of_another_certificate_is_refused(tmp_path: Path) -> None:
    _, data, place = saved(tmp_path)
    other, _ = drawn_certificate(HASHED)
    (place / MESSAGE).write_bytes(other.message)
    with pytest.raises(ArtefactError, match=r"not the message|has more than"):
        verify(place, data)
    rewrite(place, lambda values: None, other.message)
    with pytest.raises(ArtefactError, match=r"symbols|recipe"):
        verify(place, data)


def test_a_prior_with_fewer_choices_than_were_made_is_another_prior(tmp_path: Path) -> None:
    """Dropping a grid would save its bits; the hash that was published before the data tells."""
    _, data, place = saved(tmp_path)

    def forget(values: dict[str, Any]) -> None:
        values["prior"]["choices"] = {}
        values["chosen"] = {}

    rewrite(place, forget)
    with pytest.raises(ArtefactError, match="prior"):
        verify(place, data)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    _, data, place = saved(tmp_path)
    (place / MESSAGE).unlink()
    with pytest.raises(ArtefactError, match=r"message\.bin"):
        verify(place, data)
    with pytest.raises(ArtefactError, match=r"nowhere"):
        verify(tmp_path / "nowhere.cert", data)
