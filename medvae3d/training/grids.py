"""What models make while they train, as pictures: cases, their reconstructions, and samples.

All pictures of a run show the same cases and the same latents, so that they can be laid side by
side. All noise comes from a generator of the handler's own: a training with pictures gives the
weights of one without.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from medvae3d.data.volumes import write_bytes
from medvae3d.models.latent import Batch, LatentModel
from medvae3d.seeding import derive_seed

Rows = list[tuple[str, Tensor | None, Tensor | None]]
"""What stands beside a row of pictures, its images and its masks."""

INCHES = 1.3
COLOURS = ("#ff9f0a", "#32d7ff", "#ff5ac8", "#b4ff3c")


class SampleGrid:
    """Draws what the models of an evaluator make, in each validation.

    Writes ``<model>_epoch<N>.png``: a column for each of the first cases of the first batch, and a
    row each for the case, its reconstruction, and a sample from what the latent is trained against,
    told what the case tells (attributes, surroundings). Each picture is the axial plane through the
    largest section of its mask, or the middle one, with the mask outlined; normalised intensities
    from -1, black, to 1, white.

    Args:
        folder: Folder of the pictures.
        cases: Columns at most.
        seed: Seed of the latents.
        log_dir: Folder of TensorBoard's events, which then have the pictures too; none if not
            given.
    """

    def __init__(
        self,
        folder: str,
        cases: int = 4,
        seed: int = 0,
        log_dir: str | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.cases = cases
        self.seed = seed
        self.log_dir = log_dir
        self._writer: Any = None

    def attach(self, engine: Engine) -> None:
        """Registers the handler with a `LatentEvaluator`."""
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=1), self._draw)

    def _draw(self, engine: Any) -> None:
        batch = engine.prepare_batch(engine.state.batch, engine.state.device, False)
        for name, model in engine.models.items():
            seen = engine.selects[name](batch) if name in engine.selects else batch
            if not len(seen["mask"]):
                continue
            seed = derive_seed(self.seed, "grid", name)
            generator = torch.Generator(engine.state.device).manual_seed(seed)
            png = drawn(made_of(model, first_cases(seen, self.cases), generator), model.values)
            write_bytes(self.folder / f"{name}_epoch{engine.state.epoch:04d}.png", png)
            self._to_tensorboard(f"{name}/grid", png, engine.state.epoch)

    def _to_tensorboard(self, tag: str, png: bytes, epoch: int) -> None:
        if self.log_dir is None:
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self.log_dir)
        import PIL.Image

        picture = np.array(PIL.Image.open(io.BytesIO(png)).convert("RGB"))
        self._writer.add_image(tag, picture, epoch, dataformats="HWC")
        self._writer.flush()


def first_cases(batch: Batch, count: int) -> dict[str, Any]:
    """The first cases of a batch."""
    return {
        key: value[:count] if isinstance(value, (Tensor, list)) else value
        for key, value in batch.items()
    }


@torch.no_grad()
def made_of(model: LatentModel, batch: Batch, generator: torch.Generator) -> Rows:
    """Cases, their reconstructions and samples under what they tell the model.

    Args:
        model: The model, in evaluation mode.
        batch: As the model is validated on.
        generator: Source of all noise.
    """
    trace = model.trace(batch, generator, with_flow=False)
    if model.conditional_prior is not None:
        z = model.sample_latent(len(trace.first_z), generators=generator, condition=trace.condition)
    else:
        # Not the sampling prior, which is fitted after the training.
        z = model.prior.sample(
            len(trace.first_z), attributes=batch.get("attributes"), generators=generator
        ).to(trace.first_z)
    given = batch["mask"]
    image = batch.get("image") if "image" in trace.heads else None
    rows: Rows = [("case", image, given)]
    for title, heads in (("rebuilt", trace.heads), ("sample", model.decode(z, trace.condition))):
        shown = heads["image"].mode() if "image" in heads else None
        rows.append((title, shown, heads["mask"].mode() if "mask" in heads else given))
    return rows


def drawn(rows: Rows, values: Sequence[int] = (0, 1)) -> bytes:
    """A PNG of rows of planes with their masks outlined; the same bytes for the same numbers.

    Args:
        rows: Titles, images ``(B, C, I, J, K)``, of which each channel gets a row, and masks
            ``(B, 1, I, J, K)``. Without images, masks are filled.
        values: Label values, background first.
    """
    lines = []
    for title, image, mask in rows:
        channels = 1 if image is None else image.shape[1]
        lines += [(title if c == 0 else "", image, mask, c) for c in range(channels)]
    columns = max(len(mask if image is None else image) for _, image, mask, _ in lines)  # type: ignore[arg-type]
    figure = Figure(figsize=(INCHES * columns + 0.4, INCHES * len(lines)), dpi=110)
    FigureCanvasAgg(figure)
    places = figure.subplots(len(lines), columns, squeeze=False)
    for line, (title, image, mask, channel) in zip(places, lines, strict=True):
        for case, place in enumerate(line):
            label = None if mask is None else mask[case, 0].float().cpu().numpy()
            grey = label if image is None else image[case, channel].float().cpu().numpy()
            _plane(place, grey, label, values, is_mask=image is None)
        line[0].set_axis_on()
        line[0].set(xticks=[], yticks=[])
        line[0].set_ylabel(title, fontsize=8, family="DejaVu Sans")
    figure.subplots_adjust(0.4 / (INCHES * columns + 0.4), 0.01, 0.99, 0.99, 0.03, 0.03)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _plane(place: Any, volume: Any, label: Any, values: Sequence[int], *, is_mask: bool) -> None:
    """One plane, the patient's right on the left and anterior on top."""
    middle = volume.shape[2] // 2
    if label is not None and (label > 0).any():
        middle = int((label > 0).sum((0, 1)).argmax())
    low, high = (0, max(values)) if is_mask else (-1, 1)
    plane = volume[::-1, ::-1, middle].T
    place.imshow(plane, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    place.set_axis_off()
    if label is None or is_mask:
        return
    outline = label[::-1, ::-1, middle].T
    for number, value in enumerate(values[1:]):
        inside = outline == value
        if inside.any() and not inside.all():
            colour = COLOURS[number % len(COLOURS)]
            place.contour(inside, levels=[0.5], colors=[colour], linewidths=0.8)
