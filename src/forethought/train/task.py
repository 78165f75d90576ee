"""A task that can run anywhere: a function of this library by name, JSON settings in, a run directory out.

A task is data (it may come from a recipe, a file or another machine), so its name may only choose among the functions
that an allowed package defines: otherwise "shutil:rmtree" would be a task too, and settings would be code.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forethought.core import files
from forethought.core.config import digest
from forethought.core.errors import ArtefactError, ConfigError, ForethoughtError, InterruptedRunError, StorageError
from forethought.core.run import RESULT

DONE = "done.json"
PACKAGE = "forethought"
_TASK = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z]\w*", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_MESSAGE_LIMIT = 4000

TaskFunction = Callable[[Path, dict[str, Any]], object]


@dataclass(frozen=True)
class Job:
    """One task with its settings and its place; `allow` lists the packages that may define the function."""

    name: str
    task: str
    settings: dict[str, Any]
    directory: str
    log: str
    allow: tuple[str, ...]

    def to_json(self) -> str:
        """Return the job as one line of JSON."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Job:
        """Return the job that `to_json` wrote."""
        fields = json.loads(line)
        return cls(**{**fields, "allow": tuple(fields["allow"])})

    def finished(self) -> bool:
        """Say whether this job was done before: its marker and its result are there and belong to it.

        Raises:
            ConfigError: the directory was finished with another task or other settings.
        """
        directory = Path(self.directory)
        if not (directory / DONE).is_file() or not (directory / RESULT).is_file():
            return False
        try:
            marker = files.read_json(directory / DONE, what="task marker")
            files.read_json(directory / RESULT, what="result")
        except ArtefactError:
            return False
        if marker.get("identity") != self._identity():
            raise ConfigError(
                f"{directory} was finished with another task or other settings; give another name or root, or remove it"
            )
        return marker.get("result") == files.sha256_file(directory / RESULT)

    def finish(self) -> None:
        """Mark the job as done.

        Raises:
            ArtefactError: the task wrote no valid result.json.
        """
        directory = Path(self.directory)
        files.read_json(directory / RESULT, what="result")
        marker = {"task": self.task, "identity": self._identity(), "result": files.sha256_file(directory / RESULT)}
        files.write_json(directory / DONE, marker)

    def _identity(self) -> str:
        return digest({"task": self.task, "settings": self.settings})


@dataclass(frozen=True)
class Report:
    """How an attempt ended: done, or an error and whether another attempt could end otherwise."""

    error: str | None = None
    retry: bool = False

    def to_json(self) -> str:
        """Return the report as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Report:
        """Return the report that `to_json` wrote."""
        return cls(**json.loads(line))


def plan(
    task: str, settings: Sequence[Mapping[str, Any]], *, root: Path, allow: Sequence[str] = (PACKAGE,)
) -> list[Job]:
    """Return one job a setting, in order, named by the key "name" or by a digest of task and settings.

    Raises:
        ConfigError: the task lies outside the allowed packages, the settings are not plain JSON, or a name is unsafe or
            given twice.
    """
    check_name(task, allow)
    jobs: list[Job] = []
    seen: dict[str, int] = {}
    for index, setting in enumerate(settings):
        values = _plain(setting, index)
        name = values.get("name") or f"{task.rpartition(':')[2]}-{digest({'task': task, 'settings': values})[:12]}"
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name.endswith(".log"):
            raise ConfigError(
                f"settings {index} name the run {name!r}; use up to 100 letters, digits, '.', '_' and '-', "
                "and no .log at the end, which is the ending of the logs"
            )
        if name in seen:
            raise ConfigError(
                f"settings {seen[name]} and {index} both name the run {name!r}; give each its own name or seed"
            )
        seen[name] = index
        jobs.append(Job(name, task, values, str(root / name), str(root / f"{name}.log"), tuple(allow)))
    return jobs


def check_name(task: str, allow: Sequence[str]) -> None:
    """Check that a task is named "package.module:function" and lies inside an allowed package.

    Raises:
        ConfigError: it does not.
    """
    module = task.partition(":")[0]
    if not _TASK.fullmatch(task) or not _inside(module, allow):
        raise ConfigError(
            f"task {task!r} is not allowed; give 'package.module:function' inside {' or '.join(allow)}, "
            "a public function of (run directory, settings)"
        )


def resolve(task: str, allow: Sequence[str]) -> TaskFunction:
    """Return the function that a task names; it has to be defined in an allowed package, not merely imported there.

    Raises:
        ConfigError: there is no such module or function, or it is not allowed.
    """
    check_name(task, allow)
    module_name, _, name = task.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(f"task {task!r}: there is no module {error.name!r}; correct the name") from error
    function = getattr(module, name, None)
    if not inspect.isfunction(function) or not _inside(function.__module__, allow):
        raise ConfigError(f"task {task!r}: {module_name} defines no function {name!r} itself; correct the name")
    return function


def perform(job: Job) -> Report:
    """Run a job in this process and mark it as done; an error that a crash would not explain becomes a report.

    A deterministic error (bad input, a loss that is not finite) is final; a full disk or an interruption is worth
    another attempt. An exception from outside the library's tree passes through: it counts as a crash.
    """
    try:
        resolve(job.task, job.allow)(Path(job.directory), dict(job.settings))
        job.finish()
    except ForethoughtError as error:
        retry = isinstance(error, StorageError | InterruptedRunError)
        return Report(f"{type(error).__name__}: {error}"[:_MESSAGE_LIMIT], retry)
    return Report()


def _plain(setting: Mapping[str, Any], index: int) -> dict[str, Any]:
    try:
        values = json.loads(json.dumps(dict(setting), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"settings {index} are not plain JSON ({error}); give numbers, texts, lists, maps") from error
    if values != dict(setting):
        raise ConfigError(f"settings {index} do not survive JSON; give lists for tuples and texts for keys")
    return values


def _inside(module: str, allow: Sequence[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in allow)
