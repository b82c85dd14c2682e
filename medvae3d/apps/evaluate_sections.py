"""The sections of a report: what each is asked, and what is said where one cannot be computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from medvae3d.apps.evaluate_cases import IMAGE, MASK, Frame
from medvae3d.errors import DataListError, MedvaeError, SettingError
from medvae3d.evaluation.cases import Cases
from medvae3d.evaluation.sections import Section

if TYPE_CHECKING:
    from medvae3d.apps.evaluate_model import BundleModel
    from medvae3d.evaluation.lpips import LPIPS

INCLUDED_FEATURES = {
    "radiomics": "radiomics",
    "fixed-network": "fixed network",
    "fixed-network-2.5d": "fixed network, 2.5-D",
}
TRAINED_FEATURES = ("medicalnet", "radimagenet")
# What a section has to have; the others say what they can of what there is.
NEEDS: Mapping[str, tuple[str, ...]] = {
    "realism": (IMAGE,),
    "masks": (MASK,),
    "agreement": (IMAGE, MASK),
}


@dataclass(frozen=True)
class Judged:
    """What the sections are asked about.

    Attributes:
        real: Real cases that a model was, or may have been, trained on.
        synthetic: What is judged.
        reference: Real cases that no model has seen; ``None`` without any.
        frame: Grid, channels and labels of all of them.
        features: Gives the kinds of features to compare by; made when they are first needed.
        seed: Seed of everything that is random.
        model: The model that made the cases, if its bundle is at hand.
        told: Called with what is done and wanted within a section.
        blocked: Why there are no images, or no masks, by ``image`` and ``mask``.
        lpips: File with the weights of the learned perceptual distance.
    """

    real: Cases
    synthetic: Cases
    reference: Cases | None
    frame: Frame
    features: Callable[[], list[Any]]
    seed: int = 0
    model: BundleModel | None = None
    told: Callable[[int, int], None] | None = None
    blocked: Mapping[str, str] = field(default_factory=dict)
    lpips: str | None = None


def _paired(judged: Judged) -> Section:
    from medvae3d.evaluation.paired import paired_section

    made = {name: row for row, name in enumerate(judged.synthetic.names)}
    real = {name: row for row, name in enumerate(judged.real.names)}
    names = [name for name in made if name in real]
    distance, why = _lpips(judged.lpips)
    return paired_section(
        judged.synthetic[[made[name] for name in names]],
        judged.real[[real[name] for name in names]],
        channels=judged.frame.channels,
        labels=judged.frame.labels,
        spacing_mm=judged.frame.spacing_mm,
        seed=judged.seed,
        lpips=distance,
        no_lpips=why,
        without=tuple(judged.blocked),
    )


def _lpips(weights: str | None) -> tuple[LPIPS | None, str]:
    """The learned distance, or why there is none."""
    if weights is None:
        return None, ""
    from medvae3d.evaluation.lpips import LPIPS

    try:
        return LPIPS(weights), ""
    except MedvaeError as error:
        return None, f"not computed: {error}"


def _realism(judged: Judged) -> Section:
    from medvae3d.evaluation.realism import realism_section

    return realism_section(
        judged.real,
        judged.synthetic,
        judged.features(),
        spacing_mm=judged.frame.spacing_mm,
        seed=judged.seed,
        progress=judged.told,
    )


def _diversity(judged: Judged) -> Section:
    from medvae3d.evaluation.diversity import diversity_section

    return diversity_section(
        judged.real,
        judged.synthetic,
        spacing_mm=judged.frame.spacing_mm,
        features=judged.features(),
        seed=judged.seed,
    )


def _masks(judged: Judged) -> Section:
    from medvae3d.evaluation.masks import masks_section

    _require_masks(judged)
    return masks_section(
        judged.real,
        judged.synthetic,
        labels=judged.frame.labels,
        channels=judged.frame.channels,
        spacing_mm=judged.frame.spacing_mm,
        seed=judged.seed,
    )


def _agreement(judged: Judged) -> Section:
    from medvae3d.evaluation.agreement import agreement_section

    _require_masks(judged)
    return agreement_section(
        judged.real,
        judged.reference,
        judged.synthetic,
        labels=judged.frame.labels,
        seed=judged.seed,
        progress=judged.told,
    )


def _privacy(judged: Judged) -> Section:
    from medvae3d.evaluation.privacy import privacy_section

    # A model of image and mask says nothing of one of them.
    model = None if judged.blocked else judged.model
    return privacy_section(
        judged.real,
        judged.synthetic,
        judged.reference,
        encode=None if model is None else model.encode,
        log_likelihood=None if model is None else model.log_likelihood,
        seed=judged.seed,
        progress=judged.told,
    )


def _require_masks(judged: Judged) -> None:
    if not judged.frame.labels:
        raise DataListError(
            "no case of any list has a label, so there are no masks to judge. Add labels to the "
            "data lists."
        )


Compute = Callable[[Judged], Section]
SECTIONS: dict[str, Compute] = {
    "paired": _paired,
    "realism": _realism,
    "diversity": _diversity,
    "masks": _masks,
    "agreement": _agreement,
    "privacy": _privacy,
}
"""What computes each section, in the order of the report."""


def computed(name: str, judged: Judged) -> Section:
    """A section, or one that says why it could not be computed."""
    missing = [kind for kind in NEEDS.get(name, ()) if kind in judged.blocked]
    if not missing and len(judged.blocked) == len((IMAGE, MASK)):
        missing = list(judged.blocked)
    if missing:
        reasons = " ".join(dict.fromkeys(judged.blocked[kind] for kind in missing))
        return Section(name, name.capitalize(), not_computed=reasons)
    try:
        section = SECTIONS[name](judged)
    except MedvaeError as error:
        return Section(name, name.capitalize(), not_computed=str(error))
    for kind, reason in judged.blocked.items():
        section.warnings.insert(0, f"Computed without {kind}s: {reason}")
    return section


def chosen_sections(
    sections: Sequence[str] | str | None, *, paired: bool, needs_agreement: bool
) -> tuple[str, ...]:
    """The sections that are wanted, in their order.

    Raises:
        SettingError: If one is unknown, or does not go with the other settings.
    """
    if sections is None:
        return tuple(name for name in SECTIONS if name != "paired" or paired)
    words = sections.split(",") if isinstance(sections, str) else list(sections)
    wanted = [word.strip() for word in words if word.strip()]
    unknown = [name for name in wanted if name not in SECTIONS]
    if unknown or not wanted:
        raise SettingError(
            f"sections are {', '.join(wanted) or 'none'}; allowed are {', '.join(SECTIONS)}. "
            f"Name some of them with commas, or leave --sections out for all."
        )
    if "paired" in wanted and not paired:
        raise SettingError(
            "the section paired compares cases of the same name, which has to be said: add "
            "--paired if synthetic cases are reconstructions of real ones."
        )
    if needs_agreement and "agreement" not in wanted:
        raise SettingError(
            "the bad pairs are found by the section agreement, which is not among the sections "
            "asked for. Add it, or leave --filter away."
        )
    return tuple(name for name in SECTIONS if name in wanted)


def make_features(names: Sequence[str]) -> list[Any]:
    """Makes what cases are compared by, each computed once for each set of cases.

    One whose weights are missing, or of another network, says so when it is asked, and holds up
    none of the others.

    Args:
        names: ``radiomics``, ``fixed-network``, ``fixed-network-2.5d``, or a trained network with
            its weights, such as ``medicalnet=resnet_50.pth``.
    """
    from medvae3d.evaluation.feature_networks import trained_features
    from medvae3d.evaluation.features import Remembered, Unavailable, included_features

    made: list[Any] = []
    for name in names:
        kind, _, path = name.partition("=")
        if path:
            try:
                made.append(Remembered(trained_features(kind, path)))  # type: ignore[arg-type]
            except MedvaeError as error:
                made.append(Unavailable(kind, error))
        else:
            made += included_features([INCLUDED_FEATURES[kind]])
    return made


def feature_names(features: Sequence[str] | str) -> tuple[str, ...]:
    """Reads names of features, without loading anything.

    Raises:
        SettingError: If one is unknown, or lacks its weights.
    """
    words = features.split(",") if isinstance(features, str) else list(features)
    names = tuple(word.strip() for word in words if word.strip())
    for name in names:
        kind, _, path = name.partition("=")
        if not (kind in INCLUDED_FEATURES and not path or kind in TRAINED_FEATURES and path):
            raise SettingError(
                f"features are {name!r}; allowed are {', '.join(INCLUDED_FEATURES)}, and "
                f"{', '.join(f'{each}=FILE' for each in TRAINED_FEATURES)} with the weights. "
                f"Several go with commas."
            )
    if not names:
        raise SettingError("no features are named; write --features radiomics.")
    return names
