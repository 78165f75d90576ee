"""Write docs/reference from the code: the command line from its --help, the public names from their signatures.

Usage: python scripts/write_reference.py [--check]     (--check writes nothing and fails where a page is out of date)
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import json
import os
import re
import sys
from collections.abc import Container, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "reference"
DRAWINGS = "drawings"
ROOMS = (
    "",
    ".core",
    ".stats",
    ".nn",
    ".data",
    ".diffusion",
    ".lookahead",
    ".train",
    ".plan",
    ".envs",
    ".decode",
    ".serve",
    ".pretrain",
    ".certify",
    ".world",
    ".control",
)
# core has no flat face of its own: each module is one idea, imported by its name.
CORE = (
    "artefact",
    "checkpoint",
    "config",
    "environment",
    "errors",
    "extras",
    "faults",
    "files",
    "progress",
    "rng",
    "run",
)
NOTE = "<!-- written by scripts/write_reference.py; `make docs` renews it -->"
BENCHMARKS_LEAD = (
    "Every table is the committed JSON of `benchmarks/results`. Ratios are of two arms measured in turn in one "
    "process, medians with 95 % intervals (`low`, `high`); of nested results the ratios are shown. `make bench` runs "
    "all; `--quick` runs one in under 50 s and writes nothing. The drawings are made of the same files."
)
STUDIES_LEAD = (
    "Experiments, no timings: the pages of the capabilities show what came out, every row and interval is in the JSON. "
    "CPU-seconds are those of one thread, trainings that another study shares left out."
)
# Python versions word the headings of argparse and the addresses of defaults differently.
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def command_line() -> str:
    """Return the page of the command line: the overview and the help of every verb."""
    from forethought.app.cli import VERBS, overview

    parts = ["# Command line", "", NOTE, "", "```text", overview().rstrip(), "```"]
    for verb in [form for name in VERBS for form in (name, *FORMS.get(name, ()))]:
        parts += ["", f"## {verb}", "", "```text", help_of(verb), "```"]
    return "\n".join(parts) + "\n"


def help_of(verb: str) -> str:
    """Return what `forethought VERB --help` prints at 100 columns, without colours."""
    from forethought.app.cli import main

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*verb.split(), "--help"])
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())


def public_names() -> str:
    """Return the page of public names: for each its signature and the first sentence of its docstring."""
    parts = ["# Public names", "", NOTE]
    for room in ROOMS:
        module = importlib.import_module(f"forethought{room}")
        faces = [importlib.import_module(f"forethought.core.{name}") for name in CORE] if room == ".core" else [module]
        for face in faces:
            parts += ["", f"## {face.__name__}", "", first_sentence(face)]
            for name in names_of(face):
                parts += ["", f"### {face.__name__}.{name}", "", *described(name, getattr(face, name))]
    return "\n".join(parts) + "\n"


# Verbs that have another set of flags under one of them.
FORMS = {"pretrain distil": ("pretrain distil --from-run RUN",)}
# No figure of these stands anywhere; a full run writes its JSON, and its name goes from here.
PREPARED = (
    "gpu/control",
    "gpu/decode",
    "gpu/pretrain",
    "gpu/world",
)


def benchmarks(drawn: Container[str]) -> str:
    """Return the page of committed results: what was measured, on what, by which command, with its drawing."""
    parts = ["# Benchmarks", "", NOTE, "", BENCHMARKS_LEAD]
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        record = json.loads(path.read_text())
        script = (ROOT / "benchmarks" / f"{path.stem}.py").read_text()
        lead = ast.get_docstring(ast.parse(script)) or ""
        hardware, versions = record["hardware"], record["versions"]
        parts += ["", f"## {path.stem}", "", lead, "", "| figure | value |", "|---|---|"]
        parts += [f"| {name.replace('_', ' ')} | {_figure(value)} |" for name, value in _leaves(record["figures"])]
        parts += [
            *_drawn(path.stem, drawn),
            "",
            f"`{record['command']}` on {record['date']}: {hardware['processor']}, {hardware['cores']} cores, "
            f"{hardware['memory_bytes'] / 2**30:.0f} GiB, Python {versions['python']}, torch {versions['torch']}, "
            f"revision {str(record['revision']['revision'])[:12]}"
            f"{' with local changes' if record['revision']['dirty'] else ''}.",
        ]
    parts += ["", "## Prepared, not yet run", ""]
    parts += [f"- `benchmarks/{name}.py`: {_lead(name)}" for name in PREPARED]
    parts += ["", "## Studies", "", STUDIES_LEAD, ""]
    for path in sorted((ROOT / "benchmarks" / "results" / "studies").glob("*.json")):
        record = json.loads(path.read_text())
        seeds = f"{len(record['seeds'])} seeds, " if record["seeds"] else ""
        parts += [
            f"### {path.stem}",
            "",
            f"{_lead(f'studies/{path.stem}')} `{record['command']}`, {seeds}{record['cpu_seconds']:.0f} CPU-seconds, "
            f"`studies/{path.stem}.json`.",
            *_drawn(f"studies/{path.stem}", drawn),
            "",
        ]
    return "\n".join(parts)


def _drawn(name: str, drawn: Container[str]) -> list[str]:
    return ["", f"![{name}]({DRAWINGS}/{_file(name)})"] if name in drawn else ["", "Nothing in it could be drawn."]


def _file(name: str) -> str:
    return f"{name.replace('/', '-')}.svg"


def _leaves(figures: Mapping[str, object], name: str = "") -> list[tuple[str, object]]:
    """Plain figures as they are; of nested ones the ratios, with their intervals: the rest is in the JSON."""
    found: list[tuple[str, object]] = []
    for key, value in figures.items():
        if not isinstance(value, Mapping):
            found += [] if name else [(key, value)]
        elif {"ratio", "low", "high"} <= value.keys():
            found.append((f"{name} {key}".strip(), f"{value['ratio']:.3g} [{value['low']:.3g}, {value['high']:.3g}]"))
        elif not name and all(isinstance(each, int | float) for each in value.values()):
            found.append((key, ", ".join(f"{each} {_figure(of_it)}" for each, of_it in value.items())))
        else:
            found += _leaves(value, f"{name} {key}".strip())
    return found


def _lead(name: str) -> str:
    text = ast.get_docstring(ast.parse((ROOT / "benchmarks" / f"{name}.py").read_text())) or ""
    return " ".join(text.split("\n\n")[0].split())


def _figure(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)


def names_of(module: object) -> list[str]:
    """Return a module's public names: its __all__, else what it defines itself."""
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return sorted(listed)
    own = getattr(module, "__name__", "")
    return sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == own
    )


