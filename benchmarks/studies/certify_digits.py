"""The built-in digits certificate over orders of the examples, and its control: random labels, which must be vacuous.

    python benchmarks/studies/certify_digits.py

The prior is one for all seeds, and a seed orders the examples of training, which the decoder never sees. For the
control the seed also draws the labels.
"""

from __future__ import annotations

from certify_common import STUDIES, Study, arguments, certified_row, summarise

NAME = "certify_digits"
SEEDS = (0, 1, 2)
QUICK = ["--steps", "60", "--quantise-steps", "40"]
KINDS: dict[str, list[str]] = {"real": [], "random": ["--random-labels"]}


def main() -> None:
    """Certify, verify and summarise."""
    given = arguments(main.__doc__ or "")
    study = Study(given.out or STUDIES / f"{NAME}.json", NAME, {"subject": "digits", "quick": given.quick})
    for labels, flags in KINDS.items():
        for seed in SEEDS[: 1 if given.quick else None]:
            if given.only in (None, f"{labels}-{seed}"):
                out = given.work / f"{NAME}{'-quick' if given.quick else ''}-{labels}-{seed}"
                run = ["digits", "--seed", str(seed), *flags, *(QUICK if given.quick else [])]
                key = {"labels": labels, "seed": seed}
                study.cell(key, lambda r=run, o=out: certified_row(r, o, str(o / "data.npz")))
    rows = {labels: [row for row in study.rows if row["labels"] == labels] for labels in KINDS}
    names = ["bound", "train_risk", "bits.total", "cpu_seconds"]
    beside = ["holdout.risk", "holdout.bound"]
    study.write(
        {
            labels: summarise(found, [*names, *(beside if labels == "real" else [])])
            | {"all_vacuous": all(row["vacuous"] for row in found)}
            for labels, found in rows.items()
            if found
        }
    )


if __name__ == "__main__":
    main()
