"""The pages of the world room: of its demo, and of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from forethought.app import charts
from forethought.app.page import Figure, Page, Section, environment_line, table_of
from forethought.app.pages import OpenedRun, difference_sections, millions
from forethought.core.run import open_run


def world_demo_page(run: OpenedRun) -> Page:
    """Return the page of a finished world demo, read from its own directory and its training run."""
    result = run["result"]
    trained = open_run(run["directory"] / "train")
    pictures = result["pictures"]
    sections = [
        success_section("It reaches goals that it is shown", result["near"]),
        *([far_section(result["far"], pictures["path"])] if "far" in result else []),
        Section(
            "It imagines",
            "A held-out episode; the same frames through the latents and back; and what the model imagines from the "
            "first frame and the actions alone. The decoder was fitted afterwards and changed nothing in the model.",
            drawing=pictures["imagined"],
        ),
        probe_section(result["probe"]),
        *surprise_sections(result["surprise"], pictures["trace"]),
        *training_sections(trained),
        *difference_sections(run),
    ]
    return Page(
        title="A world model from pixels",
        lead=f"A model of {millions(result['fit']['parameters'])} parameters learned {result['fit']['frames_seen']:,} "
        "frames without rewards or labels. It plans to goal images, and knows when reality surprises it.",
        command=" ".join(run["environment"]["command"]),
        environment=environment_line(run["environment"]),
        figures=_figures(result),
        sections=sections,
    )


def world_fit_page(run: OpenedRun) -> Page:
    """Return the page of a `world train` run."""
    result = run["result"]
    collapsed = f" THE LATENTS COLLAPSED: {result['collapsed']}." if result["collapsed"] else ""
    return Page(
        title=f"A world model of {millions(result['parameters'])} parameters",
        lead=f"Trained for {result['steps']:,} steps on {result['frames_seen']:,} frames; whole episodes were held "
        f"out.{collapsed}",
        command=" ".join(run["environment"]["command"]),
        environment=environment_line(run["environment"]),
        figures=[
            Figure("held-out error", f"{result['validation_loss']:.4f}", "mean squared, one block ahead"),
            Figure("of copying", f"{result['copy_ratio']:.2f}", "times the error of saying that nothing moves"),
            Figure("effective rank", f"{result['effective_rank']:.1f}", "of the latents' covariance"),
            Figure("SIGReg", f"{result['sigreg_over_floor']:.2f}", "times its value for Gaussian latents"),
        ],
        sections=[*training_sections(run), *difference_sections(run)],
    )


def world_collapse_page(run: OpenedRun) -> Page:
    """Return the page of a training run that the alarm stopped: the reason, and the curves that show it."""
    result = run["result"]
    return Page(
        title="The latents collapsed",
        lead=f"Training was stopped at step {result['step']:,}: {result['message']}.",
        command=" ".join(run["environment"]["command"]),
        environment=environment_line(run["environment"]),
        figures=[
            Figure("spread", f"{result['spread']:.3f}", "of the latents' numbers; SIGReg pulls it to 1"),
            Figure("effective rank", f"{result['effective_rank']:.1f}", "of the latents' covariance"),
            Figure("SIGReg", f"{result['sigreg_over_floor']:.1f}", "times its value for Gaussian latents"),
            Figure("lambda", f"{result['lambda']:.3g}", f"weight of {result['regulariser']}"),
        ],
        sections=[*training_sections(run), *difference_sections(run)],
    )


def success_section(title: str, result: Mapping[str, Any], drawing: str = "") -> Section:
    """Return rates beside their baselines, with intervals."""
    policies = result["policies"]
    bars = charts.bars(
        {name: 100 * each["success"] for name, each in policies.items()},
        label="goals reached within the budget, %",
        intervals={name: [100 * end for end in each["success_interval"]] for name, each in policies.items()},
    )
    rows = [
        [
            name,
            100 * each["success"],
            100 * each["final_success"],
            each["median_steps"],
            1e3 * each["seconds_per_action"],
        ]
        for name, each in policies.items()
    ]
    return Section(
        title,
        f"Starts and goals {result['offset']} steps apart in held-out episodes, {result['budget']} steps to get there; "
        f"{result['pairs']} pairs over {result['seeds']} seeds, Wilson 95 % intervals. {result['trivial_pairs']} of "
        f"{result['drawn_pairs']} pairs were solved at the start and left out.",
        drawing=drawing + bars,
        table=table_of(["policy", "any time, %", "at the end, %", "median steps", "ms an action"], rows),
    )


def far_section(result: Mapping[str, Any], path: str) -> Section:
    """Return the far protocol with the picture of a path."""
    return success_section("It finds far goals through near ones", result, drawing=path)


def probe_section(result: Mapping[str, Any]) -> Section:
    """Return what the latents know."""
    rows = [
        [name, each["linear"]["r"], each["linear"]["mse"], each["mlp"]["r"], each["mlp"]["mse"]]
        for name, each in result["quantities"].items()
    ]
    frames = result["frames"]
    return Section(
        "It knows where things are",
        "Physical quantities, which it was never told, predicted from frozen latents; episodes are split "
        f"({frames['fit']:,} frames to fit, {frames['choose']:,} to choose, {frames['test']:,} to test); errors in "
        "units of the variance.",
        table=table_of(["quantity", "linear r", "linear MSE", "MLP r", "MLP MSE"], rows),
    )


def surprise_sections(result: Mapping[str, Any], trace: str) -> list[Section]:
    """Return the trace, the benchmark and the psychometric curve."""
    rows = [
        [name.replace("_", " "), "physical" if each["physical"] else "looks", each["auroc"],
         f"{each['auroc_interval'][0]:.3f} to {each['auroc_interval'][1]:.3f}", each["mean_z"], each["tpr_at_5_fpr"],
         each["median_delay"]]
        for name, each in result["perturbations"].items()
    ]  # fmt: skip
    curve = result["psychometric"]
    low, high = result["false_flag_interval"]
    return [
        Section(
            "It knows when it is surprised",
            "Surprise of every frame in standard deviations of what is normal, under the frames of a run whose agent "
            "is teleported at the red line.",
            drawing=trace,
        ),
        Section(
            "What surprises it",
            f"{result['pairs']} matched pairs; of whole nominal episodes {result['false_flag_rate']:.1%} of frames are "
            f"flagged at alpha {result['alpha']:g} (95 % {low:.1%} to {high:.1%}).",
            table=table_of(["event", "kind", "AUROC", "95 %", "mean z", "true positives at 5 %", "delay, steps"], rows),
        ),
        Section(
            "How small a jump it sees",
            "AUROC of teleports against their length, in the environment's units; a jump of nothing gives one half.",
            drawing=charts.curves(
                {"teleport": (curve["distance"], curve["auroc"])},
                x_label="distance",
                y_label="AUROC",
                levels={"chance": 0.5},
            ),
        ),
    ]


def training_sections(run: OpenedRun) -> list[Section]:
    """Return the curves of the loss and of the monitors."""
    train = [record for record in run["metrics"] if record.get("event") == "train"]
    held = [record for record in run["metrics"] if record.get("event") == "evaluation"]
    if not train or not held:
        return []
    steps, held_steps = [r["step"] for r in train], [r["step"] for r in held]
    losses: charts.Series = {
        "training": (steps, charts.smooth([r["prediction_loss"] for r in train])),
        "held out": (held_steps, [r["validation_loss"] for r in held]),
    }
    alive: charts.Series = {
        "spread": (held_steps, [r["spread"] for r in held]),
        "copy ratio": (held_steps, [r["copy_ratio"] for r in held]),
        "evaluation over training error": (held_steps, [r["eval_over_train"] for r in held]),
    }
    return [
        Section(
            "It learns",
            "The error of predicting the next latent, in training (smoothed) and on held-out episodes.",
            drawing=charts.curves(losses, x_label="step", y_label="squared error"),
        ),
        Section(
            "It stays alive",
            "Spread of the latents (SIGReg pulls it to 1; a collapse is near 0), the error over that of saying that "
            "nothing moves, and the error with running BatchNorm statistics over that with the batch's own.",
            drawing=charts.curves(alive, x_label="step", y_label="ratio"),
        ),
    ]


def _figures(result: Mapping[str, Any]) -> list[Figure]:
    best = next(iter(result["near"]["policies"].values()))
    low, high = best["success_interval"]
    figures = [
        Figure("goals reached", f"{best['success']:.0%}", f"95 % {low:.0%} to {high:.0%}, held-out pairs"),
        Figure("random, no-op", _baselines(result["near"]), "on the same pairs"),
        Figure("position, linear r", f"{result['probe']['quantities']['state']['linear']['r']:.3f}", "never told"),
    ]
    teleport = result["surprise"]["perturbations"].get("teleport")
    if teleport:
        low, high = teleport["auroc_interval"]
        figures.append(Figure("teleport AUROC", f"{teleport['auroc']:.3f}", f"95 % {low:.3f} to {high:.3f}"))
    return figures


def _baselines(result: Mapping[str, Any]) -> str:
    policies = result["policies"]
    return f"{policies['random']['success']:.0%}, {policies['no-op']['success']:.0%}"
