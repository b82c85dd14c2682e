r"""What models say of a scan without a mask: how unusual it is, and how uncertain a segmenter is.

How unusual a scan :math:`x` is, is the negative bound on its evidence under a joint model that was
not shown a mask, in nats per voxel, :math:`-\mathcal L(x) / N`. How uncertain a segmenter is, is
the entropy of its probabilities, :math:`-\sum_c p_c \log p_c`, averaged over the voxels that it
takes for a label or might.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.inferers import SlidingWindowInferer
from monai.transforms import Compose
from torch import Tensor, nn

from medvae3d.apps.bundle import Bundle, load_bundle
from medvae3d.apps.bundle_files import content, load_weights, parser_of
from medvae3d.apps.trust import trusting
from medvae3d.data.preparation import FILL, case_transforms
from medvae3d.errors import MedvaeError, UnreadableFileError
from medvae3d.evaluation.evidence import log_weights
from medvae3d.models.latent import LatentModel
from medvae3d.training.loading import collate

DRAWS = 4
# Probability of any label from which a voxel counts.
MIGHT_BE = 0.05
POOLED = 6


def prepared(steps: Compose, **files: str) -> Any:
    """A case as networks see it.

    Raises:
        UnreadableFileError: If a file cannot be read.
    """
    try:
        return steps(files)
    except Exception as error:  # readers raise many types for broken files
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, MedvaeError):
            raise cause from None
        raise UnreadableFileError(
            f"{', '.join(files.values())} cannot be used ({str(cause).splitlines()[0][:200]}). "
            f"Correct it, or take it out of the studies."
        ) from error


@dataclass(frozen=True)
class GeneratorJudge:
    """A generator's view of scans.

    Attributes:
        bundle: The generator.
    """

    bundle: Bundle

    @classmethod
    def load(cls, root: Path) -> GeneratorJudge:
        """Loads the bundle of a folder."""
        return cls(load_bundle(root, trust=True))

    @property
    def is_joint(self) -> bool:
        """Whether it knows whole scans, and so can say how unusual one is."""
        return isinstance(self.bundle.network, LatentModel)

    def unusualness(self, image: str) -> float:
        """Negative bound on the evidence of a scan in nats per voxel that was observed."""
        batch = self._batch(image)
        batch |= {"mask": torch.zeros_like(batch["image"][:, :1]), "mask_valid": torch.zeros(1)}
        batch["mask_valid"] = batch["mask_valid"].reshape(1, 1, 1, 1, 1)
        found = log_weights(self.bundle.network, [batch], DRAWS, with_flow=False)  # type: ignore[arg-type]
        return -float(found.importance_weighted[0] / found.voxels[0])

    def misfit(self, pairs: Sequence[Mapping[str, Any]]) -> float:
        """The same for scans with their masks, on average."""
        values = []
        for pair in pairs:
            batch = self._batch(pair["image"], pair["label"])
            found = log_weights(self.bundle.network, [batch], DRAWS, with_flow=False)  # type: ignore[arg-type]
            values.append(-float(found.importance_weighted[0] / found.voxels[0]))
        return sum(values) / len(values)

    @torch.no_grad()
    def features(self, images: Sequence[str]) -> Tensor:
        """Means of the posterior of each scan, or its coarse image without a joint model."""
        rows = []
        for image in images:
            batch = self._batch(image)
            network = self.bundle.network
            if isinstance(network, LatentModel):
                row = network.encode(batch, network.condition(batch)).mean
            else:
                row = F.adaptive_avg_pool3d(batch["image"], POOLED)
            rows.append(row.flatten())
        width = len(rows[0]) if rows else 1
        return torch.stack(rows) if rows else torch.zeros(0, width)

    def _batch(self, image: str, label: str | None = None) -> dict[str, Any]:
        if label is None:
            case = prepared(self._steps(False), image=image)
        else:
            case = prepared(self._steps(True), image=image, label=label)
        case.setdefault("label", torch.zeros_like(torch.as_tensor(case["image"])[:1]))
        batch = collate([case])
        if label is None:
            del batch["mask"]
        return batch

    def _steps(self, with_label: bool) -> Compose:
        recipe = self.bundle.recipe
        schemes = [{"intensity": each} for each in recipe.intensities.to_config()]
        labels = dict(recipe.labels) if with_label else None
        return Compose(case_transforms(schemes, recipe.spacing, recipe.spatial_shape, labels))


@dataclass(frozen=True)
class Found:
    """What a segmenter finds in a scan.

    Attributes:
        uncertainty: Mean entropy in nats of the voxels that are a label or might be; 0 without any.
        volume_ml: Of each label by its name.
    """

    uncertainty: float
    volume_ml: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class SegmenterJudge:
    """A trained segmenter.

    Attributes:
        network: Gives logits.
        channels: Of the image, as in its configuration.
        labels: Names and values.
        spacing: Of its voxels in mm.
        window: Voxels that it looks at.
    """

    network: nn.Module = field(repr=False)
    channels: Sequence[Mapping[str, Any]]
    labels: Mapping[str, int]
    spacing: Sequence[float]
    window: Sequence[int]

    @classmethod
    def load(cls, root: Path) -> SegmenterJudge:
        """Loads a segmentation bundle.

        Raises:
            BundleError: If it has no weights, or other ones.
        """
        config = root / "configs" / "inference.json"
        ids = ("network_def", "channels", "labels", "spacing", "window")
        with trusting(True):  # the server executes it anyway
            parser = parser_of(config, root)
        facts = content(parser, ids, config)
        network = facts.pop("network_def")
        load_weights(network, root / "models" / "model.pt")
        return cls(network.eval(), **facts)

    def find(self, image: str) -> Found:
        """What is in a scan, and how uncertain that is."""
        steps = Compose(case_transforms(self.channels, self.spacing, None))
        p = self._probabilities(torch.as_tensor(prepared(steps, image=image)["image"]))
        entropy = -(p * p.clamp_min(1e-12).log()).sum(0)
        might_be = p[0] < 1 - MIGHT_BE
        found = p.argmax(0)
        ml = float(torch.tensor(self.spacing).prod()) / 1000
        volumes = {n: float((found == v).sum()) * ml for n, v in self.labels.items() if v}
        uncertainty = float(entropy[might_be].mean()) if bool(might_be.any()) else 0.0
        return Found(uncertainty, volumes)

    def dice(self, pairs: Sequence[Mapping[str, Any]]) -> float:
        """Mean Dice over labels and scans, at the segmenter's own voxels."""
        steps = Compose(case_transforms(self.channels, self.spacing, None, self.labels))
        scores = []
        for pair in pairs:
            case = prepared(steps, image=pair["image"], label=pair["label"])
            made = self._probabilities(torch.as_tensor(case["image"])).argmax(0)
            real = torch.as_tensor(case["label"])[0]
            for value in self.labels.values():
                a, b = made == value, real == value
                if value and bool(b.any()):
                    scores.append(2 * float((a & b).sum()) / float(a.sum() + b.sum()))
        return sum(scores) / max(1, len(scores))

    @torch.no_grad()
    def _probabilities(self, image: Tensor) -> Tensor:
        look = SlidingWindowInferer(
            list(self.window), 1, 0.25, "gaussian", padding_mode="constant", cval=FILL
        )
        logits = look(image[None].float(), self.network)
        return torch.as_tensor(logits)[0].softmax(0)
