"""A diagram of each system, drawn from its settings: ``python docs/gallery/diagrams.py [FOLDER]``.

What a system has (a flow, a discriminator, classes, which prior) is read from
``medvae3d/models/systems``, so that a picture cannot say what a training does not do. SVG, without
any library.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from medvae3d.models.systems.files import laid_over, read_base, read_system, system_names

IMAGES = Path(__file__).resolve().parents[1] / "images"
# Sizes of a box, of the gaps beside and below it, and of the margin.
WIDE, HIGH, BESIDE, BELOW, MARGIN = 138, 46, 34, 28, 14
FILLS = {"data": "#e8eef7", "network": "#fdf0d5", "latent": "#e6f4ea", "judge": "#fbe4e4"}
PRIORS = {
    "mixture": "mixture, fitted last",
    "geometric": "volume of a metric",
    "metric": "volume of the metric",
    "codes": "transformer, fitted last",
    "normal": "standard normal",
    "network": "a network, p(z | c)",
}


@dataclass(frozen=True)
class Box:
    """A box of one or two lines in a cell of the sheet."""

    column: float
    row: float
    lines: tuple[str, ...]
    kind: str

    @property
    def left(self) -> float:
        return MARGIN + self.column * (WIDE + BESIDE)

    @property
    def top(self) -> float:
        return MARGIN + self.row * (HIGH + BELOW)

    @property
    def middle(self) -> tuple[float, float]:
        return self.left + WIDE / 2, self.top + HIGH / 2


@dataclass
class Sheet:
    """Boxes and the arrows between them."""

    boxes: dict[str, Box] = field(default_factory=dict)
    arrows: list[tuple[list[tuple[float, float]], bool, str]] = field(default_factory=list)

    def box(self, name: str, column: float, row: float, kind: str, *lines: str) -> None:
        self.boxes[name] = Box(column, row, lines, kind)

    def across(self, *names: str, dashed: bool = False) -> None:
        """Arrows along a row, from each box to the next."""
        for one, other in zip(names, names[1:], strict=False):
            a, b = self.boxes[one], self.boxes[other]
            self.arrows.append(([(a.left + WIDE, a.middle[1]), (b.left, b.middle[1])], dashed, ""))

    def bent(self, one: str, other: str, dashed: bool = False, shift: float = 0) -> None:
        """An arrow out of the side of a box and into the top or bottom of another."""
        a, b = self.boxes[one], self.boxes[other]
        start = a.left + WIDE if b.left > a.left else a.left
        end = b.top + HIGH if b.top < a.top else b.top
        x, y = b.middle[0] + shift, a.middle[1]
        self.arrows.append(([(start, y), (x, y), (x, end)], dashed, ""))

    def down(self, one: str, other: str, dashed: bool = False) -> None:
        """An arrow from the bottom of a box to the top of one below."""
        a, b = self.boxes[one], self.boxes[other]
        x = a.middle[0]
        self.arrows.append(([(x, a.top + HIGH), (x, b.top)], dashed, ""))

    def below(self, one: str, other: str, row: float, words: str) -> None:
        """An arrow out of the bottom of a box, under all others, and into another from below."""
        a, b = self.boxes[one], self.boxes[other]
        y = MARGIN + row * (HIGH + BELOW) + HIGH / 2
        path = [(a.middle[0], a.top + HIGH), (a.middle[0], y), (b.middle[0], y)]
        self.arrows.append(([*path, (b.middle[0], b.top + HIGH)], False, words))

    def svg(self, title: str) -> str:
        """The sheet as a picture, with what the two sorts of lines mean."""
        corners = [point for path, _, _ in self.arrows for point in path]
        width = max(x for x, _ in corners + [(b.left + WIDE, 0) for b in self.boxes.values()])
        height = max(y for _, y in corners + [(0, b.top + HIGH) for b in self.boxes.values()])
        width, height = width + MARGIN, height + 2 * MARGIN + 20
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
            f'width="{width:g}" height="{height:g}" font-family="sans-serif" font-size="13">',
            f"<title>{escape(title)}</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="#333"/></marker></defs>',
            f'<rect width="{width:g}" height="{height:g}" fill="#ffffff"/>',
        ]
        for path, dashed, words in self.arrows:
            points = " ".join(f"{x:g},{y:g}" for x, y in path)
            style = ' stroke-dasharray="5 4"' if dashed else ""
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="#333" stroke-width="1.3"{style} '
                f'marker-end="url(#tip)"/>'
            )
            if words:
                x, y = (path[1][0] + path[2][0]) / 2, path[1][1] - 5
                parts.append(_text(x, y, words, 11))
        for box in self.boxes.values():
            parts.append(
                f'<rect x="{box.left:g}" y="{box.top:g}" width="{WIDE}" height="{HIGH}" rx="6" '
                f'fill="{FILLS[box.kind]}" stroke="#333"/>'
            )
            x, y = box.middle
            steps = (4.5,) if len(box.lines) == 1 else (-3, 13)
            for number, (line, step) in enumerate(zip(box.lines, steps, strict=True)):
                parts.append(_text(x, y + step, line, 11 if number else 13))
        legend = "solid: in training     dashed: for new volumes"
        parts.append(_text(width / 2, height - MARGIN, legend, 11))
        return "\n".join([*parts, "</svg>", ""])


def _text(x: float, y: float, words: str, size: int) -> str:
    fill = "#000" if size > 11 else "#444"
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="middle" fill="{fill}" '
        f'xml:space="preserve">{escape(words)}</text>'
    )


@dataclass(frozen=True)
class Facts:
    """What the settings of a system say of its parts."""

    kind: str
    vector: bool
    steps: int
    classes: bool
    prior: str
    players: tuple[str, ...]
    codes: int

    @property
    def has_discriminator(self) -> bool:
        return any("Discriminator" in each for each in self.players)

    @property
    def has_classifier(self) -> bool:
        return "LabelPlayer" in self.players

    @property
    def is_introspective(self) -> bool:
        return "IntrospectivePlayer" in self.players


def facts_of(name: str) -> Facts:
    """Reads them from the files of the systems."""
    own = {key: value for key, value in read_system(name).items() if key[:10] != "synthesis#"}
    settings = laid_over(read_base(), own)
    network: dict[str, Any] = settings["network_def"]
    kind = network["_target_"].rpartition(".")[2]
    given = {"rhvae": "metric", "vqvae": "codes", "dcgan": "normal", "cvae_fill": "network"}
    return Facts(
        kind=kind,
        vector=bool(network.get("vector_latent")) or kind == "rhvae",
        steps=int(network.get("num_steps", 0)),
        classes="classes" in network,
        prior=given.get(kind, network.get("prior", "mixture")),
        players=tuple(each["_target_"].rpartition(".")[2] for each in settings["train"]["players"]),
        codes=int(network.get("codes", 0)),
    )


def diagram(name: str) -> str:
    """The diagram of a system as SVG."""
    facts = facts_of(name)
    special = {"pavae": _two_stages, "vae_noise_gan": _driven_gan, "dcgan": _generator}
    sheet = special.get(facts.kind, _joint)(facts)
    return sheet.svg(f"{name}: the parts of the system, and what goes where")


def _latent(facts: Facts, given: str = "x, m") -> tuple[str, str]:
    return f"q(z | {given})", "Gaussian, a vector" if facts.vector else "Gaussian, a map"


def _joint(facts: Facts) -> Sheet:
    """Image and mask from one latent, with whatever stands beside that."""
    sheet = Sheet()
    sheet.box("data", 0, 1, "data", "image and mask", "of a case")
    sheet.box("encoder", 1, 1, "network", "encoder")
    row = ["data", "encoder", "latent"]
    if facts.codes:
        sheet.box("latent", 2, 1, "latent", "nearest codes", f"of {facts.codes}, a grid")
    else:
        sheet.box(
            "latent", 2, 1, "latent", *_latent(facts, "x, m, c" if _told_both(facts) else "x, m")
        )
    if facts.steps:
        flow = "Riemannian flow" if facts.kind == "rhvae" else "Hamiltonian flow"
        sheet.box("flow", 3, 1, "latent", flow, f"{facts.steps} steps")
        row.append("flow")
    last = len(row)
    scales = ("at 1/4, 1/2 and 1", "each fed to the next")
    made = scales if facts.kind == "cvae_multiscale" else ("image and mask", "as distributions")
    sheet.box("decoder", last, 1, "network", "decoder")
    sheet.box("made", last + 1, 1, "data", *made)
    sheet.across(*row, "decoder", "made")
    _told(sheet, facts, last)
    sheet.box("prior", last - 1, 2, "latent", "prior of z", PRIORS[facts.prior])
    sheet.bent("prior", "decoder", dashed=True)
    if facts.kind == "rhvae":
        sheet.box("metric", 3, 0, "latent", "metric G(z)", "made of the cases")
        sheet.down("metric", "flow")
    if facts.has_classifier:
        sheet.box("classifier", 2, 0, "judge", "classifier", "z must not tell y")
        a, b = sheet.boxes["latent"], sheet.boxes["classifier"]
        sheet.arrows.append(([(a.middle[0], a.top), (a.middle[0], b.top + HIGH)], False, ""))
    if facts.has_discriminator:
        sheet.box("judge", last + 2, 1, "judge", "discriminator", "real or made?")
        sheet.across("made", "judge")
        sheet.below("data", "judge", 3, "real cases")
    if facts.is_introspective:
        sheet.below("made", "encoder", 3, "made volumes, which the encoder tells from real ones")
    return sheet


def _told_both(facts: Facts) -> bool:
    return facts.kind in ("cvae", "cvae_multiscale", "cvae_fill")


def _told(sheet: Sheet, facts: Facts, decoder: int) -> None:
    """What decoder, and of some systems the encoder, are told."""
    words = ("attributes c", "volume of each label")
    if facts.classes:
        words = ("class y, attributes c", "of a case")
    if facts.kind == "cvae_fill":
        words = ("what is left, c", "and wanted labels")
    column = decoder + 1 if not _told_both(facts) else 2
    sheet.box("told", column, 0, "data", *words)
    sheet.bent("told", "decoder")
    if _told_both(facts):
        sheet.bent("told", "encoder")


def _two_stages(facts: Facts) -> Sheet:
    """A mask from its attributes, then an image from the mask and what surrounds it."""
    sheet = Sheet()
    for row, what, given in ((1, "mask", "m, a"), (3, "image", "x, b")):
        sheet.box(what, 0, row, "data", what, "of a case")
        sheet.box(f"{what}_encoder", 1, row, "network", "encoder")
        sheet.box(f"{what}_latent", 2, row, "latent", *_latent(facts, given))
        sheet.box(f"{what}_decoder", 3, row, "network", "decoder")
        sheet.box(f"{what}_made", 4, row, "data", what, "as a distribution")
        names = (f"{what}_{part}" for part in ("encoder", "latent", "decoder", "made"))
        sheet.across(what, *names)
        sheet.box(f"{what}_prior", 2, row + 1, "latent", "prior of z", PRIORS[facts.prior])
        sheet.bent(f"{what}_prior", f"{what}_decoder", dashed=True, shift=-16 if row == 1 else 0)
    sheet.box("told", 2, 0, "data", "attributes a", "volume, extent, shape")
    sheet.bent("told", "mask_encoder")
    sheet.bent("told", "mask_decoder")
    sheet.box("context", 4, 2, "data", "b: mask, and what", "surrounds it")
    sheet.down("mask_made", "context", dashed=True)
    sheet.bent("context", "image_decoder", shift=16)
    sheet.box("judge", 5, 3, "judge", "discriminator", "real or made?")
    sheet.across("image_made", "judge")
    sheet.below("image", "judge", 5, "real cases")
    return sheet


def _driven_gan(facts: Facts) -> Sheet:
    """An autoencoder first, then a GAN whose noise is its latent."""
    sheet = Sheet()
    sheet.box("data", 0, 0, "data", "image and mask", "of a case")
    sheet.box("encoder", 1, 0, "network", "encoder", "rests from then on")
    sheet.box("latent", 2, 0, "latent", *_latent(facts))
    sheet.box("decoder", 3, 0, "network", "decoder", "trained first")
    sheet.box("rebuilt", 4, 0, "data", "image and mask", "rebuilt")
    sheet.across("data", "encoder", "latent", "decoder", "rebuilt")
    sheet.box("generator", 3, 1, "network", "generator", "begins as the decoder")
    sheet.box("made", 4, 1, "data", "image and mask", "made")
    sheet.box("judge", 5, 1, "judge", "discriminator", "real or made?")
    a, b = sheet.boxes["latent"], sheet.boxes["generator"]
    path = [(a.middle[0], a.top + HIGH), (a.middle[0], b.middle[1]), (b.left, b.middle[1])]
    sheet.arrows.append((path, False, ""))
    sheet.across("generator", "made", "judge")
    sheet.box("prior", 2, 2, "latent", "prior of z", PRIORS[facts.prior])
    sheet.bent("prior", "generator", dashed=True)
    sheet.below("data", "judge", 3, "real cases")
    return sheet


def _generator(facts: Facts) -> Sheet:
    """A GAN: nothing is encoded."""
    sheet = Sheet()
    sheet.box("prior", 0, 1, "latent", "prior of z", PRIORS[facts.prior])
    sheet.box("decoder", 1, 1, "network", "decoder", "the generator")
    sheet.box("made", 2, 1, "data", "image and mask", "made")
    sheet.box("judge", 3, 1, "judge", "discriminator", "real or made?")
    sheet.across("prior", "decoder", "made", "judge")
    sheet.box("told", 0, 0, "data", "attributes c", "volume of each label")
    sheet.bent("told", "decoder")
    sheet.box("data", 2, 0, "data", "image and mask", "of a case")
    sheet.bent("data", "judge")
    return sheet


if __name__ == "__main__":
    out = Path(sys.argv[1]) if sys.argv[1:] else IMAGES
    for each in system_names():
        place = out / f"model_{each}.svg"
        place.write_text(diagram(each), encoding="utf-8")
        print(place)
