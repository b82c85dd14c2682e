"""What systems there are: the one list that commands, documents and tests read. Needs no torch.

How each is trained stands in ``medvae3d/models/systems``, its mathematics in
``docs/concepts/zoo.md`` and ``docs/concepts/models.md``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from medvae3d.models.systems.files import system_names

STATES = {
    "shipped": "a trained bundle comes with the package",
    "tested": "its equations and its training are tested; no weights come with the package",
    "experimental": "runs and is tested, but its training is known to be fragile or not yet judged",
}
"""What the state of a system means."""


@dataclass(frozen=True)
class Paper:
    """Where a system was described.

    Attributes:
        authors: Family names or full names, parted by commas.
        title: Title.
        venue: Journal or conference.
        year: Year.
        identifier: ``arXiv:...``, ``doi:...`` or ``PMC...``; empty if none is known.
    """

    authors: str
    title: str
    venue: str
    year: int
    identifier: str = ""

    @property
    def key(self) -> str:
        """Key of the BibTeX entry: first author, year, first word of the title."""
        first = self.authors.split(",")[0].split()[-1]
        word = next(w for w in re.findall(r"[A-Za-z]+", self.title) if len(w) > 3)
        return f"{first}{self.year}{word}".lower()

    @property
    def citation(self) -> str:
        """The reference in a line."""
        where = f", {self.identifier}" if self.identifier else ""
        return f"{self.authors}, {self.title}, {self.venue} {self.year}{where}"

    @property
    def bibtex(self) -> str:
        """The reference as BibTeX."""
        kind, _, number = self.identifier.partition(":")
        fields = {
            "author": " and ".join(name.strip() for name in self.authors.split(",")),
            "title": f"{{{self.title}}}",
            "booktitle": self.venue,
            "year": str(self.year),
        }
        if kind == "arXiv":
            fields |= {"eprint": number, "archiveprefix": "arXiv"}
        elif kind == "doi":
            fields["doi"] = number
        elif self.identifier:
            fields["note"] = self.identifier
        lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
        return f"@inproceedings{{{self.key},\n{lines}\n}}"


@dataclass(frozen=True)
class System:
    """One named system.

    Attributes:
        name: In the zoo, and of its file in ``models/systems``.
        title: What it is called.
        summary: What it does, in a line.
        papers: Where it was described, the source of its objective first.
        state: One of `STATES`.
        needs: What cases must carry besides an image: ``mask`` or ``mask and class``.
        tractable: Whether its log-likelihood has an importance-weighted estimate.
        density: Why it has none, or which density the estimate is of.
    """

    name: str
    title: str
    summary: str
    papers: tuple[Paper, ...]
    state: str = "tested"
    needs: str = "mask"
    tractable: bool = True
    density: str = ""

    @property
    def is_trainable(self) -> bool:
        """Whether ``medvae3d train NAME`` knows it."""
        return self.name in system_names()


@dataclass(frozen=True)
class PriorEntry:
    """A prior that latents are drawn from, fitted after training.

    Attributes:
        name: As the study of all systems calls it.
        title: What it is called.
        summary: What it does, in a line.
        papers: Where it was described.
    """

    name: str
    title: str
    summary: str
    papers: tuple[Paper, ...] = ()


KINGMA = Paper(
    "Diederik P. Kingma, Max Welling", "Auto-encoding variational Bayes", "ICLR", 2014,
    "arXiv:1312.6114",
)  # fmt: skip
SOHN = Paper(
    "Kihyuk Sohn, Honglak Lee, Xinchen Yan",
    "Learning structured output representation using deep conditional generative models",
    "NeurIPS", 2015,
)  # fmt: skip
PESTEIE = Paper(
    "Mehran Pesteie, Purang Abolmaesumi, Robert N. Rohling",
    "Adaptive augmentation of medical data using independently conditional variational "
    "auto-encoders",
    "IEEE Transactions on Medical Imaging 38(12):2807-2820", 2019,
)  # fmt: skip
OORD = Paper(
    "Aaron van den Oord, Oriol Vinyals, Koray Kavukcuoglu",
    "Neural discrete representation learning", "NeurIPS", 2017, "arXiv:1711.00937",
)  # fmt: skip
LARSEN = Paper(
    "Anders Boesen Lindbo Larsen, Soren Kaae Sonderby, Hugo Larochelle, Ole Winther",
    "Autoencoding beyond pixels using a learned similarity metric", "ICML", 2016,
    "arXiv:1512.09300",
)  # fmt: skip
RGUIBI = Paper(
    "Rguibi, others",
    "Medical variational autoencoder and generative adversarial network for medical imaging",
    "Indonesian Journal of Electrical Engineering and Computer Science 32(1):494-505", 2023,
)  # fmt: skip
HUANG = Paper(
    "Huaibo Huang, Zhihang Li, Ran He, Zhenan Sun, Tieniu Tan",
    "IntroVAE: introspective variational autoencoders for photographic image synthesis",
    "NeurIPS", 2018, "arXiv:1807.06358",
)  # fmt: skip
DANIEL = Paper(
    "Tal Daniel, Aviv Tamar",
    "Soft-IntroVAE: analyzing and improving the introspective variational autoencoder",
    "CVPR", 2021, "arXiv:2012.13253",
)  # fmt: skip
GAN_WANG = Paper(
    "Gan, Wang", "Adversarially learned variational auto-encoder for oesophageal OCT",
    "Biomedical Optics Express 13(3):1188-1201", 2022, "PMC8973180",
)  # fmt: skip
CATERINI = Paper(
    "Anthony L. Caterini, Arnaud Doucet, Dino Sejdinovic",
    "Hamiltonian variational auto-encoder", "NeurIPS", 2018, "arXiv:1805.11328",
)  # fmt: skip
KEBAILI_JOINT = Paper(
    "Aghiles Kebaili, Jerome Lapuyade-Lahorgue, Pierre Vera, Su Ruan",
    "End-to-end autoencoding architecture for the simultaneous generation of medical images and "
    "corresponding segmentation masks",
    "MICAD", 2023, "arXiv:2311.10472",
)  # fmt: skip
KEBAILI_DISCRIMINATIVE = Paper(
    "Aghiles Kebaili, Jerome Lapuyade-Lahorgue, Pierre Vera, Su Ruan",
    "Discriminative Hamiltonian variational autoencoder for accurate tumor segmentation in "
    "data-scarce regimes",
    "Neurocomputing", 2024, "arXiv:2406.11659",
)  # fmt: skip
CHADEBEC = Paper(
    "Clement Chadebec, Clement Mantoux, Stephanie Allassonniere",
    "Geometry-aware Hamiltonian variational auto-encoder", "arXiv preprint", 2020,
    "arXiv:2010.11518",
)  # fmt: skip
CHADEBEC_AUGMENTATION = Paper(
    "Clement Chadebec, Elina Thibeau-Sutre, Ninon Burgos, Stephanie Allassonniere",
    "Data augmentation in high dimensional low sample size setting using a geometry-based "
    "variational autoencoder",
    "IEEE Transactions on Pattern Analysis and Machine Intelligence", 2022, "arXiv:2105.00026",
)  # fmt: skip
CHADEBEC_GEOMETRIC = Paper(
    "Clement Chadebec, Stephanie Allassonniere",
    "A geometric perspective on variational autoencoders", "NeurIPS", 2022, "arXiv:2209.07370",
)  # fmt: skip
HUO = Paper(
    "Jiayu Huo, Vejay Vakharia, Chengyuan Wu, Ashwini Sharan, Andrew Ko, Sebastien Ourselin, "
    "Rachel Sparks",
    "Brain lesion synthesis via progressive adversarial variational auto-encoder",
    "SASHIMI", 2022, "arXiv:2208.03203",
)  # fmt: skip
RAIS = Paper(
    "Rais, Amroune, Haouam",
    "Medical image generation techniques for data augmentation: Disc-VAE versus GAN", "PAIS", 2024,
)  # fmt: skip
AHMAD = Paper(
    "Ahmad, Sun, You, Palade, Mao",
    "Brain tumor classification using a combination of variational autoencoders and generative "
    "adversarial networks",
    "Biomedicines 10(2):223", 2022, "PMC8869455",
)  # fmt: skip
RADFORD = Paper(
    "Alec Radford, Luke Metz, Soumith Chintala",
    "Unsupervised representation learning with deep convolutional generative adversarial networks",
    "ICLR", 2016, "arXiv:1511.06434",
)  # fmt: skip
TOMCZAK = Paper(
    "Jakub M. Tomczak, Max Welling", "VAE with a VampPrior", "AISTATS", 2018, "arXiv:1705.07120"
)

NO_DENSITY = "the encoder's divergence stands in for a discriminator, so the scale of the "
NO_DENSITY += "likelihood is not learned"
SYSTEMS: Mapping[str, System] = {
    system.name: system
    for system in (
        System(
            "vae", "VAE", "image and mask from one latent; the baseline of every comparison",
            (KINGMA,),
        ),
        System(
            "cvae", "Conditional VAE",
            "told a class and attributes of the mask", (SOHN,), needs="mask and class",
        ),
        System(
            "cvae_fill", "Conditional VAE of regions",
            "makes a region of a volume from what surrounds it, also without its lesion",
            (SOHN,), tractable=False, density="it is that of a region given the rest",
        ),
        System(
            "cvae_multiscale", "Conditional VAE with outputs at three resolutions",
            "each output is fed to the next, for large volumes", (SOHN,),
        ),
        System(
            "icvae", "Independently conditional VAE",
            "a latent that does not tell the class, so that one case can be drawn as either",
            (PESTEIE,), needs="mask and class", state="experimental",
        ),
        System(
            "vqvae", "VQ-VAE with a prior", "a codebook, and a prior over its codes to sample from",
            (OORD,), tractable=False, density="the posterior is a point on a codebook",
        ),
        System(
            "vae_gan", "VAE-GAN", "reconstruction judged by the features of a discriminator",
            (LARSEN, RGUIBI), state="experimental", tractable=False,
            density="there is no likelihood of voxels",
        ),
        System(
            "introvae", "IntroVAE", "the encoder tells real from made by a margin of divergence",
            (HUANG,), state="experimental", tractable=False, density=NO_DENSITY,
        ),
        System(
            "soft_introvae", "Soft-IntroVAE", "the same with exponentials in the place of a margin",
            (DANIEL,), tractable=False, density=NO_DENSITY,
        ),
        System(
            "al_vae", "AL-VAE-style", "Soft-IntroVAE whose judge sees image and mask together",
            (GAN_WANG, DANIEL), tractable=False, density=NO_DENSITY,
        ),
        System(
            "hvae", "Joint Hamiltonian VAE",
            "a Hamiltonian flow moves the latent towards its posterior", (KEBAILI_JOINT, CATERINI),
        ),
        System(
            "dhvae", "Discriminative Hamiltonian VAE",
            "the same with absolute, feature and adversarial errors besides",
            (KEBAILI_DISCRIMINATIVE, CATERINI), state="shipped",
        ),
        System(
            "rhvae", "Riemannian Hamiltonian VAE",
            "the flow follows a metric that is learned with it; samples by the metric's volume",
            (CHADEBEC, CHADEBEC_AUGMENTATION), state="experimental",
        ),
        System(
            "vae_geometric", "VAE with geometric sampling",
            "a plain VAE, sampled by the volume of a metric made of its posteriors",
            (CHADEBEC_GEOMETRIC, KINGMA),
        ),
        System(
            "pavae", "PAVAE-style two stages", "a mask from its attributes, an image from the mask",
            (HUO,), state="shipped", tractable=False,
            density="the two stages have densities of different variables",
        ),
        System(
            "disc_vae", "Disc-VAE", "a VAE in the place of a GAN's generator", (RAIS,),
        ),
        System(
            "vae_noise_gan", "VAE-driven GAN",
            "latents of an autoencoder are the noise that drives a GAN",
            (AHMAD,), state="experimental", tractable=False,
            density="a GAN has none",
        ),
        System(
            "dcgan", "DCGAN", "the control without an encoder: a GAN with the same decoder",
            (RADFORD,), state="experimental", tractable=False, density="a GAN has none",
        ),
    )
}  # fmt: skip
"""All systems by name."""

PRIORS: Mapping[str, PriorEntry] = {
    prior.name: prior
    for prior in (
        PriorEntry("normal", "Standard normal", "what the divergence was taken against", (KINGMA,)),
        PriorEntry("gaussian", "Full Gaussian", "mean and covariance of the training latents"),
        PriorEntry("mixture", "Gaussian mixture", "a mixture over principal components"),
        PriorEntry("vamp", "VampPrior", "a mixture of posteriors of training cases", (TOMCZAK,)),
        PriorEntry("flow", "Normalising flow", "a flow fitted to the training latents"),
        PriorEntry(
            "geometric", "Geometric sampling",
            "a walk by the volume of a metric made of inverse posterior covariances",
            (CHADEBEC_GEOMETRIC,),
        ),
    )
}  # fmt: skip
"""Priors that any latent model may be sampled from, by name."""


PAGES: Mapping[str, str] = {
    "vae": "concepts/models.md",
    "cvae": "concepts/conditional.md#cvae-a-class",
    "cvae_fill": "concepts/conditional.md#cvae-a-region",
    "cvae_multiscale": "concepts/conditional.md#cvae-several-resolutions",
    "icvae": "concepts/conditional.md#icvae-a-latent-apart-from-the-class",
    "vqvae": "concepts/discrete.md",
    "vae_gan": "concepts/zoo.md#vae-gan",
    "introvae": "concepts/zoo.md#introvae",
    "soft_introvae": "concepts/zoo.md#soft-introvae",
    "al_vae": "concepts/zoo.md#al-vae-style",
    "hvae": "concepts/models.md",
    "dhvae": "concepts/models.md",
    "rhvae": "concepts/riemannian.md",
    "vae_geometric": "concepts/riemannian.md",
    "pavae": "concepts/models.md",
    "disc_vae": "concepts/zoo.md#disc-vae",
    "vae_noise_gan": "concepts/zoo.md#vae-driven-gan",
    "dcgan": "concepts/zoo.md#dcgan-and-lsgan",
}
"""Where the mathematics of a system stands, below ``docs``; else on the page of all models."""


def facts() -> list[dict[str, Any]]:
    """Everything that is known of each system, as JSON can hold it."""
    return [
        {
            **{key: value for key, value in asdict(system).items() if key != "papers"},
            "trainable": system.is_trainable,
            "papers": [asdict(paper) | {"bibtex": paper.bibtex} for paper in system.papers],
        }
        for system in SYSTEMS.values()
    ]
