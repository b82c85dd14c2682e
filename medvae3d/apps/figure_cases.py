"""The cases that figures are computed from: read from a data list, cut, or made by the bundle."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from monai.transforms import Compose

from medvae3d.apps.bundle import Bundle
from medvae3d.data.datalists import as_monai, read_datalist
from medvae3d.data.lesions import single_lesions
from medvae3d.data.preparation import case_transforms
from medvae3d.data.volumes import Volume
from medvae3d.errors import DataListError
from medvae3d.evaluation.cases import Cases, joined, lesion_cases, mask_cases, whole_cases
from medvae3d.evaluation.reconstruction import Words
from medvae3d.models.two_stage import TwoStageModel
from medvae3d.synthesis.records import read_records, rejections

Say = Callable[[str], None]
# Shift of lesions off the middle of a patch, and patches a lesion, where a segmenter learns.
JITTER = 6
REPEATS = 3
LESIONS_PER_HOST = 10


class CaseSource:
    """Training cases, unseen cases and samples of a bundle, each made when it is first needed.

    Where lesions are put into hosts, a case is a patch round one lesion.

    Args:
        bundle: Makes the samples and says how cases are prepared.
        datalist: The data list.
        split: Unseen cases; several splits with a comma.
        folder: Where samples are written.
        seed: Seed of the samples.
        count: Samples, or lesions in hosts.
        say: Told what is being done.

    Raises:
        DataListError: If a split has no case with a label.
    """

    def __init__(
        self,
        bundle: Bundle,
        datalist: Path,
        split: str,
        folder: Path,
        seed: int,
        count: int,
        say: Say,
    ) -> None:
        self.bundle, self.recipe, self.folder = bundle, bundle.recipe, folder
        self.seed, self.count, self.say = seed, count, say
        self.generation: dict[str, Any] = {}
        self._made: dict[str, Cases] = {}
        self._given: tuple[Volume, ...] = ()
        self.is_insertion = self.recipe.synthesis.kind == "insertion"
        listed = read_datalist(datalist)
        self.train_items = as_monai(listed.split("training"))
        parts = [name.strip() for name in split.split(",")]
        self.unseen_items = as_monai([case for name in parts for case in listed.split(name)])
        for name, items in (("training", self.train_items), (split, self.unseen_items)):
            if not any("label" in item for item in items):
                raise DataListError(
                    f"{datalist} has no case with a label under {name}; figures compare training "
                    f"cases with unseen ones. Add cases there, or name another split."
                )
        channels = [{"intensity": config} for config in self.recipe.intensities.to_config()]
        shape = None if self.is_insertion else self.recipe.spatial_shape
        self.prepare = Compose(
            case_transforms(
                channels, self.recipe.spacing, shape, self.recipe.labels, allow_missing_images=True
            )
        )

    def _once(self, name: str, make: Callable[[], Cases]) -> Cases:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def with_cases(self, train: Cases, unseen: Cases) -> CaseSource:
        """This source with real cases that were read before, in the same form."""
        self._made |= {"train": train, "unseen": unseen}
        return self

    def with_masks(self, masks: Sequence[Volume]) -> CaseSource:
        """This source with samples that are made for given masks, one each.

        Only for bundles that make the image of a whole volume from its mask.
        """
        self._given = tuple(masks)
        return self

    # -- real -------------------------------------------------------------------------------------

    @property
    def train(self) -> Cases:
        """Training cases, or patches round the training lesions."""
        return self._once("train", lambda: self._cases(self.train_items))

    @property
    def unseen(self) -> Cases:
        """Unseen cases, or patches round unseen lesions."""
        return self._once("unseen", lambda: self._cases(self.unseen_items))

    def _cases(self, items: Sequence[Mapping[str, Any]], **options: Any) -> Cases:
        imaged = [item for item in items if "image" in item and "label" in item]
        if not self.is_insertion:
            return whole_cases([self.prepare(item) for item in imaged])
        shape = self.recipe.spatial_shape
        return joined(
            [lesion_cases(self.prepare(item), shape, seed=self.seed, **options) for item in imaged]
        )

    def masks(self, items: Sequence[Mapping[str, Any]]) -> Cases:
        """What the first stage makes: whole masks, or single lesions."""
        shape = cast(TwoStageModel, self.bundle.network).mask_shape
        found, names = [], []
        for item in items:
            if "label" not in item:
                continue
            only = {key: value for key, value in item.items() if key != "image"}
            label = self.prepare(only)["label"]
            if not self.is_insertion and tuple(label.shape[1:]) == shape:
                patches = [torch.as_tensor(label)]
            else:
                patches = single_lesions(torch.as_tensor(label), shape)
            found += patches
            names += [str(item["case"])] * len(patches)
        if not found:
            raise DataListError(
                f"no case has a lesion that fits into {shape} voxels. Check the masks with "
                f"`medvae3d data check`."
            )
        return mask_cases(found, names)

    def jittered(self) -> tuple[Cases, Cases]:
        """Training and unseen cases for a segmenter: lesions off the middle of their patch.

        In the middle, the place alone would tell where the lesion is.
        """
        if not self.is_insertion:
            return self.train, self.unseen
        train = self._cases(self.train_items, jitter=JITTER, repeats=REPEATS)
        return train, self._cases(self.unseen_items, jitter=JITTER)

    # -- made -------------------------------------------------------------------------------------

    @property
    def samples(self) -> Cases:
        """Samples as a user reads them, from their files."""
        return self._once("samples", self._samples)

    def _samples(self) -> Cases:
        self.say("samples")
        folder = self.folder / "samples"
        count = self.count
        options: dict[str, Any] = {}
        if self.is_insertion:
            options, count = self.insertion(count)
        if folder.exists():  # of an earlier report; other weights would be refused
            shutil.rmtree(folder)
        if self._given:
            # Samples of one folder have one mask in common.
            folders = [folder / f"{index:04d}" for index in range(len(self._given))]
            for index, (part, mask) in enumerate(zip(folders, self._given, strict=True)):
                self.bundle.write(part, 1, self.seed, start=index, mask=mask, preview=False)
        else:
            folders = [folder]
            self.bundle.write(folder, count, self.seed, **options)
        self.generation = rejections([each for part in folders for each in read_records(part)])
        listed = [read_datalist(part / "dataset.json").split("training") for part in folders]
        items = as_monai([case for cases in listed for case in cases])
        if not self.is_insertion:
            return whole_cases([self.prepare(item) for item in items])
        hosts = self._hosts()
        cut = []
        for index, item in enumerate(items):
            case = self.prepare(item)
            there = None
            if hosts:
                host = hosts[index % len(hosts)]
                there = self.prepare({"label": host["label"], "case": host["case"]})["label"]
            cut.append(
                lesion_cases(
                    case, self.recipe.spatial_shape, ignore=there, jitter=JITTER,
                    seed=self.seed + index,
                )
            )  # fmt: skip
        return joined(cut)

    def _hosts(self) -> list[dict[str, Any]]:
        """Unseen scans that lesions are put into; none means phantoms."""
        return [item for item in self.unseen_items if "image" in item and "label" in item]

    def insertion(self, lesions: int) -> tuple[dict[str, Any], int]:
        """Options of an insertion into unseen scans, and how many it takes for some lesions."""
        channels = len(self.recipe.channels)
        per_host = min(LESIONS_PER_HOST, lesions)
        options: dict[str, Any] = {"lesions": (per_host, per_host)}
        hosts = self._hosts()
        if hosts:
            files = [
                [item["image"]] if isinstance(item["image"], str) else item["image"]
                for item in hosts
            ]
            options["hosts"] = [each[:channels] for each in files]
            options["host_labels"] = [item["label"] for item in hosts]
        return options, -(-lesions // per_host)


def words_of(bundle: Bundle, seed: int) -> Words:
    """Names and sizes that scores are taken with."""
    recipe = bundle.recipe
    return Words(
        tuple(channel.name for channel in recipe.channels),
        tuple(name for name, value in recipe.labels.items() if value),
        recipe.spacing,
        bundle.statistics,
        seed,
    )
