"""Files that were made to harm: each attack is written out, refused by name, and takes no memory on its way.

They double as documentation of what the reader of a certificate must not do. Every attack starts from an honest
certificate and mends all hashes that it can, so that no check stands on a checksum alone.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.certify.certificates import LINEAR, linear_certificate, rewrite

from forethought.certify import Examples, Recipe, read_certificate, verify
from forethought.certify.certificate import message_of
from forethought.certify.certificate.derive import decode_for
from forethought.certify.certificate.document import DOCUMENT, MESSAGE
from forethought.certify.codes import GridCodebook, Segment, TableCodebook, decode_message
from forethought.certify.codes.message import MAGIC, canonical_json
from forethought.certify.decoder import LoraRecipe, SubspaceRecipe, TokenScoring, plan_of
from forethought.core.errors import ArtefactError, InputError

MAX_GROWTH_BYTES = 64 << 20
Attack = Callable[[Path], None]


def split_message(place: Path) -> tuple[bytes, bytes]:
    """The message up to the header of its first segment, and from there on."""
    message = (place / MESSAGE).read_bytes()
    (length,) = struct.unpack_from("<I", message, len(MAGIC))
    cut = len(MAGIC) + 4 + length + 2
    return message[:cut], message[cut:]


def with_header(place: Path, kind: int, levels: int, count: int) -> None:
    head, body = split_message(place)
    rewrite(place, lambda values: None, head + struct.pack("<BHI", kind, levels, count) + body[7:])


def four_billion_symbols_in_few_bytes(place: Path) -> None:
    with_header(place, 0, 5, 0xFFFFFFFF)


def more_symbols_than_the_recipe_has_numbers(place: Path) -> None:
    with_header(place, 0, 5, 40)


def no_symbols(place: Path) -> None:
    with_header(place, 0, 5, 0)


def sixty_thousand_levels(place: Path) -> None:
    with_header(place, 0, 60_000, 39)


def an_unknown_kind_of_codebook(place: Path) -> None:
    with_header(place, 7, 5, 39)


def a_stream_longer_than_the_file(place: Path) -> None:
    head, body = split_message(place)
    rewrite(place, lambda values: None, head + body[:17] + struct.pack("<I", 0x03FFFFFF) + body[21:])


def a_recipe_of_four_gigabytes(place: Path) -> None:
    message = (place / MESSAGE).read_bytes()
    rewrite(place, lambda values: None, MAGIC + struct.pack("<I", 0xFFFFFFFF) + message[len(MAGIC) + 4 :])


def sixty_five_thousand_segments(place: Path) -> None:
    head, body = split_message(place)
    rewrite(place, lambda values: None, head[:-2] + struct.pack("<H", 0xFFFF) + body)


def a_forged_stream(place: Path) -> None:
    """Other symbols, well coded, for the same claims."""
    symbols = np.zeros(39, dtype=np.int64)
    book = decode_message((place / MESSAGE).read_bytes()).segments[0].codebook
    rewrite(place, lambda values: None, message_of(LINEAR, [Segment(symbols, book)]))


def a_stream_with_free_bytes_behind(place: Path) -> None:
    rewrite(place, lambda values: None, (place / MESSAGE).read_bytes() + b"hidden weights")


def a_cheaper_codebook_than_the_recipe(place: Path) -> None:
    symbols = decode_message((place / MESSAGE).read_bytes()).segments[0].symbols
    rewrite(place, lambda values: None, message_of(LINEAR, [Segment(symbols, GridCodebook(5, 0.5))]))


def uncharged_buffers(place: Path) -> None:
    segments = decode_message((place / MESSAGE).read_bytes()).segments
    rewrite(place, lambda values: None, message_of(LINEAR, segments, buffers=np.ones(100)))


def a_nan_in_the_codebook(place: Path) -> None:
    head, body = split_message(place)
    rewrite(place, lambda values: None, head + body[:7] + struct.pack("<e", float("nan")) + body[9:])


def a_truncated_message(place: Path) -> None:
    message = (place / MESSAGE).read_bytes()
    rewrite(place, lambda values: None, message[: len(message) // 2])


def an_empty_message(place: Path) -> None:
    (place / MESSAGE).write_bytes(b"")


def a_truncated_document(place: Path) -> None:
    whole = (place / DOCUMENT).read_bytes()
    (place / DOCUMENT).write_bytes(whole[: len(whole) // 2])


def an_empty_document(place: Path) -> None:
    (place / DOCUMENT).write_bytes(b"")


def a_document_of_a_hundred_megabytes(place: Path) -> None:
    with open(place / DOCUMENT, "r+b") as file:
        file.truncate(100 << 20)


def a_message_of_ten_gigabytes(place: Path) -> None:
    with open(place / MESSAGE, "r+b") as file:
        file.truncate(10 << 30)


def a_document_nested_a_million_deep(place: Path) -> None:
    (place / DOCUMENT).write_bytes(b"[" * 1_000_000 + b"]" * 1_000_000)


def a_number_of_a_million_digits(place: Path) -> None:
    (place / DOCUMENT).write_bytes(b'{"format": ' + b"9" * 1_000_000 + b"}")


def a_list_instead_of_an_object(place: Path) -> None:
    (place / DOCUMENT).write_bytes(b"[]\n")


def not_text_at_all(place: Path) -> None:
    (place / DOCUMENT).write_bytes(bytes(range(256)) * 40)


def a_key_given_twice(place: Path) -> None:
    """Readers differ in which of two they take; the spelling check takes neither."""
    text = (place / DOCUMENT).read_bytes()
    (place / DOCUMENT).write_bytes(text.replace(b'"errors"', b'"errors": 0,\n    "errors"', 1))


def raw(place: Path, old: bytes, new: bytes) -> None:
    text = (place / DOCUMENT).read_bytes()
    assert text.count(old) >= 1
    (place / DOCUMENT).write_bytes(text.replace(old, new, 1))


def nan_as_a_bound(place: Path) -> None:
    bound = json.loads((place / DOCUMENT).read_bytes())["result"]["bound"]
    raw(place, f'"bound": {bound!r}'.encode(), b'"bound": NaN')


def infinity_as_a_count(place: Path) -> None:
    raw(place, b'"n": 1200', b'"n": 1e999')


def setter(*path: str, value: Any) -> Attack:
    def attack(place: Path) -> None:
        def change(values: dict[str, Any]) -> None:
            owner: Any = values
            for step in path[:-1]:
                owner = owner[step]
            owner[path[-1]] = value

        rewrite(place, change)

    attack.__name__ = f"{'.'.join(path)} = {str(value)[:40]}"
    return attack


def path_traversal(place: Path) -> None:
    """The message's name is fixed; a document that names a file says nothing that is read."""

    def change(values: dict[str, Any]) -> None:
        values["message"]["path"] = "../../etc/passwd"

    rewrite(place, change)


