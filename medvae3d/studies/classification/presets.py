"""Presets: one entry for each applied system, over the same runner.

A preset chooses arms, classifier, generator and settings, and names what its study has to show. A
further system is one more entry that names a function of the zoo.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from medvae3d.errors import SettingError
from medvae3d.studies.classification.classifiers import ClassifierSettings
from medvae3d.studies.classification.generators import GeneratorSettings
from medvae3d.studies.classification.selection import SelectionSettings
from medvae3d.studies.classification.self_learning import SelfLearningSettings
from medvae3d.studies.classification.sources import TableForm

REFERENCE = "classical"


@dataclass(frozen=True)
class Preset:
    """A study, but for its data.

    Attributes:
        text: What is compared, in a sentence.
        arms: Its arms; see `medvae3d.studies.classification.work`.
        task: The task it is meant for, if it is one that has a name.
        seeds: Repeats of every cell.
        n: Numbers of real training cases of each class; ``all`` for as many as there are.
        ratios: Extra cases for each real one.
        classifier: Size and training of all classifiers.
        generator: Model and training of the generator of ``synthetic`` and ``only``.
        generators: Further ones by name, for arms such as ``synthetic-NAME``.
        selection: Settings of the arms ``selected`` and ``random``.
        self_learning: Settings of the arms ``self_learning`` and ``retrained``.
        table: How cases of a data list with classes are read.
        shows: Names of what the study has to show; see `medvae3d.studies.classification.shown`.
        after: The work in whose style it is.
    """

    text: str
    arms: tuple[str, ...]
    task: str | None = None
    seeds: int = 5
    n: tuple[str, ...] = ("all",)
    ratios: tuple[float, ...] = (1.0,)
    classifier: ClassifierSettings = field(default_factory=ClassifierSettings)
    generator: GeneratorSettings = field(default_factory=GeneratorSettings)
    generators: Mapping[str, GeneratorSettings] = field(default_factory=dict)
    selection: SelectionSettings = field(default_factory=SelectionSettings)
    self_learning: SelfLearningSettings = field(default_factory=SelfLearningSettings)
    table: TableForm = field(default_factory=TableForm)
    shows: tuple[str, ...] = ()
    after: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values of what decides over the result of a cell."""
        return {
            "classifier": self.classifier.to_dict(),
            "generator": self.generator.to_dict(),
            "generators": {name: each.to_dict() for name, each in self.generators.items()},
            "selection": self.selection.to_dict(),
            "self_learning": self.self_learning.to_dict(),
        }

    def of_arm(self, arm: str) -> GeneratorSettings:
        """The generator of an arm, by what follows the hyphen of its name."""
        variant = parts_of(arm)[1]
        return self.generators[variant] if variant else self.generator


def parts_of(arm: str) -> tuple[str, str]:
    """What an arm is fed with, and the name of its generator; empty for that of the preset."""
    base, _, variant = arm.partition("-")
    return base, variant


# No grain: sharpness and noise of the decoders themselves are compared.
BARE: Mapping[str, Any] = {"grain_width": 0}
NORMAL: Mapping[str, Any] = {**BARE, "components": 0}

DEFAULT = Preset(
    text="all plain arms",
    arms=("real", REFERENCE, "copies", "noise", "shuffled", "synthetic", "only"),
    seeds=3,
    shows=("controls", "balance"),
)

