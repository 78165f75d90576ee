"""What each frontier option of pre-training earns: one small model, one slice of novels, one baseline, paired by seed.

    python benchmarks/studies/pretrain_frontier.py --data ../shared/data/text_general --work FOLDER

The strength of an option, where several are listed, is chosen by the tuning slice with a seed of its own; three other
seeds then give the difference to the baseline of the same seed on the report slice. Intervals: Student's t with the sd
of the differences pooled over the options, and with each option's own sd beside it. A finished cell in FOLDER is never
run again, and the result is whole after every option. `--quick` does all of it tiny, in about a minute, and writes only
to --out.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from forethought.app.recipes.pretrain import members as members_recipe
from forethought.app.recipes.pretrain import shape
from forethought.core import files
from forethought.core.environment import environment
from forethought.data import CorpusConfig
from forethought.pretrain import DistillationConfig, FrontierConfig, Member, MembersConfig, prepare, soft_distil
from forethought.pretrain.members import train_members
from forethought.pretrain.scores import average_loss, open_scores
from forethought.pretrain.study import Grid, Point, search
from forethought.pretrain.study.search import Certificate
from forethought.stats import mean_interval
from forethought.stats.quantiles import t_quantile
from forethought.train import ScheduleConfig

RESULT = Path(__file__).resolve().parents[1] / "results" / "studies" / "pretrain_frontier.json"
SEEDS, CHOOSING_SEED = (0, 1, 2), 100
PASSAGE, PASSAGES = 1500, 5
CYCLES = 4
Losses = dict[str, list[float]]
Change = Callable[[MembersConfig], MembersConfig]


@dataclass(frozen=True)
class Scale:
    """How large the study is: training tokens, passes, and tokens of each held-out slice."""

    tokens: int = 16_384
    epochs: float = 12.0
    held_out: int = 32_768
    books: int = 98


QUICK = Scale(tokens=2048, epochs=4.0, held_out=2048, books=40)


@dataclass(frozen=True)
class Option:
    """An option: strengths to choose from, each a change of the baseline, and the candidate that it is judged by."""

    title: str
    strengths: Mapping[str, Change]
    candidate: str = "member"


def frontier_changes(**values: Sequence[float | int]) -> dict[str, Change]:
    """Return changes of one frontier setting, named by their values."""
    ((name, strengths),) = values.items()

    def change(value: float) -> Change:
        return lambda base: replace(base, frontier=replace(base.frontier, **{name: value}))

    return {f"{name} {value:g}": change(value) for value in strengths}


def averaging(floor: float) -> Change:
    """Return the change to a rate that ends at a share of its peak, with an EMA and the mean of the last epochs."""

    def change(base: MembersConfig) -> MembersConfig:
        loop = replace(base.fit.loop, schedule=ScheduleConfig(floor=floor), ema_decay=0.99)
        return replace(base, fit=replace(base.fit, loop=loop), frontier=FrontierConfig(last_k=4))

    return change


def muon(rate: float) -> Change:
    """Return the change to Muon for the hidden matrices, with a rate of its own and the baseline's tau."""

    def change(base: MembersConfig) -> MembersConfig:
        optimiser = replace(base.fit.optimiser, name="muon", muon_lr=rate)
        return replace(base, fit=replace(base.fit, optimiser=optimiser))

    return change


def cycling(cycles: int) -> Change:
    """Return the change to cosine restarts with the decay in anti-phase."""

    def change(base: MembersConfig) -> MembersConfig:
        loop = replace(base.fit.loop, schedule=ScheduleConfig(name="constant", warmup=0.0))
        return replace(base, fit=replace(base.fit, loop=loop), frontier=FrontierConfig(cycles=cycles))

    return change


def adamw(rate: float, tau: float) -> Change:
    """Return the change to another rate and memory of AdamW: what the baseline is searched among."""
    return lambda base: replace(
        base, fit=replace(base.fit, optimiser=replace(base.fit.optimiser, lr=rate, tau=tau, name="adamw"))
    )


