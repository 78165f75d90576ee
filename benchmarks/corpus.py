"""Preparing 100 MB of text: seconds, megabytes a second and the peak memory of the whole process tree.

The text is real where the shared test data stands beside the checkout (novels and children's books, gzip-compressed
JSONL), else the standard library repeated with its words varied, so that copies are no duplicates. The preparation runs
in a child process; its memory and that of its descendants is sampled, and the kernel's own high-water mark is read too.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from forethought.data import CorpusConfig, prepare_corpus
from forethought.data.stdlib import stdlib_files
from harness import run_benchmark

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared" / "data"
REAL = ("text_general/novels100.jsonl.gz", "text_general/clic_chilit.jsonl.gz", "text_small/tinyshakespeare.txt.gz")
FULL_BYTES, QUICK_BYTES = 100_000_000, 10_000_000
VOCAB_SIZE = 8192
SAMPLE_SECONDS = 0.02
MAX_SECONDS, MAX_MEBIBYTES = 90.0, 1024.0
_WORD = re.compile(r"[A-Za-z_]{4,}")


def benchmark(quick: bool) -> dict[str, object]:
    """Prepare a corpus in a child process and return the figures."""
    size = QUICK_BYTES if quick else FULL_BYTES
    with tempfile.TemporaryDirectory() as folder:
        sources, text = _sources(Path(folder), size)
        command = [sys.executable, __file__, "--prepare", str(Path(folder) / "out"), str(size), *sources]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        peak = _peak_of_tree(child)
        output = child.communicate()[0]
    if child.returncode:
        raise SystemExit(f"the preparation failed with status {child.returncode}")
    figures = json.loads(output)
    peak = max(peak, figures.pop("peak_rss_mib"))
    megabytes = figures["megabytes"]
    within = figures["seconds"] <= MAX_SECONDS and peak <= MAX_MEBIBYTES
    return {
        "text": text,
        **figures,
        "megabytes_per_second": round(megabytes / figures["seconds"], 3),
        "megabytes_per_cpu_second": round(megabytes / figures["cpu_seconds"], 3),
        "peak_rss_mib": round(peak, 1),
        "within_limits": within,
    }


def prepare(out: str, size: int, sources: list[str]) -> dict[str, object]:
    """Prepare the corpus in this process and return times a stage, tokens and the kernel's high-water mark."""
    stages: dict[str, float] = {}
    last = ["start", time.perf_counter()]

    def note(stage: str, done: int, total: int | None) -> None:
        now = time.perf_counter()
        name = f"seconds_{str(last[0]).replace(' ', '_')}"
        stages[name] = stages.get(name, 0.0) + now - float(last[1])
        last[:] = [stage, now]

    started, cpu = time.perf_counter(), time.process_time()
    corpus = prepare_corpus(sources, out, CorpusConfig(max_bytes=size, vocab_size=VOCAB_SIZE), note)
    note("end", 0, None)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "megabytes": round(corpus.report["bytes"] / 1e6, 3),
        "documents": corpus.report["documents"],
        "tokens": corpus.report["tokens"],
        "bytes_per_token": corpus.report["bytes_per_token"],
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        **{name: round(value, 2) for name, value in stages.items()},
    }


def _sources(folder: Path, size: int) -> tuple[list[str], str]:
    real = [SHARED / name for name in REAL]
    if all(path.is_file() for path in real):
        return [str(path) for path in real], "novels100 + clic_chilit + tinyshakespeare"
    path = folder / "varied.jsonl"
    written, copy = 0, 0
    with open(path, "w", encoding="utf-8") as out:
        while written < size:
            for source in stdlib_files():
                text = source.path.read_text(encoding="utf-8", errors="replace")
                text = _varied(text, copy)
                out.write(json.dumps({"text": text}) + "\n")
                written += len(text)
            copy += 1
    return [str(path)], "standard library, words varied"


def _varied(text: str, copy: int) -> str:
    """Change about one word in eight, another one in each copy."""

    def change(match: re.Match[str]) -> str:
        word = match[0]
        return f"{word}{copy}" if copy and (match.start() + 31 * copy + len(word)) % 8 == 0 else word

    return _WORD.sub(change, text)


def _peak_of_tree(child: subprocess.Popen[str]) -> float:
    peak = 0
    while child.poll() is None:
        peak = max(peak, sum(_resident(pid) for pid in _tree(child.pid)))
        time.sleep(SAMPLE_SECONDS)
    return peak / 2**20


def _tree(root: int) -> list[int]:
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        try:
            waiting += [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except OSError:
            continue
    return found


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--prepare"]:
        print(json.dumps(prepare(sys.argv[2], int(sys.argv[3]), sys.argv[4:])))
    else:
        run_benchmark("corpus", benchmark)
