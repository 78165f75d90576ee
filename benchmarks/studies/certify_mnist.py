"""The shipped MNIST certificate, whole and from the command line, over orders of the examples.

    python benchmarks/studies/certify_mnist.py --data ../shared/data

The prior is one for all seeds, and a seed orders the examples of training, which the decoder never sees: every row is a
certificate by itself. That they hold all at once costs nothing more, since one draw of delta covers a prior.
"""

from __future__ import annotations

from certify_common import STUDIES, Study, arguments, certified_row, summarise

NAME = "certify_mnist"
SEEDS = (0, 1, 2)
QUICK = ["--steps", "60", "--quantise-steps", "40"]


def main() -> None:
    """Certify, verify and summarise."""
    given = arguments(main.__doc__ or "")
    data = str(given.data / "images" / "mnist")
    study = Study(given.out or STUDIES / f"{NAME}.json", NAME, {"subject": "mnist", "quick": given.quick})
    for seed in SEEDS[: 1 if given.quick else None]:
        if given.only is None or int(given.only) == seed:
            out = given.work / f"{NAME}{'-quick' if given.quick else ''}-{seed}"
            flags = ["mnist", "--data", data, "--seed", str(seed), *(QUICK if given.quick else [])]
            study.cell({"seed": seed}, lambda flags=flags, out=out: certified_row(flags, out, data))
    names = ["bound", "train_risk", "holdout.risk", "holdout.bound", "bits.total", "cpu_seconds", "verify_cpu_seconds"]
    study.write(summarise(study.rows, names))


if __name__ == "__main__":
    main()
