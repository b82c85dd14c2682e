"""What a study of generators has to show: gains, copies, sharpness, what noise does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medvae3d.evaluation.sections import Light, Section, Verdict
from medvae3d.studies.classification.claims import (
    difference,
    light_of,
    mean_of,
    named,
    not_done,
    where_of,
    words_of,
)
from medvae3d.studies.classification.presets import parts_of
from medvae3d.studies.classification.results import Arm

# A copy check that calls one in a hundred unseen cases a copy is not worried by five samples.
MOST_COPIES = 0.05


def copies(made: Section, arms: Sequence[Arm], classes: Sequence[str]) -> None:
    """Whether the images of each generator are copies of training images."""
    claim = "synthetic images are no copies"
    rule = (
        f"green if the share nearer to a training case than 1 in 100 of these to another is at "
        f"most {MOST_COPIES:.0%}"
    )
    known: dict[tuple[str, int], Arm] = {}
    for arm in arms:
        base, variant = parts_of(arm.name)
        if base in ("synthetic", "only") and "copies" in arm.cells[0]:
            # Arms of one generator and number of cases have the same images.
            known.setdefault((variant, arm.n), arm)
    if not known:
        not_done(made, claim, "synthetic")
    for (variant, n), arm in known.items():
        shares = [[cell["copies"][k] for k in ("samples", "unseen")] for cell in arm.cells]
        made_share, unseen = np.mean(shares, axis=0)
        light = Light.GREEN if made_share <= MOST_COPIES else Light.RED
        words = f"{made_share:.1%} of synthetic and {unseen:.1%} of unseen real cases"
        of = f"{variant}, " if variant else ""
        made.verdicts.append(Verdict(f"{claim} ({of}n = {n})", light, words, rule))


def gain_of_each(made: Section, arms: Sequence[Arm], classes: Sequence[str]) -> None:
    """What the images of each generator do for the classifier."""
    kinds = {"synthetic": "images of {}", "adaptive": "images of {}, more of the weaker class,"}
    names = dict.fromkeys(arm.name for arm in arms if parts_of(arm.name)[0] in kinds)
    if not names:
        not_done(made, "images of a generator do better than none", "synthetic")
    for name in names:
        base, variant = parts_of(name)
        of = kinds[base].format(variant or "the system")
        difference(made, arms, name, f"{of} do better than none")


def quality(made: Section, arms: Sequence[Arm], classes: Sequence[str]) -> None:
    """A table of what images of each generator are like, and whether all are of one size."""
    columns = ("sharpness", "psnr", "kernel_distance", "decoder_parameters", "twice")
    table = {
        f"{arm.name} ({where_of(arm)})": {
            column: mean_of([cell["quality"].get(column) for cell in arm.cells])
            for column in columns
        }
        for arm in arms
        if all("quality" in cell for cell in arm.cells)
    }
    made.tables["Images of the generators"] = table
    sizes = {
        cell["quality"]["decoder_parameters"]
        for arm in arms
        for cell in arm.cells
        if "quality" in cell
    }
    made.verdicts.append(
        Verdict(
            "all generators have decoders of one size",
            Light.GREEN if len(sizes) == 1 else Light.RED if sizes else Light.GREY,
            f"{', '.join(map(str, sorted(sizes)))} parameters",
            "green if so",
        )
    )


def sharper(made: Section, arms: Sequence[Arm], classes: Sequence[str]) -> None:
    """Whether a discriminator makes images sharper without spoiling what is rebuilt."""
    claim = "with the discriminator, images are sharper and rebuilt no more than 1 dB worse"
    rule = "green if both hold for the means over seeds, red if one does not"
    for one in named(arms, "synthetic"):
        for two in named(arms, "synthetic-vae"):
            if (one.n, one.ratio) != (two.n, two.ratio):
                continue
            a, b = (
                {k: np.mean([c["quality"][k] for c in arm.cells]) for k in ("sharpness", "psnr")}
                for arm in (one, two)
            )
            holds = a["sharpness"] > b["sharpness"] and a["psnr"] >= b["psnr"] - 1
            words = (
                f"sharpness {a['sharpness']:.3f} and {b['sharpness']:.3f} of real images, PSNR "
                f"{a['psnr']:.2f} and {b['psnr']:.2f} dB"
            )
            light = Light.GREEN if holds else Light.RED
            made.verdicts.append(Verdict(f"{claim} ({where_of(one)})", light, words, rule))
    if not named(arms, "synthetic") or not named(arms, "synthetic-vae"):
        not_done(made, claim, "synthetic and synthetic-vae")


def noise_counts(made: Section, arms: Sequence[Arm], classes: Sequence[str]) -> None:
    """Whether the noise of a posterior makes another image."""
    claim = "two draws from the posterior of one training image are two images"
    values = [
        cell["quality"]["twice"]
        for arm in arms
        for cell in arm.cells
        if cell.get("quality", {}).get("twice") is not None
    ]
    if not values:
        not_done(made, claim, "a generator that starts from posteriors")
        return
    mean = float(np.mean(values))
    words = f"{mean:.2f} of the distance between images of two training cases"
    light = Light.GREEN if mean >= 0.1 else Light.AMBER if mean > 0 else Light.RED
    rule = "green from 0.1 on, amber above 0, red if they are the same"
    made.verdicts.append(Verdict(claim, light, words, rule))


def vanishes(made: Section, arms: Sequence[Arm], classes: Sequence[str]) -> None:
    """Whether a gain is one of the classes and not of more images."""
    claim = "images of classes dealt out anew do not help"
    rule = "green if the 95 % interval of the difference is not above 0; grey without an interval"
    found = [
        arm
        for arm in arms
        if parts_of(arm.name)[0] == "synthetic_shuffled" and "auc" in arm.against
    ]
    if not found:
        not_done(made, claim, "synthetic_shuffled")
    for arm in found:
        paired = arm.against["auc"]
        light = light_of(paired)
        light = {Light.GREEN: Light.RED, Light.GREY: Light.GREY}.get(light, Light.GREEN)
        made.verdicts.append(Verdict(f"{claim} ({where_of(arm)})", light, words_of(paired), rule))
