r"""The parts of a bundle as plain networks of tensors, for other runtimes.

A decoder takes a latent in the units of the prior, :math:`u \sim p(u)`, divides it by the latent
scale and gives the heads' parameters; an encoder gives mean and deviation in the same units. What
is to be known of scales and of the training set's attributes lies inside, so that nobody can forget
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from medvae3d.errors import BundleError
from medvae3d.models.latent import LatentModel
from medvae3d.models.statistics import TrainingStatistics
from medvae3d.models.two_stage import TwoStageModel

# Names that neither an input nor, in ONNX, a node of the graph has.
OUTPUTS = {"image": "made_image", "mask": "mask_logits"}


@dataclass(frozen=True, eq=False)
class Part:
    """A network that is exported.

    Attributes:
        name: ``decoder``, ``encoder``, ``shape_decoder`` or ``shape_encoder``.
        network: Takes tensors in the order of ``inputs`` and gives a tuple in that of ``outputs``.
        inputs: Name and shape of each input; the first axis, the batch, may have any length.
        outputs: Names.
    """

    name: str
    network: nn.Module = field(repr=False)
    inputs: dict[str, tuple[int, ...]]
    outputs: tuple[str, ...]

    def example(self, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Inputs of the right shapes: noise, and a box for a mask."""
        generator = torch.Generator().manual_seed(seed)
        made = []
        for name, shape in self.inputs.items():
            values = 0.5 * torch.randn(batch, *shape[1:], generator=generator)
            if name == "mask":
                values = torch.zeros_like(values)
                box = [slice(n // 3, n // 3 + max(1, n // 4)) for n in shape[2:]]
                values[(slice(None), slice(None), *box)] = 1
            made.append(values)
        return tuple(made)


class Told(nn.Module):
    """What both have in common: collecting what the model is told.

    Args:
        model: The latent model.
        statistics: What attributes are standardised by.
        names: Names of the inputs, in order.
    """

    def __init__(
        self, model: LatentModel, statistics: TrainingStatistics, names: Sequence[str]
    ) -> None:
        super().__init__()
        self.model = model
        self.statistics = statistics
        self.names = tuple(names)

    def batch(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """Inputs by name, attributes as the networks are told them."""
        found = dict(zip(self.names, tensors, strict=True))
        if "attributes" in found:
            found["attributes"] = self.statistics.standardise(found["attributes"])
        return found


class ExportedDecoder(Told):
    """From a latent in units of the prior, and what the model is told, to the heads' parameters."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        found = self.batch(tensors)
        z = found.pop("z") / self.model.latent_scale
        heads = self.model.decode(z, self.model.condition(found))
        return tuple(_parameters(head) for _, head in sorted(heads.items()))


class ExportedEncoder(Told):
    """From image and mask to mean and deviation of the latent, in units of the prior."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        found = self.batch(tensors)
        posterior: Any = self.model.encode(found, self.model.condition(found))
        scale = getattr(posterior, "scale", None)
        made = (posterior.mean,) if scale is None else (posterior.mean, scale)
        return tuple(each * self.model.latent_scale for each in made)


def _parameters(head: Any) -> Tensor:
    return head.logits if head.output == "mask" and hasattr(head, "logits") else head.mode()


def parts_of(network: nn.Module, shape: Sequence[int], *, name: str) -> list[Part]:
    """All parts of a bundle's network; the first one is the decoder of images.

    Args:
        network: A latent or a two-stage model.
        shape: Voxels of an image along (I, J, K).
        name: Of the bundle, for messages.

    Raises:
        BundleError: If the network is of another kind.
    """
    if isinstance(network, TwoStageModel):
        named = [("", network.texture, shape), ("shape_", network.shape, network.mask_shape)]
    elif isinstance(network, LatentModel):
        named = [("", network, shape)]
    else:
        raise BundleError(
            f"{name} holds a {type(network).__name__}; what can be exported are latent and "
            f"two-stage models. Export a bundle of that kind."
        )
    known: TrainingStatistics = network.statistics
    return [part for each in named for part in _of_model(*each, known)]


def _of_model(
    prefix: str, model: LatentModel, size: Sequence[int], known: TrainingStatistics
) -> list[Part]:
    voxels = tuple(int(n) for n in size)
    shapes = {
        "z": (1, *model.latent_shape),
        "image": (1, model.image_channels, *voxels),
        "mask": (1, 1, *voxels),
        "attributes": (1, model.embedding.attributes if model.embedding else 0),
    }
    told = ["mask", "image"] if model.context is not None else []
    names = ["z", *told, *(["attributes"] if model.embedding else [])]
    outputs = tuple(OUTPUTS.get(head, f"made_{head}") for head in sorted(model.heads))
    inputs = {key: shapes[key] for key in names}
    made = [Part(f"{prefix}decoder", ExportedDecoder(model, known, names).eval(), inputs, outputs)]
    if model.encoder is not None:
        read: list[str] = [key for key in ("image", "mask") if key in {*model.inputs, *told}]
        read += ["attributes"] if model.embedding and model.encode_attributes else []
        encoder = ExportedEncoder(model, known, read).eval()
        inputs = {key: shapes[key] for key in read}
        with torch.no_grad():
            count = len(encoder(*Part("", encoder, inputs, ()).example(1)))
        outputs = ("latent_mean", "latent_deviation")[:count]
        made.append(Part(f"{prefix}encoder", encoder, inputs, outputs))
    return made
