"""The decoding engine: plain, draft, SSD and n-gram, on the same target core and on the same two cores, and its rivals.

Every contestant is a process of its own, pinned; they take turns prompt by prompt, so a drift of the machine hits all.
Speed is tokens a second of decoding, the prompt's reading and the first token left out; ratios are medians of paired
ratios over prompts with 95 % intervals. "Same target core": the target runs on core 0 alone in each arm, and SSD's
draft has core 1 to itself besides. "Equal cores": every arm has both. The draft's weights are rounded to bfloat16 in
every arm of ours that has one (drafting is quicker so, and what is verified stays exact); the target's never are.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, cast

import arms.llamacpp as llamacpp
from forethought.core.errors import InputError
from forethought.decode import open_model
from forethought.stats import median_interval, paired_ratio
from harness import run_benchmark

HERE = Path(__file__).resolve().parent
PAIR = HERE.parent.parent / "shared" / "data" / "models" / "pair"
PROMPTS = HERE.parent.parent / "shared" / "data" / "prompts"
QUIET_SECONDS = 0.12
DRAFT_DTYPE = "bfloat16"
SD_LENGTHS = (3, 4, 5, 6, 8)
SSD_SETTINGS = ((6, 8), (6, 12), (6, 16), (7, 8), (7, 12), (7, 16), (8, 8), (8, 12))


class Arm:
    """A contestant's process."""

    def __init__(self, name: str, spec: dict[str, Any]) -> None:
        self.name, self.spec = name, spec
        environment = os.environ | {"OMP_NUM_THREADS": str(spec["num_threads"]), "PYTHONPATH": str(HERE)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "arms.worker", json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=HERE,
        )
        self._write, self._answers = cast(IO[str], self._process.stdin), cast(IO[str], self._process.stdout)
        self._read()

    def run(self, prompts: list[list[int]], *, max_tokens: int, temperature: float, seed: int = 0) -> dict[str, Any]:
        """Complete the prompts together and return the contestant's answer, its speed added."""
        command = {"prompts": prompts, "max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        self._write.write(json.dumps(command) + "\n")
        self._write.flush()
        answer = self._read()
        count = sum(len(tokens) for tokens in answer["tokens"])
        began = max(answer["first"]) if answer["first"] != answer["last"] else 0.0
        answer["speed"] = (count - len(prompts)) / max(max(answer["last"]) - began, 1e-9)
        return answer

    def close(self) -> None:
        """End the process."""
        self._write.close()
        self._process.wait(timeout=30)

    def _read(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line:
            raise InputError(f"the contestant {self.name} ended; its own message stands above")
        return json.loads(line)


def spec(target: Path, *, cores: tuple[int, ...] = (0,), **more: Any) -> dict[str, Any]:
    """Return the spec of a contestant."""
    threads = len(cores) if more.get("threads") is None else more.pop("threads")
    return {"engine": "forethought", "target": str(target), "cores": list(cores), "num_threads": threads, **more}


def draft_spec(target: Path, draft: Path, length: int, cores: tuple[int, ...] = (0,)) -> dict[str, Any]:
    """Return classic speculation in one process, target and draft on the same cores."""
    speculative = {
        "method": "draft",
        "model": str(draft),
        "num_speculative_tokens": length,
        "transport": "in-process",
        "num_threads": len(cores),
        "dtype": DRAFT_DTYPE,
    }
    return spec(target, cores=cores, speculative=speculative)


def ssd_spec(target: Path, draft: Path, length: int | str, budget: int | str) -> dict[str, Any]:
    """Return SSD, the target on core 0 and the draft's process on core 1."""
    speculative = {
        "method": "ssd",
        "model": str(draft),
        "num_speculative_tokens": length,
        "budget": budget,
        "transport": "process",
        "draft_core": 1,
        "dtype": DRAFT_DTYPE,
    }
    return spec(target, speculative=speculative)


def code_prompts(target: Path, count: int) -> list[list[int]]:
    """Return prompts of HumanEval as tokens of the target, those of at most 300 tokens."""
    served = open_model(target)
    with gzip.open(PROMPTS / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["prompt"] for line in lines]
    tokens = [served.encode(text) for text in texts]
    return [prompt for prompt in tokens if len(prompt) <= 300][:count]


def race(
    contestants: dict[str, Arm], batches: Iterable[list[list[int]]], *, max_tokens: int, temperature: float
) -> dict[str, list[dict[str, Any]]]:
    """Let every contestant complete every batch, the order turning from batch to batch."""
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    names = list(contestants)
    for number, prompts in enumerate(batches):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            # A draft's process asks for verdicts for a twentieth of a second before it sleeps: not beside another's.
            time.sleep(QUIET_SECONDS)
            answers[name].append(
                contestants[name].run(prompts, max_tokens=max_tokens, temperature=temperature, seed=number)
            )
    return answers


def ratio(answers: dict[str, list[dict[str, Any]]], above: str, below: str) -> dict[str, float]:
    """Return the paired ratio of two contestants' speeds with its interval."""
    interval = paired_ratio([a["speed"] for a in answers[above]], [b["speed"] for b in answers[below]])
    return {"ratio": interval.estimate, "low": interval.low, "high": interval.high}


def summarise(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a contestant's speed, latencies and accounts over all its answers."""
    speed = median_interval([answer["speed"] for answer in answers])
    gaps = sorted(gap for answer in answers for gap in answer["gaps"])
    first = sorted(value for answer in answers for value in answer["first"])
    rows: dict[str, Any] = {
        "tokens_per_second": speed.estimate,
        "tokens_per_second_interval": [speed.low, speed.high],
        "time_to_first_token_p50_ms": 1e3 * statistics.median(first),
    }
    if gaps:
        rows["inter_token_p50_ms"] = 1e3 * gaps[len(gaps) // 2]
        rows["inter_token_p99_ms"] = 1e3 * gaps[int(0.99 * (len(gaps) - 1))]
    counts = [answer["counts"] for answer in answers if "counts" in answer]
    if counts:
        drafted = sum(count["counters"]["drafted_tokens"] for count in counts)
        steps = sum(count["counters"]["steps"] for count in counts)
        rows["drafted"], rows["accepted"] = drafted, sum(count["counters"]["accepted_tokens"] for count in counts)
        rows["tokens_per_step"] = sum(count["counters"]["generated_tokens"] for count in counts) / max(steps, 1)
        for name in ("verify_seconds", "stall_seconds", "step_seconds"):
            total = sum(count["histograms"][name]["sum"] for count in counts)
            rows[f"{name.removesuffix('_seconds')}_ms_a_step"] = 1e3 * total / max(steps, 1)
        sources: Counter[str] = Counter()
        for count in counts:
            sources.update(count["by_source"])
        rows["rounds_by_source"] = dict(sources)
        later = sum(sources.values()) - sum(len(answer["tokens"]) for answer in answers)
        rows["hit_rate"] = sources["cache"] / max(later, 1)
        rows["acceptance_by_position"] = by_position(counts)
    return rows


def by_position(counts: list[dict[str, Any]]) -> list[float]:
    """Return how often a drafted token of each position was kept, given that it was drafted."""
    drafted: Counter[int] = Counter()
    accepted: Counter[int] = Counter()
    for count in counts:
        for total, own in ((drafted, "drafted"), (accepted, "accepted")):
            total.update(dict(enumerate(count["by_position"][own])))
    return [round(accepted[k] / drafted[k], 4) for k in sorted(drafted) if drafted[k]]


def best_setting(
    target: Path, specs: dict[str, dict[str, Any]], prompts: list[list[int]], max_tokens: int
) -> tuple[str, dict[str, float]]:
    """Return which of several settings of one contestant is fastest on prompts that the race does not use."""
    contestants = {name: Arm(name, one) for name, one in specs.items()}
    answers = race(contestants, [[prompt] for prompt in prompts], max_tokens=max_tokens, temperature=0.0)
    for arm in contestants.values():
        arm.close()
    speeds = {name: statistics.median(answer["speed"] for answer in own) for name, own in answers.items()}
    return max(speeds, key=speeds.__getitem__), speeds


def check_equal(
    answers: dict[str, list[dict[str, Any]]], names: Iterable[str], reference: str = "ar"
) -> dict[str, int]:
    """Return how many tokens of each contestant differ from plain decoding; ours must not differ at all."""
    differing: dict[str, int] = {}
    for name in names:
        pairs = zip(answers[reference], answers[name], strict=True)
        differing[name] = sum(
            a != b
            for left, right in pairs
            for x, y in zip(left["tokens"], right["tokens"], strict=True)
            for a, b in zip(x, y, strict=True)
        )
    return differing


def contestants_at_one(target: Path, draft: Path, sd: str, ssd: str, rivals: bool) -> dict[str, dict[str, Any]]:
    """Return the specs of the race at batch 1."""
    length, budget = (int(part) for part in ssd.split("x"))
    specs = {
        "ar": spec(target),
        "sd": draft_spec(target, draft, int(sd)),
        "ssd": ssd_spec(target, draft, length, budget),
        "ngram": spec(target, speculative={"method": "ngram", "num_speculative_tokens": int(sd)}),
        "planner": ssd_spec(target, draft, "auto", "auto"),
        "ar_two_cores": spec(target, cores=(0, 1)),
        "sd_two_cores": draft_spec(target, draft, int(sd), (0, 1)),
    }
    if rivals:
        specs["transformers"] = spec(target, engine="transformers")
        specs["transformers_assisted"] = spec(target, engine="transformers", draft=str(draft))
        if llamacpp.installed():
            specs["llamacpp"] = spec(target, engine="llamacpp")
    return specs


OURS = ("sd", "ssd", "ngram", "planner", "ar_two_cores", "sd_two_cores")


def warm_up(contestants: dict[str, Arm], prompts: list[list[int]], max_tokens: int, temperature: float = 0.0) -> None:
    """Have every contestant of ours complete the prompts that settings were tuned on, and the rivals one of them.

    So the planner, which has to find its settings itself, has seen no less than what the fixed ones were chosen by.
    """
    for name, arm in contestants.items():
        for prompt in prompts[:1] if name.startswith(("transformers", "llama")) else prompts:
            arm.run([prompt], max_tokens=max_tokens, temperature=temperature)


def race_at_one(
    target: Path,
    draft: Path,
    tuning: list[list[int]],
    prompts: list[list[int]],
    sd: str,
    ssd: str,
    sizes: dict[str, int],
    quick: bool,
) -> dict[str, Any]:
    """Race all contestants with one prompt at a time, greedy and at temperature 0.8."""
    figures: dict[str, Any] = {}
    specs = contestants_at_one(target, draft, sd, ssd, rivals=True)
    contestants = {name: Arm(name, one) for name, one in specs.items()}
    singles = [[prompt] for prompt in prompts]
    warm_up(contestants, tuning, sizes["max_tokens"])
    answers = race(contestants, singles, max_tokens=sizes["max_tokens"], temperature=0.0)
    figures["differing_greedy_tokens"] = check_equal(answers, [name for name in OURS if name in answers])
    if any(figures["differing_greedy_tokens"].values()):
        raise InputError(f"greedy tokens differ: {figures['differing_greedy_tokens']}")
    figures["greedy"] = {name: summarise(own) for name, own in answers.items()}
    figures["ratios"] = {
        "ssd_over_sd": ratio(answers, "ssd", "sd"),
        "ssd_over_ar": ratio(answers, "ssd", "ar"),
        "sd_over_ar": ratio(answers, "sd", "ar"),
        "ngram_over_ar": ratio(answers, "ngram", "ar"),
        "ssd_over_sd_equal_cores": ratio(answers, "ssd", "sd_two_cores"),
        "ssd_over_ar_equal_cores": ratio(answers, "ssd", "ar_two_cores"),
        "ar_over_transformers": ratio(answers, "ar", "transformers"),
        "sd_over_transformers_assisted": ratio(answers, "sd", "transformers_assisted"),
    }
    fixed = ["ar", "sd", "ssd", "ngram"]
    best = max(fixed, key=lambda name: figures["greedy"][name]["tokens_per_second"])
    figures["best_fixed_method"] = best
    figures["ratios"]["planner_over_best"] = ratio(answers, "planner", best)
    if "llamacpp" in answers:
        figures["ratios"]["ssd_over_llamacpp"] = ratio(answers, "ssd", "llamacpp")
        figures["ratios"]["ar_speed_over_llamacpp"] = ratio(answers, "ar", "llamacpp")
    sampled = {name: arm for name, arm in contestants.items() if not name.startswith(("transformers", "llama"))}
    if not quick:
        warm_up(sampled, tuning, sizes["max_tokens"], 0.8)
        answers = race(sampled, singles, max_tokens=sizes["max_tokens"], temperature=0.8)
        figures["sampled"] = {name: summarise(own) for name, own in answers.items()}
        figures["sampled_ratios"] = {
            "ssd_over_sd": ratio(answers, "ssd", "sd"),
            "ssd_over_ar": ratio(answers, "ssd", "ar"),
            "ssd_over_sd_equal_cores": ratio(answers, "ssd", "sd_two_cores"),
        }
    for arm in contestants.values():
        arm.close()
    return figures


def race_in_batches(
    target: Path,
    draft: Path,
    tuning: list[list[int]],
    prompts: list[list[int]],
    sd: str,
    ssd: str,
    sizes: dict[str, int],
) -> dict[str, Any]:
    """Race plain, draft and SSD decoding with 4 and 16 prompts at a time."""
    length, budget = (int(part) for part in ssd.split("x"))
    specs = {
        "ar": spec(target),
        "sd": draft_spec(target, draft, int(sd)),
        "ssd": ssd_spec(target, draft, length, budget),
        "planner": ssd_spec(target, draft, "auto", "auto"),
        "ar_two_cores": spec(target, cores=(0, 1)),
        "sd_two_cores": draft_spec(target, draft, int(sd), (0, 1)),
    }
    figures: dict[str, Any] = {}
    contestants = {name: Arm(name, one) for name, one in specs.items()}
    for batch in (4, 16):
        batches = [prompts[start : start + batch] for start in range(0, len(prompts) - batch + 1, batch)]
        for temperature, label in ((0.0, "greedy"), (0.8, "sampled")):
            for arm in contestants.values():
                arm.run((tuning * 3)[:batch], max_tokens=sizes["max_tokens"], temperature=temperature)
            answers = race(contestants, batches[:6], max_tokens=sizes["max_tokens"], temperature=temperature)
            if temperature == 0.0 and any(check_equal(answers, [name for name in specs if name != "ar"]).values()):
                raise InputError(f"greedy tokens differ at batch {batch}")
            fixed = max(("ar", "sd", "ssd"), key=lambda n: statistics.median(a["speed"] for a in answers[n]))
            figures[f"batch_{batch}_{label}"] = {
                "methods": {name: summarise(own) for name, own in answers.items()},
                "ssd_over_sd": ratio(answers, "ssd", "sd"),
                "ssd_over_ar": ratio(answers, "ssd", "ar"),
                "planner_over_best": ratio(answers, "planner", fixed) | {"best": fixed},
            }
    for arm in contestants.values():
        arm.close()
    return figures


def single_passes(quick: bool) -> dict[str, Any]:
    """Time forward passes of 1 to 16 tokens on core 0, llama.cpp's beside ours where it is installed."""
    rival = llamacpp.installed()
    program = (
        "import json, os, sys; os.sched_setaffinity(0, {0}); import torch; torch.set_num_threads(1);"
        "from arms.passes import measure_passes;"
        "print(json.dumps(measure_passes(sys.argv[1], int(sys.argv[2]), rival=sys.argv[3] == '1')))"
    )
    figures: dict[str, Any] = {}
    for size in ("30m",) if quick else ("12m", "30m", "91m"):
        command = [sys.executable, "-c", program, size, "8" if quick else "60", "1" if rival else "0"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
        done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, check=True)
        measured = json.loads(done.stdout.splitlines()[-1])
        seconds = measured.pop("seconds")
        rows: dict[str, Any] = {"verify8_over_1": _ratio_of(seconds["float32.8"], seconds["float32.1"])}
        rows["bfloat16_1_over_float32_1"] = _ratio_of(seconds["bfloat16.1"], seconds["float32.1"])
        if rival:
            rows["ar_time_over_llamacpp"] = _ratio_of(seconds["float32.1"], seconds["llamacpp.1"])
            rows["verify8_time_over_llamacpp"] = _ratio_of(seconds["float32.8"], seconds["llamacpp.8"])
        figures[size] = measured | rows
    return figures


def _ratio_of(above: list[float], below: list[float]) -> dict[str, float]:
    interval = paired_ratio(above, below)
    return {"ratio": interval.estimate, "low": interval.low, "high": interval.high}


def measure(quick: bool) -> dict[str, object]:
    """Race plain, draft, SSD and n-gram decoding, the planner, transformers and llama.cpp on the same weights."""
    target, draft = CHOSEN["target"], CHOSEN["draft"]
    sizes = {"max_tokens": 40 if quick else 128, "prompts": 4 if quick else 32}
    prompts = code_prompts(target, sizes["prompts"] + 6)
    tuning, prompts = prompts[:6], prompts[6:]
    figures: dict[str, Any] = {"target": target.name, "draft": draft.name, **sizes}
    if quick:
        sd, ssd = "5", "7x12"
    else:
        lengths = {str(length): draft_spec(target, draft, length) for length in SD_LENGTHS}
        sd, figures["tuning_sd"] = best_setting(target, lengths, tuning, sizes["max_tokens"])
        settings = {f"{k}x{b}": ssd_spec(target, draft, k, b) for k, b in SSD_SETTINGS}
        ssd, figures["tuning_ssd"] = best_setting(target, settings, tuning, sizes["max_tokens"])
    figures["sd_length"], figures["ssd_length_x_budget"] = sd, ssd
    figures["passes"] = single_passes(quick)
    figures |= race_at_one(target, draft, tuning, prompts, sd, ssd, sizes, quick)
    if not quick:
        figures["batches"] = race_in_batches(target, draft, tuning, prompts, sd, ssd, sizes)
    bars: dict[str, Any] = {name: figures["ratios"][name]["ratio"] for name in BARS if name in figures["ratios"]}
    bars["verify8_over_1"] = figures["passes"]["30m"]["verify8_over_1"]["ratio"]
    if llamacpp.installed():
        own = [figures["passes"][size]["ar_time_over_llamacpp"]["ratio"] for size in figures["passes"] if size != "12m"]
        bars["ar_over_llamacpp"] = max(own)
    return bars | figures


BARS = (
    "ssd_over_sd",
    "ssd_over_ar",
    "ssd_over_sd_equal_cores",
    "planner_over_best",
    "ssd_over_llamacpp",
)
CHOSEN: dict[str, Path] = {"target": PAIR / "target", "draft": PAIR / "draft"}


def main() -> None:
    """Take --target and --draft off the command line and run the benchmark with the rest."""
    parser = argparse.ArgumentParser(add_help=False)
    for name in CHOSEN:
        parser.add_argument(f"--{name}", type=Path, default=CHOSEN[name])
    given, rest = parser.parse_known_args()
    CHOSEN.update(target=given.target, draft=given.draft)
    sys.argv = [sys.argv[0], *rest]
    run_benchmark("decode", measure)


if __name__ == "__main__":
    main()
