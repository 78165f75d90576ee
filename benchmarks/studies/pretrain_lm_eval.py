"""Our multiple-choice scorer against lm-evaluation-harness, offline, on local files: question by question the same.

    pip install lm-eval   # in an environment of its own that also sees this library
    python benchmarks/studies/pretrain_lm_eval.py --evals ../shared/data/evals --models TARGET DRAFT

The harness's own tasks fetch their data from the Hub and fail without a network; here its tasks are written over local
files, and its model is a wrapper of `continuation_scores`, so that a single model and an ensemble go the same way. What
is compared is everything else: prompts, delimiters, the choice by sum and by bytes, and the counting.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from forethought.core.environment import environment
from forethought.data import Tokenizer, load_tokenizer
from forethought.nn import LanguageModel, load_language_model
from forethought.pretrain.choices import choice_accuracy, continuation_scores, read_questions

RESULT = Path(__file__).resolve().parents[1] / "results" / "studies" / "pretrain_lm_eval.json"
PLAIN = {"doc_to_text": "{{query}}", "doc_to_choice": "{{choices}}", "doc_to_target": "{{gold}}"}
ASKED = {**PLAIN, "doc_to_text": "{{query}}\nAnswer:"}
SCIQ = {
    "doc_to_text": "{{support + '\n' if support else ''}}Question: {{question}}\nAnswer:",
    "doc_to_choice": "{{[distractor1, distractor2, distractor3, correct_answer]}}",
    "doc_to_target": "{{3}}",
}
TASKS: Mapping[str, Mapping[str, str]] = {
    "arc_easy": ASKED,
    "openbook_qa": PLAIN,
    "sciq_validation": SCIQ,
    "hellaswag_val_1k": PLAIN,
}


def harness(models: Sequence[LanguageModel], tokenizer: Tokenizer, evals: Path, limit: int) -> dict[str, Any]:
    """Return the harness's accuracy by sum and by bytes for every task."""
    import lm_eval
    from lm_eval.api.model import LM

    class Averaged(LM):
        """The mean of the models' probabilities, behind the harness's interface."""

        def loglikelihood(self, requests: Any, *_: Any, **__: Any) -> list[tuple[float, bool]]:
            pairs = [(str(request.args[0]), str(request.args[1])) for request in requests]
            return [(score, False) for score in continuation_scores(models, tokenizer, pairs, batch_size=16)]

        def loglikelihood_rolling(self, requests: Any, *_: Any, **__: Any) -> list[float]:
            raise NotImplementedError

        def generate_until(self, requests: Any, *_: Any, **__: Any) -> list[str]:
            raise NotImplementedError

    tasks = [task_of(name, evals) for name in TASKS]
    done: Any = lm_eval.simple_evaluate(
        model=Averaged(), tasks=tasks, limit=limit, bootstrap_iters=0, log_samples=False
    )
    found = {name: done["results"][f"local_{name}"] for name in TASKS}
    return {
        name: {"accuracy": values["acc,none"], "normalised_accuracy": values["acc_bytes,none"]}
        for name, values in found.items()
    }


def task_of(name: str, evals: Path) -> dict[str, Any]:
    """Return a task of the harness over one local file."""
    metrics = [{"metric": each, "aggregation": "mean", "higher_is_better": True} for each in ("acc", "acc_bytes")]
    return {
        "task": f"local_{name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(evals / f"{name}.jsonl.gz")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "target_delimiter": " ",
        "metric_list": metrics,
        **TASKS[name],
    }


def compare(models: Sequence[LanguageModel], tokenizer: Tokenizer, evals: Path, limit: int) -> list[dict[str, Any]]:
    """Return both accuracies of every task, side by side."""
    theirs = harness(models, tokenizer, evals, limit)
    rows: list[dict[str, Any]] = []
    for name in TASKS:
        own = choice_accuracy(models, tokenizer, read_questions(evals / f"{name}.jsonl.gz", limit))
        kept = ("questions", "guessing", "accuracy", "accuracy_interval", "normalised_accuracy")
        same = all(abs(own[key] - theirs[name][key]) < 1e-9 for key in ("accuracy", "normalised_accuracy"))
        rows.append(
            {"task": name, "models": len(models), **{k: own[k] for k in kept}, "harness": theirs[name], "same": same}
        )
    return rows


def main() -> None:
    """Compare for each model alone and for their ensemble, and write the result."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--evals", type=Path, required=True)
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="model directories of one vocabulary")
    parser.add_argument("--limit", type=int, default=15, help="questions a task")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--quick", action="store_true", help="five questions a task; writes only to --out")
    given = parser.parse_args()
    if given.quick and given.out is None:
        parser.error("--quick writes only to --out; give it")
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    began, facts = time.process_time(), environment()
    models, tokenizer = [load_language_model(place).eval() for place in given.models], load_tokenizer(given.models[0])
    limit = 5 if given.quick else given.limit
    groups = [*([model] for model in models), *([models] if len(models) > 1 else [])]
    rows = [row for group in groups for row in compare(group, tokenizer, given.evals, limit)]
    record = {
        "command": "python benchmarks/studies/pretrain_lm_eval.py --evals ../shared/data/evals --models TARGET DRAFT",
        "machine": {"hardware": facts["hardware"], "threads": facts["threads"], "versions": facts["packages"]},
        "seeds": [],
        "cpu_seconds": round(time.process_time() - began, 1),
        "settings": {"limit": limit, "models": [place.name for place in given.models]},
        "rows": rows,
        "summary": {"comparisons": len(rows), "same": sum(row["same"] for row in rows)},
    }
    out = given.out or RESULT
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["summary"]))


if __name__ == "__main__":
    main()