def described(name: str, value: object) -> list[str]:
    """Return the lines that describe one public name."""
    if inspect.isclass(value) or inspect.isroutine(value):
        try:
            signature = _ADDRESS.sub("", str(inspect.signature(value)))
        except ValueError:
            signature = "(...)"
        return ["```text", f"{name}{signature}", "```", "", first_sentence(value)]
    if isinstance(value, dict):
        return [f"A table with the entries {', '.join(f'`{key}`' for key in sorted(map(str, value)))}."]
    if isinstance(value, str | int | float | tuple):
        return [f"`{value!r}`"] if name != "__version__" else ["The version of the library."]
    return [f"A {type(value).__name__}."]


def first_sentence(value: object) -> str:
    """Return the first paragraph of a docstring on one line."""
    text = inspect.getdoc(value) or ""
    return " ".join(text.partition("\n\n")[0].split())


def main() -> int:
    """Write the pages, or with --check compare them, and return the exit status."""
    os.environ |= {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    # As a program this file knows its own folder only, as a module of the tests the repository.
    sys.path.insert(0, str(ROOT))
    from scripts.readme_figures import with_figures
    from scripts.result_charts import all_charts

    drawn = all_charts(ROOT / "benchmarks" / "results")
    pages = {"cli.md": command_line(), "api.md": public_names(), "benchmarks.md": benchmarks(drawn)}
    pages |= {f"{DRAWINGS}/{_file(name)}": text for name, text in drawn.items()}
    readme = ROOT / "README.md"
    pages["../../README.md"] = with_figures(readme.read_text(), ROOT / "benchmarks" / "results")
    stale = [name for name, text in pages.items() if not _same(PAGES / name, text)]
    if "--check" in sys.argv:
        for name in stale:
            print(f"docs/reference/{name} is out of date; run: make docs")
        return 1 if stale else 0
    (PAGES / DRAWINGS).mkdir(parents=True, exist_ok=True)
    for old in (PAGES / DRAWINGS).glob("*.svg"):
        if f"{DRAWINGS}/{old.name}" not in pages:
            old.unlink()
    for name, text in pages.items():
        (PAGES / name).write_text(text)
    return 0


def _same(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text() == text


if __name__ == "__main__":
    sys.exit(main())
