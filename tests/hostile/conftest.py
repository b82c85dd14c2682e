"""The hostile files, good ones to stand beside them, and what runs commands on both."""

from __future__ import annotations

import json
from unittest import mock

import numpy as np
import pytest
import tiny_bundles as tiny
import torch
from hostile import make_corpus
from hostile.commands import Good
from hostile.running import Runner

from medvae3d.data.attributes import mask_attributes
from medvae3d.data.volumes import write_volume
from medvae3d.geometry import Grid


def untaught(network):
    """Random weights with the statistics of balls: bundles that load, whose samples are noise."""
    made = tiny.built(network)
    masks = tiny.balls(16, torch.Generator().manual_seed(1))
    names = made.statistics.names
    made.statistics.fit_attributes(mask_attributes(masks, tiny.SPACING, names))
    return made.eval()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return make_corpus.make(tmp_path_factory.mktemp("hostile") / "corpus")


@pytest.fixture(scope="session")
def runner(tmp_path_factory):
    return Runner(tmp_path_factory.mktemp("scratch"))


@pytest.fixture(scope="session")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    with mock.patch.object(tiny, "taught", untaught):
        joint = tiny.write_bundle(folder / "joint", tiny.TWO_LABELS)
        pair = tiny.write_bundle(folder / "pair", tiny.JOINT)
        stages = tiny.write_bundle(folder / "stages", tiny.TWO_STAGE)
    rng = np.random.default_rng(0)
    grid = Grid.centred([tiny.SIDE] * 3, tiny.SPACING)
    content = make_corpus.list_of("x", 4)
    for split, entries in content.items():
        for number, entry in enumerate(entries):
            mask = tiny.balls(1, torch.Generator().manual_seed(number))[0, 0].numpy()
            image = 60 * (mask > 0) + 20 * rng.standard_normal(mask.shape)
            entry["image"], entry["label"] = (f"{split}_{number}_{p}.nii.gz" for p in "il")
            write_volume(folder / entry["image"], image.astype(np.int16), grid)
            write_volume(folder / entry["label"], mask.astype(np.uint8), grid)
    (folder / "list.json").write_text(json.dumps(content))
    wide = Grid.centred([20] * 3, tiny.SPACING)
    places = np.stack(np.meshgrid(*[np.arange(20) - 9.5] * 3, indexing="ij"))
    body = np.square(places).sum(0) < 9**2
    pet = np.where(body, 1 + 0.1 * rng.random(body.shape), 0).astype(np.float32)
    ct = np.where(body, 40 + 20 * rng.standard_normal(body.shape), -1000).astype(np.float32)
    label = np.zeros(body.shape, np.uint8)
    label[9:11, 9:11, 9:11] = 1
    for name, array in (("pet", pet), ("ct", ct), ("label", label)):
        write_volume(folder / f"{name}.nii.gz", array, wide)
    scans = (folder / f"{name}.nii.gz" for name in ("pet", "ct", "label"))
    return Good(joint, pair, stages, folder / "list.json", *scans)