def a_device_in_place_of_the_message(place: Path) -> None:
    (place / MESSAGE).unlink()
    os.symlink("/dev/zero", place / MESSAGE)


def a_pipe_in_place_of_the_document(place: Path) -> None:
    (place / DOCUMENT).unlink()
    os.mkfifo(place / DOCUMENT)


def a_directory_in_place_of_the_message(place: Path) -> None:
    (place / MESSAGE).unlink()
    (place / MESSAGE).mkdir()


def architecture(name: str, **settings: Any) -> Attack:
    """A whole prior of a network too large to build, with every hash mended and a message to fit."""

    def attack(place: Path) -> None:
        values = json.loads((place / DOCUMENT).read_bytes())
        recipe = values["prior"]["recipe"] | {"architecture": name, "settings": settings}
        if name in ("transformer", "window"):
            recipe["scoring"] = {"loss": "token", "vocab_size": 11, "context": 1 << 20, "smoothing": None}
            recipe["scoring"] |= {"batch_size": 1 << 20, "precision": "float64"}
        segments = decode_message((place / MESSAGE).read_bytes()).segments
        from forethought.certify.codes import encode_message
        from forethought.core.config import digest

        def change(values: dict[str, Any]) -> None:
            values["prior"] = {"recipe": recipe, "choices": {}}
            values["chosen"] = {}
            values["prior_sha256"] = digest(values["prior"])

        rewrite(place, change, encode_message(segments, recipe))

    attack.__name__ = f"{name} of {settings}"[:90]
    return attack


