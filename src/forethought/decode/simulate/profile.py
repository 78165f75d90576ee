"""Profiles: what a machine and a pair of models are like, as JSON, given with the library or measured."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from forethought.core import files
from forethought.core.config import config, from_dict
from forethought.core.errors import ArtefactError, unknown_name
from forethought.decode.drafter.foresight import FanOut
from forethought.decode.planning.model_of_speed import CostCurves, Fallback, Method, Plan
from forethought.decode.simulate.behaviour import Behaviour

FORMAT = 1


@config
class FixedPlan:
    """A plan of a profile; the fields are those of `Plan`."""

    num_speculative_tokens: Annotated[int, Field(ge=1, le=32)]
    budget: Annotated[int, Field(ge=0, le=256)] = 0
    fan_out: FanOut = "empirical"
    fallback: Fallback = "draft"
    jit_length: Annotated[int, Field(ge=0, le=32)] = 0

    def plan(self, method: Method) -> Plan:
        """Return it as the plan of a method."""
        return Plan(method, self.num_speculative_tokens, self.budget, self.fan_out, self.fallback, self.jit_length)


@config
class Profile:
    """A machine and a pair of models: what passes cost, and how verdicts fall on each data set.

    `classic` and `ssd` are the plans of the table. `published` has tokens a second of {data set: {method: ...}} that
    somebody else measured, `provenance` says who and how, `note` where the profile's own figures come from.

    Raises:
        ConfigError: a field is unknown or out of range.
    """

    name: str
    note: str
    costs: CostCurves
    datasets: Annotated[dict[str, Behaviour], Field(min_length=1)]
    classic: FixedPlan
    ssd: FixedPlan
    published: dict[str, dict[str, float]] = Field(default_factory=dict)
    provenance: str = ""
    prompt_tokens: Annotated[int, Field(ge=2)] = 128
    output_tokens: Annotated[int, Field(ge=8)] = 512
    jitter: Annotated[float, Field(ge=0.0, le=2.0)] = 0.0
    format: int = FORMAT


def profile_names() -> list[str]:
    """Return the names of the profiles that come with the library."""
    folder = resources.files("forethought.decode.simulate") / "profiles"
    return sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))


def load_profile(name: str | Path) -> Profile:
    """Return a profile of the library by name, or the one in a JSON file.

    Raises:
        ConfigError: no profile and no file of that name, or a field does not fit.
        ArtefactError: the file is not JSON, or of another format.
    """
    if str(name) in profile_names():
        found = resources.files("forethought.decode.simulate") / "profiles" / f"{name}.json"
        with resources.as_file(found) as path:
            values = files.read_json(path, what="profile")
    elif Path(name).is_file():
        values = files.read_json(name, what="profile")
    else:
        raise unknown_name("profile", str(name), profile_names())
    return profile_from(values, source=f"the profile {name}")


def profile_from(values: dict[str, Any], *, source: str) -> Profile:
    """Build a profile from JSON values.

    Raises:
        ConfigError: a field does not fit.
        ArtefactError: it is of another format.
    """
    if values.get("format") != FORMAT:
        raise ArtefactError(f"{source} has format {values.get('format')!r}; this version reads format {FORMAT}")
    return from_dict(Profile, values, source=source)
