"""The command line: a table of verbs, each loaded only when it is called."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from forethought.core.errors import ForethoughtError, InputError, nearest

DONE, FAILED, BAD_INPUT = 0, 1, 2


@dataclass(frozen=True)
class Verb:
    """Where a verb lives, as module:function, and what it does in one line."""

    place: str
    summary: str


VERBS: dict[str, Verb] = {
    "pretrain fit": Verb("forethought.app.pretrain:fit_verb", "train a language model on text and export it"),
    "pretrain ladder": Verb("forethought.app.ladder:ladder_verb", "tune recipes over sizes and data, fit laws"),
    "pretrain ensemble": Verb("forethought.app.ensemble:ensemble_verb", "train members as one batch and score them"),
    "pretrain distil": Verb("forethought.app.distil:distil_verb", "distil a draft for a target, or members into one"),
    "pretrain continue": Verb("forethought.app.continue_:continue_verb", "continue a model's training on a domain"),
    "pretrain efficiency": Verb("forethought.app.efficiency:efficiency_verb", "how much data each recipe is worth"),
    "pretrain evaluate": Verb("forethought.app.pretrain_tools:evaluate_verb", "multiple choice and minimal pairs"),
    "pretrain export": Verb("forethought.app.pretrain_tools:export_verb", "write a model as GGUF for llama.cpp"),
    "control collect": Verb("forethought.app.control.run:collect_verb", "collect episodes in an environment"),
    "control train": Verb("forethought.app.control.train:train_verb", "train a planning agent from logged episodes"),
    "control run": Verb("forethought.app.control.run:run_verb", "run an agent in an environment and report returns"),
    "control adapt": Verb(
        "forethought.app.control.adapt:adapt_verb", "fine-tune an agent's dynamics to a changed body"
    ),
    "control distil": Verb("forethought.app.control.adapt:distil_verb", "distil an agent into a reactive policy"),
    "certify run": Verb("forethought.app.certify.run:run_verb", "train a short network and certify its error"),
    "certify verify": Verb("forethought.app.certify.verify:verify_verb", "derive a certificate again and check it"),
    "certify attach": Verb("forethought.app.certify.attach:attach_verb", "put a certificate on its model's card"),
    "certify plan": Verb("forethought.app.certify.plan:plan_verb", "bits for a target; declare a prior beforehand"),
    "certify holdout": Verb("forethought.app.certify.plan:holdout_verb", "bounds from counts of errors alone"),
    "certify phenomena": Verb(
        "forethought.app.certify.phenomena:phenomena_verb", "double descent, benign overfitting and their kin, measured"
    ),
    "generate": Verb("forethought.app.generate:generate_verb", "continue a prompt with a trained model"),
    "serve": Verb("forethought.app.serve:serve_verb", "serve a model over an OpenAI-compatible API"),
    "simulate": Verb("forethought.app.simulate:simulate_verb", "simulate decoding on a machine given by its profile"),
    "world demo": Verb("forethought.app.world.demo:demo_verb", "a world model end to end: collect to report"),
    "world collect": Verb("forethought.app.world.verbs:collect_verb", "collect episodes with frames"),
    "world inspect": Verb("forethought.app.world.opening:inspect_verb", "say what episodes hold, and show one"),
    "world train": Verb("forethought.app.world.verbs:train_verb", "train a world model on episodes"),
    "world evaluate": Verb("forethought.app.world.verbs:evaluate_verb", "plan to goal images, beside baselines"),
    "world probe": Verb("forethought.app.world.verbs:probe_verb", "ask what the latents know of the state"),
    "world surprise": Verb("forethought.app.world.verbs:surprise_verb", "calibrate surprise and measure it"),
    "report": Verb("forethought.app.report:report_verb", "draw a run directory as one self-contained HTML page"),
    "demo": Verb("forethought.app.demo.verb:demo_verb", "the tour of all five rooms, on one page"),
    "recipes": Verb("forethought.app.recipes:recipes_verb", "list the named configs, or show what one sets"),
}

Result = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status: 0 done, 1 failed, 2 bad input."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        sys.stdout.write(overview())
        return DONE
    if given[0] == "--version":
        from forethought import __version__

        sys.stdout.write(f"forethought {__version__}\n")
        return DONE
    name, rest = split_verb(given)
    if name is None:
        return _complain(f"unknown verb {given[0]!r}.{nearest(given[0], VERBS)}\n{overview()}", BAD_INPUT)
    if name not in VERBS:
        wanted_help = not rest or rest[0] in ("-h", "--help")
        (sys.stdout if wanted_help else sys.stderr).write(overview(name))
        return DONE if wanted_help else BAD_INPUT
    return _run(name, rest)


def split_verb(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the verb (or the group of verbs) that the arguments begin with, and what follows it."""
    for length in (2, 1):
        name = " ".join(arguments[:length])
        if name in VERBS:
            return name, list(arguments[length:])
    is_group = any(verb.startswith(f"{arguments[0]} ") for verb in VERBS)
    return (arguments[0], list(arguments[1:])) if is_group else (None, list(arguments))


def overview(group: str | None = None) -> str:
    """Return the help text: what the program is, its verbs, and how to see the help of one."""
    chosen = {name: verb for name, verb in VERBS.items() if group is None or name.startswith(f"{group} ")}
    width = max(len(name) for name in chosen)
    lines = [f"  {name.ljust(width)}  {verb.summary}" for name, verb in chosen.items()]
    return "\n".join(
        [
            "usage: forethought VERB [options]",
            "",
            "Turn compute into capability by predicting before it happens.",
            "",
            "verbs:",
            *lines,
            "",
            "forethought VERB --help shows the options of a verb; forethought --version the version.",
            "Every verb takes --json: then its result is one last line of JSON on standard output.",
            "Exit status: 0 done, 1 failed, 2 bad input.",
            "",
        ]
    )


def _run(name: str, arguments: list[str]) -> int:
    module, _, function = VERBS[name].place.partition(":")
    as_json = "--json" in arguments
    is_writer = os.environ.get("RANK", "0") == "0"
    try:
        result: Result = getattr(importlib.import_module(module), function)(arguments)
        if as_json and is_writer:
            sys.stdout.write(json.dumps(result, ensure_ascii=False, allow_nan=False) + "\n")
        sys.stdout.flush()
    except InputError as error:
        return _complain(str(error), BAD_INPUT)
    except ForethoughtError as error:
        return _complain(str(error), FAILED)
    except KeyboardInterrupt:
        return _complain("stopped", FAILED)
    except BrokenPipeError:
        # The reader went away (`| head`); what was done is done, and there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    return DONE


def _complain(message: str, status: int) -> int:
    sys.stderr.write(f"forethought: {message}\n")
    return status