ATTACKS: list[Attack] = [
    four_billion_symbols_in_few_bytes,
    more_symbols_than_the_recipe_has_numbers,
    no_symbols,
    sixty_thousand_levels,
    an_unknown_kind_of_codebook,
    a_stream_longer_than_the_file,
    a_recipe_of_four_gigabytes,
    sixty_five_thousand_segments,
    a_forged_stream,
    a_stream_with_free_bytes_behind,
    a_cheaper_codebook_than_the_recipe,
    uncharged_buffers,
    a_nan_in_the_codebook,
    a_truncated_message,
    an_empty_message,
    a_truncated_document,
    an_empty_document,
    a_document_of_a_hundred_megabytes,
    a_message_of_ten_gigabytes,
    a_document_nested_a_million_deep,
    a_number_of_a_million_digits,
    a_list_instead_of_an_object,
    not_text_at_all,
    a_key_given_twice,
    nan_as_a_bound,
    infinity_as_a_count,
    path_traversal,
    a_device_in_place_of_the_message,
    a_pipe_in_place_of_the_document,
    a_directory_in_place_of_the_message,
    setter("format", value=2),
    setter("format", value="1"),
    setter("extra", value=1),
    setter("bits", "choices", value=-2.0),
    setter("bits", "total", value=-1.0),
    setter("result", "errors", value=-5),
    setter("result", "errors", value=True),
    setter("result", "n", value=0),
    setter("result", "bounds", value={}),
    setter("result", "bound", value="0.01"),
    setter("result", "loss", value="token"),
    setter("delta", "delta", value=0.0),
    setter("delta", "delta", value=1.5),
    setter("delta", "spent_before", value=-0.04),
    setter("delta", "total", value=0.01),
    setter("data", "kind", value="tokens"),
    setter("data", "size", value=-1),
    setter("data", "sha256", value="../../etc/passwd"),
    setter("message", "bytes", value=1 << 60),
    setter("weights", "probes", value=[0.0]),
    setter("chosen", value={"codebook.levels": 9}),
    setter("chosen", value={"codebook.levels": -1}),
    setter("chosen", value={"codebook.levels": True}),
    setter("prior_sha256", value="0" * 64),
    architecture("mlp", num_inputs=1 << 20, num_classes=1 << 20, hidden=[]),
    architecture("conv", height=4096, width=4096, num_classes=3, channels=[1 << 20]),
    architecture("transformer", vocab_size=1 << 24, hidden_size=1 << 24, num_layers=4096, num_heads=2),
    architecture("transformer", vocab_size=11, hidden_size=2, num_layers=1, num_heads=1, max_positions=1 << 24),
    architecture("window", vocab_size=1 << 24, context=4096, embedding=1 << 20, hidden=1 << 20),
    architecture("given"),
    architecture("os.system", command="true"),
    architecture("mlp", num_inputs=12, num_classes=3, hidden=[0]),
]


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Examples]:
    certificate, data = linear_certificate()
    place = certificate.save(tmp_path_factory.mktemp("honest") / "made.cert")
    verify(place, data)
    return place, data


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_an_attack_is_refused_in_bounded_memory(attack: Attack, honest: tuple[Path, Examples], tmp_path: Path) -> None:
    source, data = honest
    place = tmp_path / "forged.cert"
    place.mkdir()
    for name in (DOCUMENT, MESSAGE):
        (place / name).write_bytes((source / name).read_bytes())
    attack(place)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError) as refused:
        verify(place, data)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < MAX_GROWTH_BYTES
    assert len(str(refused.value)) < 2_000, "a message for a person, not a copy of the file"


