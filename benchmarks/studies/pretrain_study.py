"""What the studies of pre-training share: passages of a text, stages that end once, and the result file."""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from forethought.core import files, rng
from forethought.core.environment import environment
from forethought.core.errors import ConfigError
from forethought.data.cutting import cut
from forethought.pretrain import ModelShape

RESULTS = Path(__file__).resolve().parents[1] / "results" / "studies"
PASSAGE, SHORTEST = 1200, 600  # characters


def passages(source: Path, out: Path, *, per_document: int) -> Path:
    """Write passages drawn from every document alike, in random order, as JSONL; what is there is kept."""
    if out.is_file():
        return out
    draw = rng.generator(0, "study.passages")
    found: list[str] = []
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        for line in lines:
            own = [piece.strip() for piece in cut(json.loads(line)["text"], PASSAGE) if len(piece) > SHORTEST]
            found += [own[number] for number in draw.permutation(len(own))[:per_document]]
    text = "\n".join(json.dumps({"text": found[number]}) for number in draw.permutation(len(found)))
    files.make_directory(out.parent)
    files.write_bytes(out, text.encode() + b"\n")
    return out


def shape(width: int, layers: int) -> ModelShape:
    """Return a shape with heads of at most 64 and a head of its own for the output."""
    return ModelShape(hidden_size=width, num_layers=layers, num_heads=max(1, width // 64), tie_embeddings=False)


def spent(work: Path, name: str) -> float:
    """Return the processor seconds of a stage so far, all attempts together."""
    path = work / f"{name}.seconds.json"
    return float(files.read_json(path, what="processor seconds")["cpu_seconds"]) if path.is_file() else 0.0


def timed(work: Path, name: str, stage: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], float]:
    """Run a stage unless it ended before; return its result and its processor seconds, earlier attempts included."""
    kept, before = work / f"{name}.json", spent(work, name)
    if kept.is_file():
        return files.read_json(kept, what="stage of the study"), before
    files.make_directory(work)
    began = time.process_time()
    try:
        result = stage()
        files.write_json(kept, result)
        return result, before + time.process_time() - began
    finally:
        seconds = round(before + time.process_time() - began, 1)
        files.write_json(work / f"{name}.seconds.json", {"cpu_seconds": seconds})


def write_study(
    name: str,
    given: argparse.Namespace,
    *,
    seeds: Sequence[int],
    cpu_seconds: float,
    settings: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
) -> Path:
    """Write the study's result where --out says, or among the committed ones; a quick run needs --out.

    Raises:
        ConfigError: a quick run without --out.
    """
    if given.quick and given.out is None:
        raise ConfigError("a quick run is no result to keep; give --out FILE")
    facts = environment()
    record = {
        "study": name,
        "date": datetime.now(UTC).date().isoformat(),
        "command": f"python benchmarks/studies/{name}.py --data DIR --work DIR",
        "machine": {"hardware": facts["hardware"], "threads": facts["threads"], "revision": facts["git"]},
        "versions": {"python": facts["python"], **facts["packages"]},
        "seeds": list(seeds),
        "cpu_seconds": round(cpu_seconds, 1),
        "settings": dict(settings),
        "rows": list(rows),
        "summary": dict(summary),
    }
    out = given.out or RESULTS / f"{name}.json"
    files.make_directory(out.parent)
    files.write_bytes(out, json.dumps(record, indent=1).encode() + b"\n")
    sys.stdout.write(json.dumps(record["summary"], indent=1)[:6000] + "\n")
    return out
