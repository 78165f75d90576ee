"""Publishing, verifying, reading and sweeping."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.core import files, litter
from forethought.core.errors import ArtefactError, CheckpointError, ConfigError, RunExistsError, StorageError
from forethought.core.faults import fault, faults


def test_a_published_directory_holds_the_files_and_a_manifest_of_size_and_hash(tmp_path: Path) -> None:
    files.publish(tmp_path / "new" / "thing", {"a": b"alpha", "sub/b": lambda: b"", "c": bytes(3 << 20)})
    facts = files.verify(tmp_path / "new" / "thing")
    assert {name: entry["bytes"] for name, entry in facts.items()} == {"a": 5, "c": 3 << 20, "sub/b": 0}
    assert facts["a"]["sha256"] == "8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8"
    assert sorted(entry.name for entry in (tmp_path / "new").iterdir()) == ["thing"]


def test_an_error_in_the_block_leaves_nothing_behind(tmp_path: Path) -> None:
    def broken() -> bytes:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        files.publish(tmp_path / "thing", {"a": b"a", "b": broken})
    assert list(tmp_path.iterdir()) == []


def test_an_existing_target_is_refused_or_replaced_as_asked(tmp_path: Path) -> None:
    files.publish(tmp_path / "thing", {"a": b"1", "old": b"1"})
    with pytest.raises(RunExistsError, match="already exists; choose another name"):
        files.publish(tmp_path / "thing", {"a": b"2"})
    files.publish(tmp_path / "thing", {"a": b"2"}, replace=True)
    assert files.verify(tmp_path / "thing").keys() == {"a"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["thing"]


def test_make_directory_creates_every_missing_parent_and_names_a_file_in_the_way(tmp_path: Path) -> None:
    files.make_directory(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()
    files.make_directory(tmp_path / "a" / "b")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="could not create"):
        files.make_directory(tmp_path / "file" / "inside")


def test_replace_file_keeps_the_old_content_when_the_write_fails(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    files.write_json(path, {"loss": 1.0})

    def refuse(point: str) -> None:
        if point == "file.rename":
            raise OSError(28, "No space left on device")

    with faults(refuse), pytest.raises(StorageError, match=r"result\.json: No space left.*Free space"):
        files.write_json(path, {"loss": 2.0})
    assert files.read_json(path) == {"loss": 1.0}
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


def test_faults_are_announced_only_inside_the_block() -> None:
    seen: list[str] = []
    with faults(seen.append):
        fault("one")
    fault("two")
    assert seen == ["one"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "not valid JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "not valid JSON"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "not valid JSON"),
        (b"[1]", "holds list; a JSON object is expected"),
        (b'"text"', "holds str"),
        (b'{"a": "' + b"x" * 2_000_000 + b'"}', "more than 1048576 bytes"),
    ],
    ids=["empty", "cut", "encoding", "digits", "nested lists", "nested objects", "list", "text", "large"],
)
def test_read_json_refuses_what_is_no_bounded_json_object(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ArtefactError, match=complaint) as caught:
        files.read_json(tmp_path / "x.json", what="thing", limit=1 << 20)
    assert str(tmp_path / "x.json") in str(caught.value)
    assert len(str(caught.value)) < 500


def test_read_json_refuses_devices_pipes_directories_and_missing_files_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"{}")
    for name in ("pipe", "zero", "loop", "folder", "missing", "file/inside"):
        with pytest.raises(ArtefactError, match=name.partition("/")[0]):
            files.read_json(tmp_path / name, limit=1 << 16)


def test_json_keeps_every_text_also_a_file_name_that_is_no_utf8(tmp_path: Path) -> None:
    value = {"command": ["fit", os.fsdecode(b"corpus-\xff.txt"), "grüße \U0001f600 \u2028"]}
    files.write_json(tmp_path / "x.json", value)
    assert files.read_json(tmp_path / "x.json") == value
    (tmp_path / "x.json").read_text("utf-8")
    with pytest.raises(ValueError, match="JSON"):
        files.dump_json({"loss": float("nan")})


@settings(deadline=None, max_examples=300)
@given(st.one_of(st.text(max_size=20), st.lists(st.sampled_from(["..", ".", "a", "", "\\", "b\0"])).map("/".join)))
def test_a_plain_name_stays_inside_its_directory(name: str) -> None:
    root = "/root/inside"
    place = os.path.normpath(os.path.join(root, name))
    if files.is_plain_name(name):
        assert place.startswith(root + "/")
        assert "\0" not in name
        assert os.path.relpath(place, root) == name


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a\\b", "a\0b", "a/", ".", ".."]
)
def test_names_that_leave_the_directory_are_not_plain(name: str) -> None:
    assert not files.is_plain_name(name)


@pytest.mark.parametrize("name", ["a", "a/b.json", "step-00000001", "...", "ü"])
def test_ordinary_names_are_plain(name: str) -> None:
    assert files.is_plain_name(name)


def forge(directory: Path, content: Any) -> None:
    (directory / files.MANIFEST).write_bytes(content if isinstance(content, bytes) else files.dump_json(content))


@pytest.mark.parametrize(
    "entries",
    [
        {"../outside": {"bytes": 1, "sha256": "0" * 64}},
        {"/etc/passwd": {"bytes": 1, "sha256": "0" * 64}},
        {"a": {"bytes": 1}},
        {"a": {"bytes": "1", "sha256": "0"}},
        {"a": {"bytes": 1, "sha256": None}},
        {"a": 5},
        {"a": "text"},
    ],
)
def test_a_forged_manifest_is_refused_even_in_canonical_form(tmp_path: Path, entries: dict[str, Any]) -> None:
    files.publish(tmp_path / "thing", {"a": b"1"})
    if all(isinstance(facts, dict) for facts in entries.values()):
        forge(tmp_path / "thing", files._manifest_bytes(entries))
    else:
        forge(tmp_path / "thing", {"format": 1, "files": entries})
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
        files.verify(tmp_path / "thing")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"format": 1, "files": []}', b"[" * 100_000, bytes(5 << 20)])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    files.publish(tmp_path / "thing", {"a": b"1"})
    forge(tmp_path / "thing", content)
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
        files.verify(tmp_path / "thing")


def test_links_and_missing_files_are_refused(tmp_path: Path) -> None:
    files.publish(tmp_path / "thing", {"a": b"1", "b": b"2"})
    (tmp_path / "elsewhere").write_bytes(b"1")
    (tmp_path / "thing" / "a").unlink()
    with pytest.raises(CheckpointError, match=r"a is missing"):
        files.verify(tmp_path / "thing")
    (tmp_path / "thing" / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"a is missing \(or no regular file\)"):
        files.verify(tmp_path / "thing")
    (tmp_path / "thing" / files.MANIFEST).rename(tmp_path / "manifest")
    (tmp_path / "thing" / files.MANIFEST).symlink_to(tmp_path / "manifest")
    with pytest.raises(CheckpointError, match="never published whole"):
        files.verify(tmp_path / "thing")


def test_a_file_of_another_size_or_content_is_named(tmp_path: Path) -> None:
    files.publish(tmp_path / "thing", {"a": b"12"})
    (tmp_path / "thing" / "a").write_bytes(b"123")
    with pytest.raises(CheckpointError, match="a has 3 bytes where its manifest says 2"):
        files.verify(tmp_path / "thing")
    (tmp_path / "thing" / "a").write_bytes(b"13")
    with pytest.raises(CheckpointError, match="a is damaged: its SHA-256"):
        files.verify(tmp_path / "thing")


def test_sha256_file_names_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"could not read .*missing"):
        files.sha256_file(tmp_path / "missing")


def litter_name(name: str, *, pid: int, host: str | None = None, life: str = "0000", what: str = "tmp") -> str:
    return f".{name}.{what}-{pid}-{host or litter._host()}{life}{'0' * 8}"


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_the_sweep_clears_what_the_dead_left_and_nothing_else(tmp_path: Path) -> None:
    dead = dead_pid()
    gone = [litter_name("a", pid=dead), litter_name("b", pid=dead, what="old"), litter_name("c", pid=2**40)]
    stays = [litter_name("d", pid=os.getppid()), litter_name("e", pid=dead, host="zzzz"), ".b.tmp-1-x", "b", ".git"]
    for name in [*gone, *stays]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_bytes(b"x")
    (tmp_path / litter_name("file", pid=dead)).write_bytes(b"x")
    (tmp_path / litter_name("link", pid=dead)).symlink_to(tmp_path / "b")
    assert len(files.sweep(tmp_path)) == 5
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(stays)
    assert (tmp_path / "b" / "content").exists()
    assert files.sweep(tmp_path / "missing") == []


def test_the_sweep_judges_another_host_by_age(tmp_path: Path) -> None:
    entry = tmp_path / litter_name("a", pid=1, host="abcd" if litter._host() != "abcd" else "dcba")
    entry.mkdir()
    os.utime(entry, (0, 0))
    assert files.sweep(tmp_path) == [], "an old content is no old entry: it may just have been renamed aside"
    with mock.patch.object(litter.time, "time", return_value=time.time() + 23 * 3600):
        assert files.sweep(tmp_path) == []
    with mock.patch.object(litter.time, "time", return_value=time.time() + 25 * 3600):
        assert files.sweep(tmp_path) == [entry.name]


def test_the_sweep_knows_its_own_process_from_an_earlier_one_of_the_same_number(tmp_path: Path) -> None:
    earlier = litter_name("thing", pid=os.getpid(), life="ffff" if litter._LIFE != "ffff" else "0000")
    with files.staged(tmp_path / "thing") as staging:
        (tmp_path / earlier).mkdir()
        files.write_bytes(staging / "a", b"1")
        assert files.sweep(tmp_path) == [earlier]
    files.verify(tmp_path / "thing")


def test_the_sweep_never_takes_the_staging_of_a_living_writer_however_old(lives: Any, tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from forethought.core import files\n"
        "with files.staged(Path(sys.argv[1]) / 'slow') as staging:\n"
        "    print('ready', flush=True); sys.stdin.readline(); files.write_bytes(staging / 'a', b'1')\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        with mock.patch.object(litter.time, "time", return_value=time.time() + 10**7):
            assert files.sweep(tmp_path) == []
        child.communicate("go\n", timeout=60)
    assert child.returncode == 0
    files.verify(tmp_path / "slow")


def test_a_target_renamed_aside_by_a_crash_gets_its_name_back_unless_a_new_one_is_there(tmp_path: Path) -> None:
    dead = dead_pid()
    for name in ("one", "two"):
        files.publish(tmp_path / name, {"a": b"old"})
        (tmp_path / name).rename(tmp_path / litter_name(name, pid=dead, what="old"))
    files.publish(tmp_path / "two", {"a": b"new"})
    files.sweep(tmp_path)
    assert {name: (tmp_path / name / "a").read_bytes() for name in ("one", "two")} == {"one": b"old", "two": b"new"}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["one", "two"]


def test_the_manifest_is_plain_json_that_others_can_read(tmp_path: Path) -> None:
    files.publish(tmp_path / "thing", {"a": b"alpha"})
    manifest = json.loads((tmp_path / "thing" / files.MANIFEST).read_bytes())
    assert manifest["format"] == 1
    assert manifest["files"]["a"]["bytes"] == 5


def test_the_sweep_leaves_what_it_cannot_judge(tmp_path: Path) -> None:
    (tmp_path / litter_name("a", pid=4242)).mkdir()
    with mock.patch.object(litter.os, "kill", side_effect=PermissionError):
        assert files.sweep(tmp_path) == [], "the process lives, it belongs to somebody else"
    gone = tmp_path / litter_name("b", pid=1, host="abcd" if litter._host() != "abcd" else "dcba")
    with mock.patch.object(litter.Path, "iterdir", return_value=[gone]):
        assert files.sweep(tmp_path) == [], "another sweep was faster"


def test_a_sweep_that_another_one_overtakes_goes_on(tmp_path: Path) -> None:
    renamed, staging = litter.beside(tmp_path / "run", "old"), litter.beside(tmp_path / "run", "tmp")
    renamed.mkdir()
    staging.mkdir()
    overtaken = mock.patch.object(litter.os, "rename", side_effect=FileNotFoundError)
    with mock.patch.object(litter, "_LIFE", "0000"), overtaken:
        assert files.sweep(tmp_path) == [staging.name]


@pytest.mark.parametrize("name", ["../outside", "/absolute", "a/../../b", "manifest.json", ""])
def test_a_name_that_leads_out_or_is_the_manifests_is_not_published(name: str, tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be published"):
        files.publish(tmp_path / "target", {"fine": b"1", name: b"2"})
    assert list(tmp_path.iterdir()) == []
