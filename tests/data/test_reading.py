"""Reading: formats, folders, and a table of everything that can be wrong with an input."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.core.errors import DataError
from forethought.data import ReadOptions, Tally, read_documents
from forethought.data.cutting import byte_parts, cut


def _texts(path: Path, **options: object) -> list[str]:
    return [document.text for document in read_documents([path], ReadOptions(**options))]  # type: ignore[arg-type]


def _parquet(path: Path, columns: dict[str, list[object]]) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=50)
    return path


def test_jsonl_plain_and_compressed_give_the_same_documents(tmp_path: Path) -> None:
    data = b'\xef\xbb\xbf{"text": "one\\u0000"}\n\n{"text": "zwei \\u00e4"}\r\n{"text": ""}\n{"text": "last"}'
    (tmp_path / "a.jsonl").write_bytes(data)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(data))
    tally = Tally()
    found = list(read_documents([tmp_path / "a.jsonl"], tally=tally))
    assert [(d.text, d.row) for d in found] == [("one\0", 1), ("zwei ä", 3), ("last", 5)]
    assert tally.skipped == {"empty document": 1}
    assert _texts(tmp_path / "a.jsonl.gz") == ["one\0", "zwei ä", "last"]


def test_parquet_rows_and_another_field(tmp_path: Path) -> None:
    path = _parquet(tmp_path / "a.parquet", {"body": [f"text {i}" for i in range(200)], "n": list(range(200))})
    found = list(read_documents([path], ReadOptions(text_field="body")))
    assert [d.text for d in found] == [f"text {i}" for i in range(200)]
    assert found[150].row == 151


def test_text_is_cut_at_paragraphs_and_nothing_is_lost(tmp_path: Path) -> None:
    text = "".join(f"paragraph {i} " + "word " * (i % 40) + "\n\n" for i in range(4000))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    pieces = _texts(tmp_path / "a.txt.gz", piece_length=2000)
    assert "".join(pieces) == text
    assert len(pieces) > 200
    assert max(map(len, pieces)) <= 2000
    assert all(piece.startswith("paragraph") for piece in pieces)


def test_text_separator(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one<|endoftext|>two\n<|endoftext|>\n<|endoftext|>three")
    assert _texts(tmp_path / "a.txt", document_separator="<|endoftext|>") == ["one", "two\n", "three"]


def test_recut_applies_to_every_format(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a b\n\n" * 1000}) + "\n")
    pieces = _texts(tmp_path / "a.jsonl", recut_length=500)
    assert len(pieces) == 10
    assert "".join(pieces) == "a b\n\n" * 1000


@settings(deadline=None, max_examples=60)
@given(st.text(alphabet=st.sampled_from("ab \n\ré\U0001f600"), max_size=400), st.integers(2, 60))
def test_cutting_loses_nothing(text: str, length: int) -> None:
    assert "".join(cut(text, length)) == text
    assert all(0 < len(piece) <= length for piece in cut(text, length))


@settings(deadline=None, max_examples=60)
@given(st.text(alphabet=st.sampled_from("ab \né\U0001f600"), max_size=400), st.integers(8, 60))
def test_byte_parts_lose_nothing_and_split_no_character(text: str, size: int) -> None:
    parts = list(byte_parts(text.encode(), size))
    assert b"".join(parts) == text.encode()
    assert "".join(part.decode() for part in parts) == text
    assert max(map(len, parts)) <= size


def test_folder_order_and_what_is_left_out(tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("secret")
    root = tmp_path / "corpus"
    (root / "b").mkdir(parents=True)
    (root / ".hidden").mkdir()
    (root / ".hidden" / "x.txt").write_text("hidden")
    (root / "b" / "z.py").write_text("print('z')")
    (root / "b" / "a.jsonl").write_text('{"text": "from jsonl"}\n')
    (root / "B.txt").write_text("capital")
    (root / "a.txt.gz").write_bytes(gzip.compress(b"compressed"))
    (root / ".dot.txt").write_text("hidden")
    (root / "image.png").write_bytes(b"\x89PNG\0\0\0")
    (root / "tar.gz").write_bytes(gzip.compress(b"x\0\0\0"))
    (root / "empty.py").write_text("")
    (root / "leaves.txt").symlink_to(outside)
    (root / "stays.txt").symlink_to(root / "B.txt")
    (root / "broken.txt").symlink_to(root / "nothing")
    (root / "loop").symlink_to(root)
    os.mkfifo(root / "pipe")
    tally = Tally()
    found = [d.text for d in read_documents([root], tally=tally)]
    assert found == ["capital", "compressed", "from jsonl", "print('z')", "capital"]
    assert tally.skipped == {
        "hidden file": 1,
        "hidden folder": 1,
        "linked folder": 1,
        "binary file": 2,
        "empty file": 1,
        "link that leaves the folder": 1,
        "broken link": 1,
        "special file": 1,
    }


def _write(name: str, data: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def _cut_parquet(folder: Path) -> Path:
    path = _parquet(folder / "cut.parquet", {"text": [f"text {i}" for i in range(500)]})
    path.write_bytes(path.read_bytes()[:-40])
    return path


def _holed_parquet(folder: Path) -> Path:
    path = folder / "holed.parquet"
    rows = pyarrow.table({"text": [os.urandom(16).hex() for _ in range(500)]})
    pyarrow.parquet.write_table(rows, path, row_group_size=50, compression="gzip", use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 - 200 : len(data) // 2] = bytes(200)
    path.write_bytes(data)
    return path


GOOD = b'{"text": "good"}\n'
NESTED = b'{"text": ' + b"[" * 200_000 + b"]" * 200_000 + b"}\n"

BAD = {
    "bad UTF-8 in JSONL": (_write("a.jsonl", GOOD + b'{"text": "\xff"}\n' + GOOD), "a.jsonl, line 2: not UTF-8", 2),
    "broken JSON": (_write("a.jsonl", GOOD * 2 + b'{"text": "x\n' + GOOD), "a.jsonl, line 3: not valid JSON", 3),
    "JSON but no object": (_write("a.jsonl", GOOD + b"[1]\n"), "a.jsonl, line 2: holds list", 1),
    "missing field": (_write("a.jsonl", GOOD + b'{"txt": "x", "b": 1}\n'), "a.jsonl, line 2: no field 'text'", 1),
    "wrong field type": (_write("a.jsonl", b'{"text": 7}\n' + GOOD), "a.jsonl, line 1: field 'text' holds int", 1),
    "null field": (_write("a.jsonl", b'{"text": null}\n' + GOOD), "line 1: field 'text' holds NoneType", 1),
    "lone surrogate": (_write("a.jsonl", GOOD + b'{"text": "\\ud800"}\n'), "a.jsonl, line 2: half a surrogate", 1),
    "nesting bomb": (_write("a.jsonl", GOOD + NESTED + GOOD), "a.jsonl, line 2: not valid JSON", 2),
    "number bomb": (_write("a.jsonl", GOOD + b'{"text": ' + b"9" * 9999 + b"}\n"), "a.jsonl, line 2: not valid", 1),
    "too long a line": (
        _write("a.jsonl", GOOD + b'{"text": "' + b"x" * 90_000 + b'"}\n' + GOOD),
        "a.jsonl, line 2: longer than max_document_bytes",
        2,
    ),
    "empty JSONL": (_write("a.jsonl", b""), "a.jsonl is empty", 0),
    "empty text": (_write("a.txt", b""), "a.txt is empty", 0),
    "binary text": (_write("a.txt", b"ab\0cd"), "a.txt is binary", 0),
    "bad UTF-8 in text": (_write("a.txt", b"line\n" * 200_000 + b"b\xe9d\n"), "a.txt, line 200001: not UTF-8", None),
    "character cut off": (_write("a.txt", b"one\ntwo \xe2\x82"), "a.txt, line 2: not UTF-8", None),
    "truncated gzip JSONL": (
        _write("a.jsonl.gz", gzip.compress(b"".join(b'{"text": "%d"}\n' % i for i in range(50_000)))[:-2000]),
        "a.jsonl.gz, after line",
        None,
    ),
    "truncated gzip text": (_write("a.txt.gz", gzip.compress(os.urandom(9000).hex().encode())[:-30]), "a.txt.gz", None),
    "no gzip at all": (_write("a.txt.gz", b"plain text"), "a.txt.gz: the file is damaged or cut short", 0),
    "JSON, not lines": (_write("a.json", b'[{"text": "x"}]'), "a.json: .json is not read; convert it to JSONL", 0),
    "truncated Parquet": (_cut_parquet, "cut.parquet, after row 0: damaged or cut short", 0),
    "holed Parquet": (_holed_parquet, "holed.parquet, after row", None),
    "no Parquet at all": (_write("a.parquet", b"PAR1 nonsense"), "a.parquet, after row 0: damaged", 0),
    "Parquet in gzip": (_write("a.parquet.gz", gzip.compress(b"PAR1")), "a.parquet.gz: Parquet compressed", 0),
    "Parquet without the column": (
        lambda folder: _parquet(folder / "a.parquet", {"texts": ["x"]}),
        "a.parquet: no field 'text'; its fields are 'texts'. Did you mean 'texts'?",
        0,
    ),
    "Parquet of numbers": (lambda folder: _parquet(folder / "a.parquet", {"text": [1]}), "column 'text' holds int", 0),
    "Parquet with a null": (
        lambda folder: _parquet(folder / "a.parquet", {"text": ["x", None, "y"]}),
        "a.parquet, row 2: field 'text' holds NoneType",
        2,
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_its_place_or_skipped_and_counted(name: str, tmp_path: Path) -> None:
    make, message, good_left = BAD[name]
    path = make(tmp_path)
    with pytest.raises(DataError) as caught:
        _texts(path, max_document_bytes=1 << 16 if "too long" in name else 64 << 20)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    tally = Tally()
    options = ReadOptions(on_error="skip", max_document_bytes=1 << 16 if "too long" in name else 64 << 20)
    left = list(read_documents([path], options, tally=tally))
    assert tally.skipped == {"unreadable": 1}
    assert message in tally.examples[0]
    if good_left is not None:
        assert len(left) == good_left


def test_the_longest_document_is_measured_in_bytes_wherever_it_ends(tmp_path: Path) -> None:
    tally, options = Tally(), ReadOptions(on_error="skip", max_document_bytes=1024, document_separator="|")
    (tmp_path / "a.txt").write_text("x" * 1024 + "|" + "y" * 1025 + "|" + "é" * 513 + "|" + "é" * 512, "utf-8")
    _parquet(tmp_path / "b.parquet", {"text": ["é" * 513, "é" * 512]})
    kept = [d.text for d in read_documents([tmp_path / "a.txt", tmp_path / "b.parquet"], options, tally=tally)]
    assert kept == ["x" * 1024, "é" * 512, "é" * 512]
    assert [text.split("/")[-1].split(":")[0] for text in tally.examples] == [
        "a.txt, document 2",
        "a.txt, document 3",
        "b.parquet, row 1",
    ]


def test_missing_source_and_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        _texts(tmp_path / "nowhere.txt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="holds no file"):
        _texts(tmp_path / "folder")


def _bomb(path: Path, head: bytes, mebibytes: int) -> None:
    with gzip.open(path, "wb", compresslevel=1) as out:
        out.write(head)
        for _ in range(mebibytes):
            out.write(b"0" * (1 << 20))


@pytest.mark.parametrize("name", ["bomb.jsonl.gz", "bomb.txt.gz"])
def test_gzip_bomb_is_stopped_in_bounded_memory(name: str, tmp_path: Path) -> None:
    import tracemalloc

    _bomb(tmp_path / name, b'{"text": "', 64)
    assert (tmp_path / name).stat().st_size < 1 << 20
    tracemalloc.start()
    with pytest.raises(DataError, match="max_document_bytes"):
        _texts(tmp_path / name, max_document_bytes=1 << 20, piece_length=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20
