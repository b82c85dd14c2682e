"""What ``configs/inference.json`` of a bundle calls: samples by seed, or samples for given hosts.

Without a host, `write_samples` writes what the command line writes, byte for byte. With hosts,
MONAI's evaluator or MONAI Label hands each one to `SynthesisInferer`, which answers with a mask and
an image on the host's own grid: a joint model uses the host as a grid alone and puts its volume in
the middle, a two-stage model puts lesions into the host.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import MapTransform
from monai.utils import MetaKeys
from numpy.typing import NDArray
from torch import Tensor, nn

from medvae3d.apps.bundle import load_bundle
from medvae3d.apps.label import label_app, refusals
from medvae3d.apps.wishes import ANYWHERE, Numbers, Wishes, lesion_range, number_range
from medvae3d.data.transforms import resample_to_grid
from medvae3d.errors import SettingError, UnreadableFileError
from medvae3d.geometry import Grid, Triple, TripleMM
from medvae3d.models.statistics import TrainingStatistics
from medvae3d.models.two_stage import TwoStageModel
from medvae3d.seeding import derive_seed
from medvae3d.synthesis.generator import Request, generate
from medvae3d.synthesis.hosts import host_in_memory
from medvae3d.synthesis.insertion import insert_lesions
from medvae3d.synthesis.recipe import Recipe

NIFTI = (".nii", ".nii.gz")

logger = logging.getLogger(__name__)


# -- without a host -----------------------------------------------------------------------------


def write_samples(
    bundle_root: str,
    output_dir: str,
    count: int,
    seed: int,
    *,
    start: int = 0,
    recipe: Mapping[str, Any] | None = None,
    temperature: float | None = None,
    volume_ml: Numbers = 0.0,
    lesions: Numbers = 0,
    device: str | torch.device = "cpu",
    weights: str | None = None,
) -> Path:
    """Writes samples as ``medvae3d generate`` does: same seed and device, same bytes.

    Args:
        bundle_root: Folder of the bundle.
        output_dir: Folder to write; see `medvae3d.synthesis.writing`.
        count: How many samples.
        seed: Seed of all of them.
        start: Index of the first.
        recipe: The bundle's recipe as it was parsed, so that overrides of it count.
        temperature: Scales the deviation of latents.
        volume_ml: Wanted volume, or smallest and largest; 0 for any of the training set.
        lesions: Wanted number of lesions, or fewest and most; 0 for any.
        device: Where to compute.
        weights: Other weights than the bundle's own.

    Returns:
        The folder.
    """
    # The configuration that calls this is being executed already, by MONAI itself.
    bundle = load_bundle(bundle_root, device, weights=weights, trust=True)
    if recipe is not None:
        made = Recipe.from_config(recipe, source="the configuration with its overrides")
        bundle = replace(bundle, recipe=made)
    options: dict[str, Any] = {}
    if wanted := number_range(volume_ml, "volume_ml"):
        options["volume_ml"] = wanted
    if some := lesion_range(lesions):
        options["lesions"] = some
    folder = bundle.write(
        output_dir, int(count), int(seed), start=int(start), temperature=temperature, **options
    )
    logger.info("%d samples of %s are in %s", count, bundle.name, folder)
    return folder


def find_hosts(dataset_dir: str) -> list[str | list[str]]:
    """Lists the scans of a folder: one file each, or the files ``CASE_0000``, ``CASE_0001``, ...

    Args:
        dataset_dir: The folder; none if empty.

    Raises:
        UnreadableFileError: If there is no such folder.
    """
    if not str(dataset_dir):
        return []
    folder = Path(dataset_dir)
    if not folder.is_dir():
        raise UnreadableFileError(
            f"dataset_dir {folder} is not a folder. Name one with NIfTI files, or leave it out to "
            f"make volumes without a host."
        )
    files = sorted(path for path in folder.iterdir() if path.name.endswith(NIFTI))
    if not files:
        logger.warning("%s holds no NIfTI file: volumes are made without a host", folder)
    hosts: dict[str, list[str]] = {}
    for path in files:
        numbered = re.fullmatch(r"(.+)_\d{4}\.nii(\.gz)?", path.name)
        hosts.setdefault(numbered[1] if numbered else path.name, []).append(str(path))
    return [group if len(group) > 1 else group[0] for group in hosts.values()]


def host_items(hosts: str | Sequence[str | Sequence[str]]) -> list[dict[str, Any]]:
    """Hosts as MONAI's data sets take them; a host is a file, or a list of files, one a channel."""
    every = [hosts] if isinstance(hosts, str) else list(hosts)
    return [{"image": host if isinstance(host, str) else list(host)} for host in every]


