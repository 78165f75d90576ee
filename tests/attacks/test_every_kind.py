"""Every attack of the list on every kind of artefact: refused by name, quickly, in little memory, touching nothing.

The attacker mends every hash that he can: the manifest always fits the files, so that what stands behind it is tested.
`README.md` beside this file says where the attacks on single rooms are.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forethought.core import files
from forethought.core.artefact import LOADERS
from tests.attacks.artefacts import build_all

PICKLE = b"cos\nsystem\n(S'touch ran'\ntR."
# What each kind cannot be opened without, besides its artefact.json.
DESCRIPTIONS = {
    "control-agent": "agent.json",
    "control-model": "model.json",
    "corpus": "corpus.json",
    "episodes": "episodes.json",
    "language-model": "config.json",
    "run": "config.json",
    "world-model": "world.json",
}
Attack = Callable[[Path, str], None]


def mended(directory: Path) -> None:
    """Write the manifest that fits what the directory now holds, where it has one."""
    if (directory / files.MANIFEST).is_file():
        names = [path for path in directory.rglob("*") if path.is_file() and path != directory / files.MANIFEST]
        facts = {
            str(path.relative_to(directory)): {"bytes": path.stat().st_size, "sha256": files.sha256_file(path)}
            for path in names
        }
        (directory / files.MANIFEST).write_bytes(files._manifest_bytes(facts))


def tensors(directory: Path) -> Path:
    return sorted(directory.rglob("*.safetensors"))[0]


def pickled_weights(directory: Path, kind: str) -> None:
    tensors(directory).write_bytes(PICKLE)


def endless_header(directory: Path, kind: str) -> None:
    tensors(directory).write_bytes(struct.pack("<Q", 2**63) + b"{}")


def terabytes_in_a_header(directory: Path, kind: str) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}).encode()
    tensors(directory).write_bytes(struct.pack("<Q", len(header)) + header + b"0" * 64)


def nested_json(directory: Path, kind: str) -> None:
    (directory / DESCRIPTIONS[kind]).write_bytes(b'{"a":' * 100_000 + b"1" + b"}" * 100_000)


def a_list_for_an_object(directory: Path, kind: str) -> None:
    (directory / DESCRIPTIONS[kind]).write_bytes(b"[1, 2]")


def much_white_space(directory: Path, kind: str) -> None:
    with open(directory / DESCRIPTIONS[kind], "r+b") as out:
        out.truncate(128 << 20)  # sparse: no room on the disk, and twice what may be taken in memory


def a_class_to_build(directory: Path, kind: str) -> None:
    """Every word names code, and keys are there that other libraries build objects by."""
    path = directory / DESCRIPTIONS[kind]
    words = {name: "os:system" if isinstance(value, str) else value for name, value in _read(path).items()}
    code = {"_target_": "os.system", "args": ["touch ran"], "auto_map": {"AutoModel": "ran.Model"}}
    path.write_text(json.dumps(words | code))


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def numbers_beyond_sense(directory: Path, kind: str) -> None:
    path = directory / DESCRIPTIONS[kind]
    path.write_text(json.dumps(_swollen(_read(path))))


def _swollen(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _swollen(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_swollen(each) for each in value]
    return 2**62 if isinstance(value, int) and not isinstance(value, bool) and value > 1 else value


def a_link_out(directory: Path, kind: str) -> None:
    path = directory / DESCRIPTIONS[kind]
    outside = directory.parent / f"outside-{directory.name}.json"
    shutil.copy(path, outside)
    path.unlink()
    path.symlink_to(outside)


def a_pipe(directory: Path, kind: str) -> None:
    path = directory / DESCRIPTIONS[kind]
    path.unlink()
    os.mkfifo(path)


def a_kind_that_names_code(directory: Path, kind: str) -> None:
    (directory / "artefact.json").write_text(json.dumps({"format": 1, "kind": "os:system"}))


ALWAYS: list[Attack] = [nested_json, a_list_for_an_object, much_white_space, a_pipe, a_kind_that_names_code]
WITH_TENSORS: list[Attack] = [pickled_weights, endless_header, terabytes_in_a_header]
TENSORS = ("control-agent", "control-model", "language-model", "world-model")
# These open, and nothing comes of what was planted, which is what is held: keys and words that nobody reads, the config
# of a run as plain values, and the settings of an agent, whose counts cost nothing before it plans.
MAY_OPEN = {
    ("run", "numbers_beyond_sense"),
    ("control-agent", "numbers_beyond_sense"),
    *((kind, "a_class_to_build") for kind in DESCRIPTIONS),
}
CASES = [
    (kind, attack)
    for kind in sorted(LOADERS)
    for attack in [
        *ALWAYS,
        *(WITH_TENSORS if kind in TENSORS else []),
        a_class_to_build,
        numbers_beyond_sense,
        a_link_out,
    ]
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    """Attack a copy of each artefact in each way and open all of them in one process of its own."""
    place = tmp_path_factory.mktemp("attacks")
    good = build_all(place / "good")
    names: dict[tuple[str, str], str] = {}
    for kind, attack in CASES:
        victim = place / f"{kind}.{attack.__name__}"
        shutil.copytree(good[kind], victim)
        if attack is a_pipe:
            attack(victim, kind)
        else:
            attack(victim, kind)
            mended(victim)
        names[kind, attack.__name__] = str(victim)
    wanted = place / "wanted.json"
    wanted.write_text(json.dumps({"warm": [str(path) for path in good.values()], "open": list(names.values())}))
    command = [sys.executable, str(Path(__file__).parent / "opener.py"), str(wanted)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=place, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not list(place.rglob("ran")), "code from a file ran"
    return dict(zip(names, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize(("kind", "attack"), [(kind, attack.__name__) for kind, attack in CASES])
def test_an_attack_is_refused(kind: str, attack: str, outcomes: dict[tuple[str, str], dict[str, Any]]) -> None:
    found = outcomes[kind, attack]
    assert found["events"] == []
    assert not found["error"].startswith("unnamed"), (found["error"], found["message"])
    assert found["error"] or (kind, attack) in MAY_OPEN
    assert found["megabytes"] < 64
    assert found["seconds"] < 5, "a second is asked for, and most take milliseconds; the machine may be busy"
    assert len(found["message"]) < 1500


def test_all_kinds_are_attacked() -> None:
    assert set(DESCRIPTIONS) == set(LOADERS) == {kind for kind, _ in CASES}


def test_the_watch_sees_what_it_must(tmp_path: Path) -> None:
    """An opener that runs what a file says, follows a link out and allocates what a header claims is found out."""
    (tmp_path / "artefact.json").write_text("{}")
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import opener, os, forethought\n"
        "def careless(directory):\n"
        "    eval('1 + 1'); open('/etc/hostname').close(); open(os.path.join(directory, 'new'), 'w').close()\n"
        "    raise KeyError('x')\n"
        "forethought.load = careless\n"
        "print(opener.json.dumps(opener.tried(opener.Watch(), opener.Path(sys.argv[2]))))"
    )
    command = [sys.executable, "-c", program, str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert [event.split()[0] for event in found["events"]] == ["compile", "exec", "open", "open"]
    assert found["error"] == "unnamed KeyError"