PRESETS: Mapping[str, Preset] = {
    "endovae": Preset(
        text="one VAE a class: real alone, synthetic alone, both",
        arms=(REFERENCE, "only", "synthetic"),
        shows=("only_above_chance", "gap_to_real", "gain_of_both", "balance", "copies", "seeds"),
        after="Diamantis, Gatoula, Iakovidis, EndoVAE, IVMSP 2022",
    ),
    "generative_active_learning": Preset(
        text="images that a VAE finds similar to real ones go back into training, in cycles",
        arms=(REFERENCE, "synthetic", "random", "selected"),
        shows=("against_random", "cycles", "share", "balance", "seeds"),
        after="Lee et al., IEEE CAI 2024",
    ),
    "self_learning": Preset(
        text="an LSTM over slices learns from VAE images that it has labelled itself",
        arms=(REFERENCE, "retrained", "self_learning", "slices_shuffled"),
        classifier=ClassifierSettings("slices", (8, 16, 32)),
        shows=("slice_order", "rounds", "label_noise", "seeds"),
        after="Naga Srinivasu et al., J. Healthcare Engineering 2023",
    ),
    "scanpath": Preset(
        text="a VAE a class on maps drawn from paths of the eye",
        task="scanpath",
        arms=("real", REFERENCE, "synthetic", "only"),
        classifier=ClassifierSettings(augmentation="shift_and_noise"),
        generator=GeneratorSettings(sizes={"latent_channels": 12}),
        shows=("without_augmentation", "gain_of_both", "balance", "copies", "seeds"),
        after="Elbattah et al., J. Imaging 2021",
    ),
    "disc_vae": Preset(
        text="a VAE in the place of a GAN's generator, beside a VAE and a DCGAN of its size",
        arms=(REFERENCE, "synthetic", "synthetic-vae", "synthetic-dcgan"),
        # Chosen on validation cases of tumour_patch: 0.01 is no sharper than none, 0.3 is noise.
        generator=GeneratorSettings(sizes=BARE, recipe="disc_vae", adversarial_weight=0.1),
        generators={
            "vae": GeneratorSettings(sizes=BARE),
            "dcgan": GeneratorSettings("dcgan", BARE, recipe="gan"),
        },
        shows=("sharper", "quality", "gain_of_each", "balance", "copies", "seeds"),
        after="Rais, Amroune, Haouam, PAIS 2024",
    ),
    "vae_noise_gan": Preset(
        text="a GAN whose noise is the latent of a VAE, from three sources",
        arms=(
            REFERENCE,
            "synthetic",
            "synthetic-normal",
            "synthetic-mixture",
            "synthetic_shuffled",
        ),
        generator=GeneratorSettings(
            "vae_noise_gan", BARE, recipe="noise_gan_posterior", noise="posterior"
        ),
        generators={
            "normal": GeneratorSettings("vae_noise_gan", NORMAL, recipe="noise_gan"),
            "mixture": GeneratorSettings("vae_noise_gan", BARE, recipe="noise_gan"),
        },
        shows=(
            "gain_of_each",
            "vanishes",
            "noise_counts",
            "quality",
            "balance",
            "copies",
            "seeds",
        ),
        after="Ahmad et al., Biomedicines 2022",
    ),
    "icvae": Preset(
        text="one VAE told the class, its latent apart from it: as many images of each class, or "
        "more of the one that a classifier misses",
        arms=(REFERENCE, "synthetic", "adaptive"),
        generator=GeneratorSettings("icvae", recipe="icvae"),
        shows=("policy", "against_uniform", "gain_of_each", "quality", "copies", "seeds"),
        after="Pesteie, Abolmaesumi, Rohling, IEEE TMI 2019",
    ),
    "rhvae_small_sample": Preset(
        text="a Riemannian VAE a class, beside plain VAEs with three priors",
        arms=(
            REFERENCE,
            "synthetic",
            "synthetic-normal",
            "synthetic-mixture",
            "synthetic-geometric",
        ),
        n=("20", "all"),
        ratios=(1.0, 5.0),
        generator=GeneratorSettings(
            "rhvae", {**BARE, "latent_channels": 10, "hidden": 64}, recipe="riemannian"
        ),
        generators={
            "normal": GeneratorSettings(sizes={**NORMAL, "latent_channels": 10}),
            "mixture": GeneratorSettings(sizes={**BARE, "latent_channels": 10}),
            "geometric": GeneratorSettings(
                sizes={**BARE, "latent_channels": 10, "prior": "geometric"}
            ),
        },
        shows=("gain_of_each", "quality", "balance", "copies", "seeds"),
        after="Chadebec et al., IEEE TPAMI 2022; geometric sampling after arXiv:2209.07370",
    ),
    "adni": Preset(
        text="Alzheimer's disease against cognitively normal, for those who have ADNI and AIBL",
        arms=(REFERENCE, "copies", "noise", "only", "synthetic"),
        seeds=20,
        n=("50", "all"),
        ratios=(1.0, 5.0, 10.0, 20.0),
        classifier=ClassifierSettings(
            "cnn", (8, 16, 32, 64, 128), dropout=0.5, steps=2000, batch_size=8, learning_rate=1e-4
        ),
        generator=GeneratorSettings(
            sizes={"channels": (8, 16, 32, 64), "latent_channels": 64}, steps=4000, batch_size=4
        ),
        # 1 mm, 169 x 208 x 179, halved to 84 x 104 x 89 in the original; here padded to even sides.
        table=TableForm(
            spacing_mm=(2.0, 2.0, 2.0),
            shape=(88, 104, 96),
            intensity={"kind": "percentile", "low": 0.0, "high": 100.0},
            classes=("CN", "AD"),
        ),
        shows=("gain_of_both", "only_above_chance", "balance", "copies", "seeds"),
        after="Chadebec et al., IEEE TPAMI 2022; T1 after N4 and linear registration to MNI, "
        "training 210 AD and 243 CN, validation 52 and 60, testing 100 and 100",
    ),
}


def preset_of(name: str | None) -> Preset:
    """A preset by its name; the default without one.

    Raises:
        SettingError: If there is none of that name.
    """
    if name is None:
        return DEFAULT
    if name not in PRESETS:
        raise SettingError(
            f"there is no preset {name!r}; there are {', '.join(PRESETS)}. Name one of them with "
            f"--preset, or leave it out."
        )
    return PRESETS[name]