GRID_TAU, GRID_LR, START = (0.5, 1.0, 2.0, 4.0), (3e-3, 6e-3, 1.2e-2), (1.0, 6e-3)
MUON_RATES = (0.01, 0.02, 0.04)
OPTIONS = {
    "muon": Option("Muon for the hidden matrices", {f"rate {rate:g}": muon(rate) for rate in MUON_RATES}),
    "dropout": Option("dropout", frontier_changes(dropout=(0.05, 0.1, 0.2))),
    "ema": Option("EMA, rate ending above 0", {f"floor {f:g}": averaging(f) for f in (0.1, 0.3)}, "ema"),
    "last-k": Option("mean of last 4 epochs, ditto", {f"floor {f:g}": averaging(f) for f in (0.1, 0.3)}, "last-k"),
    "snapshots": Option("snapshot ensemble, anti-phase decay", {f"cycles {CYCLES}": cycling(CYCLES)}, "ensemble"),
    "ahead": Option("a second token ahead", frontier_changes(ahead_share=(0.1, 0.3))),
    "no-reshuffle": Option("without reshuffling every epoch", frontier_changes(reshuffle=(0,))),
}
CHAIN_SHARE, LINKS = 0.5, 2


def passages(data: Path, books: int) -> Iterator[str]:
    """Yield passages of each novel, cut at the ends of paragraphs: the first of every novel, then the second, ..."""
    found: list[list[str]] = []
    with gzip.open(data / "novels100.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in itertools.islice(lines, books):
            text = json.loads(line)["text"]
            found.append(list(itertools.islice(cut(text[len(text) // 2 :]), PASSAGES)))
    for row in itertools.zip_longest(*found):
        yield from (passage for passage in row if passage)


def cut(text: str) -> Iterator[str]:
    """Yield whole paragraphs joined to at least the length of a passage."""
    part: list[str] = []
    for paragraph in text.split("\n\n")[1:]:
        part.append(paragraph.strip())
        if sum(map(len, part)) >= PASSAGE:
            yield "\n\n".join(part)
            part = []


class Study:
    """The cells of the study under one folder; each is trained once."""

    def __init__(self, data: Path, work: Path, scale: Scale) -> None:
        self.work, self.scale = work, scale
        files.make_directory(work)
        kept = work / "scale.json"
        if kept.is_file() and files.read_json(kept) != asdict(scale):
            raise SystemExit(f"{work} holds cells of another scale; give another folder")
        files.write_json(kept, asdict(scale))
        spool = work / "passages.jsonl"
        if not spool.exists():
            lines = [json.dumps({"text": passage}) for passage in passages(data, scale.books)]
            files.replace_file(spool, ("\n".join(lines) + "\n").encode())
        config = CorpusConfig(vocab_size=1024, validation_share=0.25, test_share=0.2)
        self.corpus = prepare([str(spool)], work / "corpus", config)
        recipe = members_recipe()
        fit = replace(recipe.fit, sources=(str(work / "corpus"),), model=shape(64, 2), evaluation_tokens=scale.held_out)
        self.base = replace(recipe, fit=fit, epochs=scale.epochs, train_tokens=scale.tokens)

    def cell(self, name: str, change: Change, seeds: Sequence[int]) -> Losses:
        """Train a change of the baseline over seeds, or read what it gave: losses by candidate, and CPU seconds."""
        settings = replace(change(self.base), members=tuple(Member(seed=seed) for seed in seeds))
        return self._kept(name, lambda place: train_members(settings, place, exists="resume", title=name[:15]))

    def link(self, name: str, change: Change, teacher: Path, seed: int, share: float) -> Losses:
        """Train one link of a chain: the baseline on its text and on the law of a finished model of another seed."""
        base = change(self.base)
        mixed = DistillationConfig(share=share, temperature=1.2)
        settings = replace(base, fit=replace(base.fit, distillation=mixed), members=(Member(seed=seed),))
        return self._kept(name, lambda place: soft_distil(settings, [teacher], place, temperature=1.2, exists="resume"))

    def _kept(self, name: str, run: Callable[[Path], Mapping[str, Any]]) -> Losses:
        place, kept = self.work / "runs" / name, self.work / "cells" / f"{name}.json"
        if kept.is_file():
            return files.read_json(kept, what="cell of the study")
        files.make_directory(kept.parent)
        result, spent = self._timed(name, lambda: run(place))
        found: Losses = {"cpu_seconds": [spent]}
        for record in result["members"]:
            title = str(record["name"]).rpartition("-")[0]
            for each in ("tune", "report"):
                found.setdefault(f"{title}.{each}", []).append(float(record[f"{each}_loss"]))
        for each in ("tune", "report"):
            found[f"ensemble.{each}"] = ensembles(place, each)
        files.write_json(kept, found)
        sys.stderr.write(f"{name}: {found['cpu_seconds'][0]:.0f} CPU s\n")
        return found

    def _timed(self, name: str, run: Callable[[], Mapping[str, Any]]) -> tuple[Mapping[str, Any], float]:
        """Run something that may be stopped and resumed, and return the CPU seconds of all its lives."""
        path = self.work / "cells" / f"{name}.spent"
        earlier = float(path.read_text()) if path.is_file() else 0.0
        began = time.process_time()
        try:
            result = run()
        finally:
            spent = earlier + time.process_time() - began
            path.write_text(str(spent))
        return result, spent


def ensembles(place: Path, slice_name: str) -> list[float]:
    """Return, for each member of a run, the loss of its last weights and its snapshots averaged."""
    scores = open_scores(place / "scores")
    own = [name for name in scores.names if name.partition("-")[0] in ("member", "snapshot")]
    numbers = sorted({name.rpartition("-")[2] for name in own}, key=int)
    return [
        average_loss(scores.rows(slice_name, [n for n in own if n.rpartition("-")[2] == number])) for number in numbers
    ]


def choose(study: Study, name: str, option: Option, base: Change) -> str:
    """Return the strength with the lowest loss on the tuning slice, with the seed that only chooses."""
    if len(option.strengths) == 1:
        return next(iter(option.strengths))
    losses = {
        strength: study.cell(f"choose-{cell_name(name, strength)}", chained(base, change), [CHOOSING_SEED])
        for strength, change in option.strengths.items()
    }
    return min(losses, key=lambda strength: losses[strength][f"{option.candidate}.tune"][0])


def cell_name(name: str, strength: str) -> str:
    """Return the file name of a cell; EMA and the mean of the last epochs come from one run."""
    return f"{'averaged' if name in ('ema', 'last-k') else name}-{strength}".replace(" ", "-").replace(",", "")


def chained(first: Change, second: Change) -> Change:
    """Return one change after the other."""
    return lambda base: second(first(base))


def chain_rows(study: Study, base: Change, baseline: Losses) -> Iterator[dict[str, Any]]:
    """Yield the rows of chains, link by link; a student's teacher began from another seed than the student."""
    places = [study.work / "runs" / "baseline" / "models" / f"member-{k}" for k in range(len(SEEDS))]
    spent = baseline["cpu_seconds"][0]
    for link in range(1, LINKS + 1):
        teachers = places[1:] + places[:1]
        names = [f"chain-{link}-{seed}" for seed in SEEDS]
        made = [study.link(n, base, t, s, CHAIN_SHARE) for n, t, s in zip(names, teachers, SEEDS, strict=True)]
        spent += sum(each["cpu_seconds"][0] for each in made)
        losses = [each["member.report"][0] for each in made]
        title = f"chain distillation, link {link}"
        yield row(f"chain-{link}", title, f"share {CHAIN_SHARE:g}", losses, baseline, spent)
        places = [study.work / "runs" / n / "models" / "member-0" for n in names]


def row(
    name: str, title: str, strength: str, losses: Sequence[float], baseline: Losses, cpu_seconds: float, models: int = 1
) -> dict[str, Any]:
    """Return one option's losses and its differences to the baseline, seed by seed."""
    differences = [loss - own for loss, own in zip(losses, baseline["member.report"], strict=True)]
    own = mean_interval(differences)
    return {
        "option": name,
        "title": title,
        "strength": strength,
        "losses": list(losses),
        "differences": differences,
        "difference": own.estimate,
        "own_interval": [own.low, own.high],
        "own_sd": statistics.stdev(differences),
        "training_cost": cpu_seconds / baseline["cpu_seconds"][0],
        "models_when_used": models,
    }


def run_study(study: Study) -> Iterator[dict[str, Any]]:
    """Choose the baseline and every strength, and yield the result after each option: rows with pooled intervals."""
    best = tuned(study)
    base = adamw(best.point.lr, best.point.tau or START[0])
    baseline = study.cell("baseline", base, SEEDS)
    together = average_loss(open_scores(study.work / "runs" / "baseline" / "scores").rows("report"))
    about = {
        "baseline": best.to_dict(),
        "baseline_losses": baseline["member.report"],
        "baseline_sd": statistics.stdev(baseline["member.report"]),
        "ensemble_of_the_baselines": together,
    }
    rows: list[dict[str, Any]] = []
    for made in itertools.chain(option_rows(study, base, baseline), chain_rows(study, base, baseline)):
        rows.append(made)
        yield {"rows": rows, "summary": pool(rows) | about, "cpu_seconds": total_cpu(study.work)}


def tuned(study: Study) -> Certificate:
    """Search rate and tau of the baseline by the tuning slice, with the tool's own search, until it is certified."""
    epochs = study.scale.epochs

    def evaluate(points: Sequence[Point]) -> dict[Point, float]:
        return {
            point: study.cell(
                f"choose-baseline-lr-{point.lr:g}-tau-{point.tau:g}", adamw(point.lr, point.tau or 0.0), [CHOOSING_SEED]
            )["member.tune"][0]
            for point in points
        }

    grid = Grid(tau=GRID_TAU, lr=GRID_LR, epochs=(epochs,))
    return search(Point(tau=START[0], lr=START[1], epochs=epochs), grid, evaluate)[0]


def option_rows(study: Study, base: Change, baseline: Losses) -> Iterator[dict[str, Any]]:
    """Yield the row of every option at its chosen strength."""
    for name, option in OPTIONS.items():
        strength = choose(study, name, option, base)
        cell = study.cell(cell_name(name, strength), chained(base, option.strengths[strength]), SEEDS)
        losses = cell[f"{option.candidate}.report"]
        models = int(strength.split()[-1]) if option.candidate == "ensemble" else 1
        yield row(name, option.title, strength, losses, baseline, cell["cpu_seconds"][0], models)


def pool(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Put the interval with the pooled sd into every row and return that sd."""
    degrees = sum(len(each["differences"]) - 1 for each in rows)
    squares = sum(each["own_sd"] ** 2 * (len(each["differences"]) - 1) for each in rows)
    sd = math.sqrt(squares / degrees)
    for each in rows:
        half = t_quantile(0.975, degrees) * sd / math.sqrt(len(each["differences"]))
        each["interval"] = [each["difference"] - half, each["difference"] + half]
        low, high = each["interval"]
        each["verdict"] = "better" if high < 0 else "worse" if low > 0 else "within the noise"
    return {"pooled_sd_of_differences": sd, "degrees_of_freedom": degrees}


def total_cpu(work: Path) -> float:
    """Return the CPU seconds of all finished cells."""
    cells = sorted((work / "cells").glob("*.json"))
    return sum(files.read_json(path, what="cell of the study")["cpu_seconds"][0] for path in cells)


def main() -> None:
    """Run the study, or go on with it, and write its result."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of novels100.jsonl.gz")
    parser.add_argument("--work", type=Path, required=True, help="where cells are kept")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    if given.quick and given.out is None:
        parser.error("--quick writes only to --out; give it")
    scale = QUICK if given.quick else Scale()
    out = given.out or RESULT
    for found in run_study(Study(given.data, given.work, scale)):
        write(out, found, scale)
        each = found["rows"][-1]
        low, high = each["interval"]
        print(f"{each['title']:36} {each['strength']:18} {each['difference']:+.4f} ({low:+.4f} to {high:+.4f})")


def write(out: Path, found: dict[str, Any], scale: Scale) -> None:
    """Write what is known so far, so that a study that is stopped leaves a whole table of what it finished."""
    facts = environment()
    planned = [*OPTIONS, *(f"chain-{link}" for link in range(1, LINKS + 1))]
    done = [each["option"] for each in found["rows"]]
    record = {
        "command": "python benchmarks/studies/pretrain_frontier.py --data ../shared/data/text_general --work FOLDER",
        "machine": {"hardware": facts["hardware"], "threads": facts["threads"], "versions": facts["packages"]},
        "seeds": list(SEEDS),
        "cpu_seconds": round(found["cpu_seconds"], 1),
        "settings": {
            "tokens": scale.tokens,
            "epochs": scale.epochs,
            "held_out_tokens": scale.held_out,
            "shape": "64x2",
            "not_measured": [name for name in planned if name not in done],
        },
        "rows": found["rows"],
        "summary": found["summary"],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
