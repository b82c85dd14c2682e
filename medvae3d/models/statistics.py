"""What a model must remember of its training set, kept as buffers so that it travels with weights.

Attributes are told to a network in standardised form, requests are checked against the range that
was seen, lesions are placed where lesions were, and volumes made without a host come back in the
intensities of the training set: all of that is fitted once and stored here, never in a config.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medvae3d.data.attributes import CLASS, mask_attributes
from medvae3d.errors import RangeError, SettingError


class TrainingStatistics(nn.Module):
    """Buffers fitted on the training cases.

    Args:
        attributes: Names of the attributes, see `medvae3d.data.attributes`.
        image_channels: Channels of the image.
        examples: Most attribute vectors kept to draw new conditions from.
        location_size: Voxels along each axis of the lesion location map; 0 for none.

    Attributes:
        location_map: How often a voxel of the bounding box of a brain or body was lesion, on a
            coarse grid along (right, anterior, superior).
    """

    mean: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor
    example_values: Tensor
    example_count: Tensor
    image_low: Tensor
    image_high: Tensor
    location_map: Tensor

    def __init__(
        self,
        attributes: Sequence[str] = (),
        image_channels: int = 1,
        examples: int = 512,
        location_size: int = 0,
    ) -> None:
        super().__init__()
        self.names = tuple(attributes)
        count = len(self.names)
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("scale", torch.ones(count))
        self.register_buffer("low", torch.full((count,), -torch.inf))
        self.register_buffer("high", torch.full((count,), torch.inf))
        self.register_buffer("example_values", torch.zeros(examples if count else 0, count))
        self.register_buffer("example_count", torch.zeros((), dtype=torch.long))
        self.register_buffer("image_low", torch.zeros(image_channels))
        self.register_buffer("image_high", torch.ones(image_channels))
        self.register_buffer("location_map", torch.zeros((location_size,) * 3))

    @torch.no_grad()
    def fit_attributes(self, values: Tensor, whole: Tensor | None = None) -> None:
        """Takes mean, scale, range and examples from natural attribute values.

        Args:
            values: Attributes of the training masks, :math:`(N, F)`.
            whole: Which masks lie wholly inside of their volume, :math:`(N,)`. Only those become
                examples and count for the range: what was cut off is no model of a lesion.
        """
        values = values.to(self.mean)
        self.mean.copy_(values.mean(0))
        self.scale.copy_(values.std(0).clamp_min(1e-3))
        if whole is not None and bool(whole.any()):
            values = values[whole.to(values.device)]
        self.low.copy_(values.amin(0))
        self.high.copy_(values.amax(0))
        kept = values[: len(self.example_values)]
        self.example_values[: len(kept)] = kept
        self.example_count.fill_(len(kept))

    @torch.no_grad()
    def fit_references(self, params: Tensor) -> None:
        """Takes the native values of -1 and 1 in the middle case, from ``(N, C, 2)``.

        Volumes made without a host come back in these intensities. A channel is NaN in cases that
        lack it, and counts over the others; one that no case has stays as it was.
        """
        middle = params.to(self.image_low).nanmedian(0).values
        known = middle.isfinite().all(1)
        self.image_low[known] = middle[known, 0]
        self.image_high[known] = middle[known, 1]

    @property
    def is_fitted(self) -> bool:
        """Whether the training set has been seen."""
        return bool(self.example_count > 0)

    def standardise(self, values: Tensor) -> Tensor:
        """Natural attribute values to what networks are told, ``(B, F)``."""
        return (values - self.mean.to(values)) / self.scale.to(values)

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that a case may be of, as far as the model is told them."""
        return tuple(n.removeprefix(CLASS) for n in self.names if n.startswith(CLASS))

    @property
    def class_columns(self) -> list[int]:
        """Columns of the classes, in their order."""
        return [i for i, name in enumerate(self.names) if name.startswith(CLASS)]

    def without_class(self, standardised: Tensor) -> Tensor:
        """The same attributes, of no class: what every one-hot entry is where it is 0."""
        columns = self.class_columns
        told = standardised.clone()
        zero = self.standardise(standardised.new_zeros(len(self.names)))
        told[:, columns] = zero[columns]
        return told

    def of_class(self, name: str) -> Tensor:
        """One-hot entries of a class, natural values, ``(K,)`` for :math:`K` classes.

        Raises:
            SettingError: If the model is not told that class.
        """
        if name not in self.classes:
            if not self.classes:
                raise SettingError(
                    f"class {name!r} was asked for; these weights are told no class. Leave it out, "
                    f"or train a model that is told classes, such as cvae."
                )
            raise SettingError(
                f"class {name!r} was asked for; these weights are told the classes "
                f"{', '.join(self.classes)}. Ask for one of them, or train a model that is told "
                f"others."
            )
        return torch.tensor([float(name == each) for each in self.classes])

    def measure(
        self,
        mask: Tensor,
        spacing_mm: Sequence[float],
        classes: Sequence[str | None] | None = None,
    ) -> Tensor:
        """Natural attribute values of cases: what their masks say, and of which class they are.

        Args:
            mask: Label maps, :math:`(B, 1, I, J, K)`.
            spacing_mm: Size of a voxel along (I, J, K).
            classes: Class of each case; where it is ``None``, the mean of the training set counts.

        Shape:
            - output: :math:`(B, F)`
        """
        measured = [name for name in self.names if not name.startswith(CLASS)]
        found = mask_attributes(mask, spacing_mm, measured)
        if not self.classes:
            return found
        values = self.mean.to(found).repeat(len(mask), 1)
        rest = [i for i in range(len(self.names)) if i not in self.class_columns]
        values[:, rest] = found
        for row, name in zip(values, classes or (), strict=bool(classes)):
            if name is not None:
                row[self.class_columns] = self.of_class(name).to(row)
        return values

    def draw(
        self,
        count_generators: Sequence[torch.Generator],
        jitter: float = 0.1,
        among: Tensor | None = None,
    ) -> Tensor:
        """Draws one natural attribute vector per generator: a training example, jittered.

        The result stays within the range of the training set, and of the class of the example.

        Args:
            count_generators: One for each draw.
            jitter: Deviation of the noise, in those of the training set.
            among: Numbers of the examples to draw from; all by default.

        Raises:
            SettingError: If the statistics were not fitted.
        """
        if not self.is_fitted:
            raise SettingError(
                "these weights hold no attribute examples, so no condition can be drawn. "
                "Train the bundle, or load its weights, before generating."
            )
        numbers = torch.arange(int(self.example_count)) if among is None else among
        rows = []
        for generator in count_generators:
            index = numbers[torch.randint(len(numbers), (1,), generator=generator)]
            noise = torch.randn(len(self.names), generator=generator)
            noise[self.class_columns] = 0
            rows.append(self.example_values[index[0]].cpu() + jitter * self.scale.cpu() * noise)
        values = torch.stack(rows)
        return torch.minimum(torch.maximum(values, self.low.cpu()), self.high.cpu())

    def nearest_examples(self, name: str, targets: Tensor) -> Tensor:
        """The training example whose attribute ``name`` is nearest to each target, ``(B, F)``."""
        column = self.names.index(name)
        known = self.example_values[: int(self.example_count)].cpu()
        index = (known[None, :, column] - targets[:, None]).abs().argmin(1)
        return known[index].clone()

    def require_within(self, name: str, low: float, high: float, *, unit: str = "ml") -> None:
        """Refuses a request for a log attribute outside of what was seen.

        Args:
            name: Name of a logarithmic attribute.
            low: Smallest value requested, not logarithmic.
            high: Largest value requested, not logarithmic.
            unit: Unit of both, for the message.

        Raises:
            RangeError: If the request leaves the trained range.
        """
        column = self.names.index(name)
        seen = [float(edge[column].exp()) for edge in (self.low, self.high)]
        slack = 1e-3
        if low < seen[0] * (1 - slack) or high > seen[1] * (1 + slack):
            raise RangeError(
                f"asked for {low:g} to {high:g} {unit}; the weights were trained on "
                f"{seen[0]:.3g} to {seen[1]:.3g} {unit} ({name}). Ask within that range, or add "
                f"--extrapolate to go beyond it at your own risk."
            )
