"""How each kind of network makes a block of samples, and which kind a network is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from medvae3d.errors import BundleError, SettingError
from medvae3d.models.latent import LatentModel
from medvae3d.models.two_stage import TwoStageModel
from medvae3d.numerics import standard_normal
from medvae3d.synthesis.conditions import Told, fit_mask
from medvae3d.synthesis.levels import Levelled, tidy
from medvae3d.synthesis.makers import Draft, Maker, Settings, exact_float32, filled
from medvae3d.synthesis.recipe import Recipe


def make_maker(
    network: nn.Module, recipe: Recipe, settings: Settings, device: torch.device
) -> Maker:
    """Chooses how to make samples with a network.

    Raises:
        SettingError: If it makes none, or not what is asked for.
        BundleError: If it makes something else than the recipe says.
    """
    if isinstance(network, TwoStageModel):
        return TwoStageMaker(network, recipe, settings, device)
    if isinstance(network, LatentModel) and set(network.heads) == {"image", "mask"}:
        return JointMaker(network, recipe, settings, device)
    raise SettingError(
        f"{type(network).__name__} does not make volumes with their masks; allowed are a "
        f"LatentModel with both heads and a TwoStageModel. See `medvae3d.models.zoo`."
    )


class JointMaker(Maker):
    """Image and mask from one latent; of a given mask if the prior is told masks."""

    network: LatentModel

    def __init__(
        self, network: LatentModel, recipe: Recipe, settings: Settings, device: torch.device
    ) -> None:
        super().__init__(network, recipe, settings, device)
        self.network = network
        if settings.mask is None:
            return
        if not network.is_told_mask:
            raise SettingError(
                "a mask was given, but this bundle makes image and mask from one latent. Give it "
                "to a two-stage bundle, which makes the image from the mask, or to a vqvae, whose "
                "prior is told masks."
            )
        self.given, self.grid = fit_mask(settings.mask, recipe)
        volumes = {
            value: int((self.given == value).sum()) * recipe.voxel_ml for value in recipe.values[1:]
        }
        mask = torch.from_numpy(self.given)[None, None]
        names = None if settings.class_name is None else [settings.class_name]
        told = network.statistics.measure(mask, self.grid.spacing, names)[0]
        self.told = Told(
            told if network.statistics.names else None,
            volumes if len(volumes) > 1 else volumes[recipe.values[1]],
        )

    def drafts(self, indices: Sequence[int], attempt: int) -> list[Draft]:
        begun = super().drafts(indices, attempt)
        if self.given is not None:
            for draft in begun:
                draft.told = self.told
        return begun

    def records(self, drafts: Sequence[Draft], labels: Tensor, images: Tensor) -> list[Any]:
        found = super().records(drafts, labels, images)
        for record, draft in zip(found, drafts, strict=True):
            if self.given is not None:
                made, given = draft.label > 0, self.given > 0
                shared = int((made & given).sum())
                dice = 2 * shared / max(1, int(made.sum()) + int(given.sum()))
                record["checks"]["dice_with_given_mask"] = dice
        return found

    def fill(self, drafts: Sequence[Draft], size: int) -> None:
        with torch.inference_mode(), exact_float32():
            heads = self.decode(self.network, drafts, size)
            logits = heads["mask"].logits.float().cpu().numpy()
            images = heads["image"].mode().float()
        for row, draft in enumerate(drafts):
            self.cut(draft, logits[row])
            draft.image = self.with_grain(self.network, images[row], draft)


class TwoStageMaker(Maker):
    """A mask from attributes, then an image from the mask; or an image for a given mask."""

    network: TwoStageModel

    def __init__(
        self, network: TwoStageModel, recipe: Recipe, settings: Settings, device: torch.device
    ) -> None:
        super().__init__(network, recipe, settings, device)
        self.network = network
        if settings.mask is not None:
            self.given, self.grid = fit_mask(settings.mask, recipe)
        spare = [n - m for n, m in zip(recipe.spatial_shape, network.mask_shape, strict=True)]
        if min(spare) < 0:
            raise BundleError(
                f"masks have {network.mask_shape} voxels, volumes {recipe.spatial_shape}; a mask "
                f"must fit. Make `spatial_shape` in inference.json larger."
            )
        self.place = tuple(
            slice(s // 2, s // 2 + m) for s, m in zip(spare, network.mask_shape, strict=True)
        )

    def drafts(self, indices: Sequence[int], attempt: int) -> list[Draft]:
        begun = super().drafts(indices, attempt)
        if self.given is not None:
            for draft in begun:
                draft.told = Told()
        return begun

    def fill(self, drafts: Sequence[Draft], size: int) -> None:
        if self.given is not None:
            tidied = tidy(self.given > 0, keep=self.given.size)
            for draft in drafts:
                draft.levelled = Levelled(self.given, 0.0, tidied)
        else:
            with torch.inference_mode(), exact_float32():
                heads = self.decode(self.network.shape, drafts, size)
                logits = heads["mask"].logits.float().cpu().numpy()
            for row, draft in enumerate(drafts):
                self.cut(draft, logits[row])
                self._put_into_volume(draft)
        kept = [draft for draft in drafts if draft.reason is None]
        if kept:
            self._paint(kept, size)

    def _put_into_volume(self, draft: Draft) -> None:
        levelled = cast(Levelled, draft.levelled)
        label = np.zeros(self.grid.shape, dtype=np.uint8)
        label[self.place] = levelled.label
        draft.levelled = Levelled(label, levelled.level, levelled.tidied, levelled.splits)

    def _paint(self, drafts: Sequence[Draft], size: int) -> None:
        model = self.network.texture
        masks = torch.stack([torch.from_numpy(draft.label)[None] for draft in drafts]).float()
        generators = [draft.generator for draft in drafts]
        with torch.inference_mode(), exact_float32():
            condition = model.condition({"mask": filled(masks.to(self.device), size)})
            z = self._texture_latents(model, generators)
            images = model.decode(filled(z.to(self.device), size), condition)["image"].mode()
        for row, draft in enumerate(drafts):
            draft.image = self.with_grain(model, images[row].float(), draft)

    def _texture_latents(self, model: LatentModel, generators: Sequence[torch.Generator]) -> Tensor:
        bottom = [n // s for n, s in zip(self.grid.shape, model.decoder.stride, strict=True)]
        shape = (model.latent_shape[0], *bottom)
        temperature = self.settings.temperature
        if shape == model.latent_shape:
            return model.sample_latent(len(generators), None, generators, temperature)
        # The fitted prior is of one size; of another, only the standard normal is known.
        noise = standard_normal((len(generators), *shape), generators)
        return temperature * noise / model.latent_scale.cpu()