# -- with hosts ---------------------------------------------------------------------------------


class SynthesisInferer(Inferer):
    """Answers a host with a synthetic mask and image on the host's grid.

    What comes out depends on the settings, on the host and on nothing else: the host's voxels and
    grid are mixed into the seed, so that several hosts get different samples, whatever their
    order, and the same request gives the same answer.

    Args:
        recipe: What the bundle makes; see `medvae3d.synthesis.recipe`.
        seed: Seed.
        temperature: Scales the deviation of latents; that of the recipe if not given.
        volume_ml: Wanted volume of the mask or of each lesion, or smallest and largest; 0 for any.
        lesions: Wanted number of lesions, or fewest and most; 0 for what the recipe says.
        at: Voxel of the host, as its file stores it, at which a lesion is to lie; negative numbers
            for anywhere.
        at_mm: The same as a viewer shows it: three numbers in mm, right, anterior, superior, or
            with letters as in ``R 12.5, P 30, S 4``; empty for anywhere.

    In a MONAI Label server, a wish that cannot be read is answered when a host is, not before: the
    server makes the inferer anew for each request.

    Shape:
        - ``inputs``: :math:`(B, C, I, J, K)`, native units, with the host's affine where it is a
          ``MetaTensor``; otherwise the spacing of the recipe is assumed
        - output ``mask``: :math:`(B, 1, I, J, K)`, uint8; ``image``: :math:`(B, C, I, J, K)`,
          native units
    """

    def __init__(
        self,
        recipe: Mapping[str, Any] | Recipe,
        seed: int = 0,
        temperature: float | None = None,
        volume_ml: Numbers = 0.0,
        lesions: Numbers = 0,
        at: Sequence[float | str] = ANYWHERE,
        at_mm: str | Sequence[float] = "",
    ) -> None:
        super().__init__()
        self.recipe = recipe if isinstance(recipe, Recipe) else Recipe.from_config(recipe)
        if temperature is None:
            temperature = self.recipe.synthesis.temperature
        self.wishes, self.refused = Wishes(), None
        try:
            self.wishes = Wishes.read(seed, temperature, volume_ml, lesions, at, at_mm)
        except SettingError as error:
            if label_app() is None:
                raise
            self.refused = error

    def __call__(
        self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        with refusals():
            return self._made(inputs, network)

    def _made(self, inputs: Tensor, network: Callable[..., Any]) -> dict[str, Tensor]:
        if self.refused is not None:
            raise self.refused
        masks, images = [], []
        affines = _affines(inputs, self.recipe)
        stored = _affines_of(inputs, "original_affine") or affines
        for image, affine, as_stored in zip(inputs, affines, stored, strict=True):
            host = image.detach().cpu().float().numpy()
            grid = Grid(cast(Triple, tuple(host.shape[1:])), affine)
            seed = derive_seed(self.wishes.seed, "host", _digest(host, grid))
            model = cast(nn.Module, network)
            if isinstance(network, TwoStageModel):
                place = self.wishes.place_mm(as_stored)
                mask, made = self._inserted(model, host, grid, seed, inputs.device, place)
            else:
                mask, made = self._placed(model, grid, seed, inputs.device)
            masks.append(mask)
            images.append(made)
        return {
            "mask": torch.stack(masks).to(inputs.device),
            "image": torch.stack(images).to(inputs.device),
        }

    def _placed(
        self,
        network: nn.Module,
        grid: Grid,
        seed: int,
        device: torch.device,
    ) -> tuple[Tensor, Tensor]:
        """A whole volume in the middle of the host's grid; beyond it, the darkest there is."""
        wishes = self.wishes
        request = Request(1, seed, volume_ml=wishes.volume_ml, temperature=wishes.temperature)
        (sample,) = generate(network, self.recipe, request, device=device)
        affine = np.array(sample.grid.affine)
        affine[:3, 3] += grid.to_world((np.array(grid.shape) - 1) / 2)
        there = (grid.shape, np.array(grid.affine))
        mask = resample_to_grid(sample.label, affine, *there, mode="label")
        statistics = cast(TrainingStatistics, network.statistics)
        dark = torch.full((1, len(self.recipe.channels), 1, 1, 1), -1.0)
        fills = self.recipe.to_native(dark, statistics).flatten().tolist()
        image = torch.cat(
            [
                resample_to_grid(channel[None], affine, *there, fill=fill)
                for channel, fill in zip(sample.image, fills, strict=True)
            ]
        )
        return mask, image

    def _inserted(
        self,
        network: nn.Module,
        host: NDArray[np.float32],
        grid: Grid,
        seed: int,
        device: torch.device,
        place: TripleMM | None,
    ) -> tuple[Tensor, Tensor]:
        """Lesions in the host."""
        options: dict[str, Any] = {}
        if self.wishes.lesions:
            options["lesions"] = self.wishes.lesions
        if place is not None:
            options["at_mm"] = place
        made = insert_lesions(
            host_in_memory(host, grid, self.recipe),
            network,
            self.recipe,
            seed=seed,
            volume_ml=self.wishes.volume_ml,
            temperature=self.wishes.temperature,
            device=device,
            **options,
        )
        return torch.from_numpy(made.label)[None], torch.from_numpy(made.image)


def _affines(inputs: Tensor, recipe: Recipe) -> list[NDArray[np.float64]]:
    """Where the voxels of each host of a batch lie."""
    found = _affines_of(inputs, "affine")
    grid = Grid.centred(cast(Triple, tuple(inputs.shape[2:])), recipe.spacing)
    return found or [np.array(grid.affine)] * len(inputs)


def _affines_of(inputs: Tensor, key: str) -> list[NDArray[np.float64]]:
    """An affine of each host of a batch, as the meta data have it; empty where they have none."""
    found = getattr(inputs, "meta", {}).get(key)
    if found is None:
        return []
    affines = torch.as_tensor(found).double().cpu().reshape(-1, 4, 4).numpy()
    return [affines[min(row, len(affines) - 1)] for row in range(len(inputs))]


def _digest(host: NDArray[np.float32], grid: Grid) -> str:
    """Says which host it is; headers that differ by rounding alone are one."""
    place = np.round(grid.affine, 3) + 0.0  # no negative zeros
    content = np.ascontiguousarray(host).tobytes() + place.tobytes()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


class UnpackSampledd(MapTransform):
    """Splits what `SynthesisInferer` returned: the mask stays, the image gets an entry of its own.

    Args:
        keys: Entries with ``mask`` and ``image``.
        image_key: Entry for the image.
        allow_missing_keys: Whether entries may be absent.
    """

    def __init__(
        self,
        keys: KeysCollection,
        image_key: str = "synthetic",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        changed = dict(data)
        for key in self.key_iterator(changed):
            made = changed[key]
            if not isinstance(made, Mapping) or not {"mask", "image"} <= set(made):
                raise SettingError(
                    f"{key} holds a {type(made).__name__}; expected what SynthesisInferer returns, "
                    f"`mask` and `image`. Keep that inferer in inference.json."
                )
            # `Invertd` passes by what cannot carry a place.
            changed[key], changed[self.image_key] = (
                MetaTensor(torch.as_tensor(made[part])) for part in ("mask", "image")
            )
        return changed


class SpatialShaped(MapTransform):
    """Corrects what the meta data of a 4D host says of results with another number of channels.

    ``SaveImaged`` would take the channel axis for one of space, and an axis of space for channels.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        changed = dict(data)
        for key in self.key_iterator(changed):
            volume = changed[key]
            volume.meta[MetaKeys.SPATIAL_SHAPE] = np.array(volume.shape[1:])
            volume.meta[MetaKeys.ORIGINAL_CHANNEL_DIM] = float("nan") if len(volume) == 1 else -1
        return changed
