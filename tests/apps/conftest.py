"""Small bundles, scans and data lists that the tests of the commands share."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tiny_bundles as tiny
import torch
from small_runs import train, weights_of
from typer.testing import CliRunner

from medvae3d.data.attributes import mask_attributes
from medvae3d.data.datalists import Case, write_datalist
from medvae3d.data.volumes import write_volume
from medvae3d.geometry import Grid
from medvae3d.models.two_stage import TwoStageModel

REPOSITORY = Path(__file__).parents[2]
# What makes a training of a shipped configuration small enough for a test.
SMALL = {
    "spatial_shape": [tiny.SIDE] * 3,
    "network_def#channels": [4, 8],
    "network_def#latent_channels": 2,
    "network_def#components": 2,
    "network_def#rank": 2,
    "discriminator#channels": [4, 8],
    "max_epochs": 2,
    "epoch_length": 2,
    "batch_size": 2,
    "prior_passes": 2,
    "val_interval": 1,
    "warm_up_steps": 2,
    "flow_start": 1,
    "adversarial_start": 1,
    "tensorboard": False,
}


class Run:
    """A command that has ended."""

    def __init__(self, result):
        self.code = result.exit_code
        self.out = result.stdout
        self.error = result.stderr
        self.raised = result.exception


@pytest.fixture(scope="session")
def cli():
    """Runs a command line in this process: ``cli("data", "check", path)``."""
    from medvae3d.apps.cli import app

    def run(*words):
        result = CliRunner().invoke(app, [str(word) for word in words])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Run(result)

    return run


@pytest.fixture(scope="session")
def refused(cli):
    """Runs a command that must be refused: with 2, a message alone, and nothing written."""

    def run(*words, out=None):
        before = contents(out) if out is not None else None
        done = cli(*words)
        assert done.code == 2, done.out + done.error
        assert done.out == ""
        assert "Traceback" not in done.error
        if out is not None:
            assert contents(out) == before
        return " ".join(done.error.split())

    return run


def contents(folder):
    """The files of a folder with their bytes; ``None`` if it is not there."""
    folder = Path(folder)
    if not folder.exists():
        return None
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="session")
def bundles(tmp_path_factory):
    """Folder of small bundles: balls (joint) and stages (two-stage)."""
    folder = tmp_path_factory.mktemp("bundles")
    # Without training, masks have many parts; how they look is not what is tested here.
    loose = {"max_attempts": 200, "max_components": 10**6, "allow_border": True}
    with mock.patch.object(tiny, "taught", untaught):
        tiny.write_bundle(folder / "balls", **loose)
        tiny.write_bundle(folder / "stages", tiny.TWO_STAGE, **loose)
    return folder


def untaught(network):
    """A network with random weights and the statistics of balls; shapes alone are learned."""
    made = tiny.built(network)
    masks = (tiny.balls(64, torch.Generator().manual_seed(1)) > 0).float()
    names = made.statistics.names
    made.statistics.fit_attributes(mask_attributes(masks, tiny.SPACING, names))
    if isinstance(made, TwoStageModel):
        # Lesions have to fit into a host, so their shapes are taught.
        generator = torch.Generator().manual_seed(2)
        tiny._teach(made, made.shape, "two_stage", generator, steps=80)
    return made.eval()


@pytest.fixture(scope="session")
def trainable(tmp_path_factory):
    """A bundle without weights: the shipped ``train.json``, and a recipe that makes it small."""
    folder = tmp_path_factory.mktemp("trainable") / "pair"
    shipped = REPOSITORY / "bundles" / "sts_petct_hvae" / "configs" / "train.json"
    (folder / "configs").mkdir(parents=True)
    shutil.copyfile(shipped, folder / "configs" / "train.json")
    (folder / "configs" / "small.json").write_text(json.dumps(SMALL))
    train = json.loads(shipped.read_text())
    same = {key: train[key] for key in ("channels", "labels", "spacing", "spatial_shape")}
    loose = {"kind": "joint", "max_attempts": 200, "max_components": 10**6, "allow_border": True}
    inference = {
        "imports": ["$import math"],
        **same,
        "synthesis": loose,
        "network_def": train["network_def"],
    }
    (folder / "configs" / "inference.json").write_text(json.dumps(inference))
    metadata = {
        "version": "3.1.4",
        "changelog": {"3.1.4": "weights"},
        "data_source": "the shipped cases",
        "references": ["Of the method, 2020", "Of the shipped cases, DOI 10.1234/cases.1"],
        "network_data_format": {
            "inputs": {"image": {"num_channels": 2, "spatial_shape": [48, 48, 48]}},
            "outputs": {"pred": {"num_channels": 3, "spatial_shape": [48, 48, 48]}},
        },
    }
    (folder / "docs").mkdir()
    (folder / "docs" / "data_license.txt").write_text("1. Cases: see DOI 10.1234/cases.1.\n")
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    licence = "Weights: CC-BY-SA-4.0, from the shipped cases.\n\nApache License\nVersion 2.0\n"
    (folder / "LICENSE").write_text(licence)
    return folder


@pytest.fixture(scope="session")
def cases(tmp_path_factory):
    """Data list of six cases of PET and CT with balls; do not write into its folder."""
    return write_cases(tmp_path_factory.mktemp("cases"))


def write_cases(folder, count=6, training=4):
    """Writes bright balls in a body, with their masks, and the list of them."""
    grid = Grid.centred((tiny.SIDE,) * 3, tiny.SPACING)
    masks = tiny.balls(count, torch.Generator().manual_seed(0))[:, 0].numpy() > 0
    rng = np.random.default_rng(0)
    cases = []
    for index, mask in enumerate(masks):
        name = f"ball_{index:03d}"
        noise = rng.standard_normal((2, *mask.shape))
        images = {
            "pet": np.abs(1 + 6 * mask + 0.2 * noise[0]),
            "ct": 80 * mask + 20 * noise[1],
        }
        images["ct"][:2] = -900
        files = []
        for channel, array in images.items():
            files.append(folder / "images" / f"{name}_{channel}.nii.gz")
            write_volume(
                files[-1], array.astype(np.float32), grid, slope=0.005 if channel == "pet" else 1
            )
        label = folder / "labels" / f"{name}_gtv.nii.gz"
        write_volume(label, mask.astype(np.uint8), grid)
        split = "training" if index < training else "validation"
        cases.append(Case(tuple(files), label, name, split))
    info = {"name": "balls", "licence": {"name": "CC0-1.0", "url": "https://example.org/cc0"}}
    write_datalist(folder / "datalist.json", cases, info)
    return folder / "datalist.json"


@pytest.fixture(scope="session")
def scan(tmp_path_factory):
    """A body in PET and CT to put lesions into, with a mask that has one lesion."""
    folder = tmp_path_factory.mktemp("scan")
    side = 28
    grid = Grid.centred((side,) * 3, tiny.SPACING)
    rng = np.random.default_rng(0)
    points = np.stack(np.meshgrid(*[np.arange(side) - (side - 1) / 2] * 3, indexing="ij"))
    body = np.square(points).sum(0) < 12.5**2
    noise = rng.standard_normal((2, *body.shape))
    images = {
        "pet": np.abs(1 + 0.2 * noise[0]) * body,
        "ct": np.where(body, 40 + 20 * noise[1], -1000),
    }
    for name, array in images.items():
        step = 0.005 if name == "pet" else 1.0
        write_volume(folder / f"{name}.nii.gz", array.astype(np.float32), grid, slope=step)
    label = np.zeros(body.shape, np.uint8)
    label[10:12, 10:12, 10:12] = 1
    write_volume(folder / "label.nii.gz", label, grid)
    return folder


@pytest.fixture(scope="session")
def weights(cli, trainable, cases, tmp_path_factory):
    """What an undisturbed run of `small_runs.train` comes to."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    assert cli(*train(trainable, cases, out)).code == 0
    return weights_of(out)


@pytest.fixture
def shelf(bundles, monkeypatch):
    """The small bundles in place of the shipped ones."""
    monkeypatch.setattr("medvae3d.apps.catalogue.SHIPPED", (bundles,))