def test_the_message_is_refused_without_a_document_too() -> None:
    """The decoder alone holds against bytes from nowhere."""
    rng = np.random.default_rng(0)
    book = TableCodebook((0.0, 1.0, 2.0, 3.0, 4.0))
    plain = message_of(LINEAR, [Segment(rng.integers(0, 5, size=39), book)])
    for length in range(0, len(plain), 5):
        with pytest.raises(ArtefactError):
            decode_message(plain[:length])
    for _ in range(300):
        noise = bytearray(plain)
        for position in rng.integers(0, len(noise), size=4):
            noise[position] = int(rng.integers(0, 256))
        try:
            decode_message(bytes(noise), max_symbols=1_000)
        except ArtefactError:
            continue
    for spelling in (b'{"b":1,"a":2}', b'{"a": 1}', b'{"a":1,"a":1}', b'{"a":NaN}', b"[1]", b"\xff", b'{"a":1.0e0}'):
        forged = MAGIC + struct.pack("<I", len(spelling)) + spelling + plain[len(MAGIC) + 4 + len(recipe_text()) :]
        with pytest.raises(ArtefactError):
            decode_message(forged)


def test_a_count_is_refused_before_a_symbol_is_decoded() -> None:
    """A stream of one endlessly repeated symbol is short whatever its count: only the recipe bounds it."""
    plain = message_of(LINEAR, [Segment(np.zeros(5_000, dtype=np.int64), TableCodebook((0.0, 1.0, 2.0, 3.0, 4.0)))])
    assert len(plain) < 600
    with pytest.raises(ArtefactError, match="claims 5000 symbols; 39 are allowed"):
        decode_message(plain, max_symbols=39)
    with pytest.raises(ArtefactError, match="claims 5000 symbols; 39 are allowed"):
        decode_for(LINEAR, plain)


def test_a_message_for_another_recipe_or_with_other_segments_is_refused() -> None:
    book, symbols = TableCodebook((0.0, 1.0, 2.0, 3.0, 4.0)), np.arange(39) % 5
    decode_for(LINEAR, message_of(LINEAR, [Segment(symbols, book)]))
    other = dataclasses.replace(LINEAR, settings=LINEAR.settings | {"scale": 2.0})
    with pytest.raises(ArtefactError, match="recipe in the message"):
        decode_for(LINEAR, message_of(other, [Segment(symbols, book)]))
    with pytest.raises(ArtefactError, match="segments"):
        decode_for(LINEAR, message_of(LINEAR, [Segment(symbols[:20], book), Segment(symbols[20:], book)]))
    with pytest.raises(ArtefactError, match="grid of 5 levels"):
        decode_for(LINEAR, message_of(LINEAR, [Segment(symbols, GridCodebook(5, 0.5))]))
    with pytest.raises(ArtefactError, match="buffer"):
        decode_for(LINEAR, message_of(LINEAR, [Segment(symbols, book)], buffers=np.ones(2)))


def test_a_low_rank_update_of_a_thousand_times_the_network_is_refused() -> None:
    recipe = Recipe(
        architecture="window",
        settings={"vocab_size": 1 << 23, "context": 1, "embedding": 1, "hidden": 1},
        scoring=TokenScoring(vocab_size=1 << 23, context=1),
        subspace=SubspaceRecipe(dimension=10),
        lora=LoraRecipe(rank=4096),
    )
    with pytest.raises(ArtefactError, match="low-rank update"):
        plan_of(recipe)


def recipe_text() -> bytes:
    from forethought.core.config import to_dict

    return canonical_json(to_dict(LINEAR))


def test_a_link_in_place_of_the_directory_reads_what_it_points_to(
    honest: tuple[Path, Examples], tmp_path: Path
) -> None:
    link = tmp_path / "link.cert"
    os.symlink(honest[0], link)
    assert read_certificate(link) == read_certificate(honest[0])
