"""A segmentation bundle for the volumes of a generator: what its pairs are to train.

It has the form of any bundle of MONAI: a U-Net on the generator's channels, voxels and labels, that
looks at a scan window by window. It comes without weights; a server shows it once it is trained.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medvae3d.apps.bundle_files import content, parser_of, read_json
from medvae3d.errors import BundleError

SUFFIX = "_segmenter"
# Of a window: smaller ones see too little around a lesion, and U-Net halves four times.
LEAST_SIDE, MULTIPLE = 40, 8
FACTS = ("channels", "labels", "spacing", "spatial_shape")


def write_segmenter(generator: Path, folder: Path) -> Path:
    """Writes the segmentation bundle of a generator.

    Args:
        generator: Folder of the bundle that makes pairs.
        folder: Folder to write, named after it.

    Raises:
        BundleError: If the labels of the generator are not 0, 1, 2 and so on.
    """
    config = generator / "configs" / "inference.json"
    facts = content(parser_of(config, generator), FACTS, config)
    values = list(facts["labels"].values())
    if values != list(range(len(values))):
        raise BundleError(
            f"{generator.name} has the label values {values}; a segmenter learns 0, 1, 2 and so "
            f"on. Leave this bundle out, or give its labels these values."
        )
    metadata = read_json(generator / "configs" / "metadata.json")
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    shared = _shared(facts)
    for name, written in (
        ("metadata", _metadata(metadata, facts, generator.name)),
        ("inference", {**shared, **_inference()}),
        ("train", {**shared, **_training()}),
    ):
        path = folder / "configs" / f"{name}.json"
        path.write_text(json.dumps(written, indent=4) + "\n", encoding="utf-8")
    shutil.copyfile(generator / "LICENSE", folder / "LICENSE")
    (folder / "docs").mkdir()
    (folder / "docs" / "README.md").write_text(_card(generator.name), encoding="utf-8")
    return folder


def window_of(shape: list[int]) -> list[int]:
    """Voxels of a window for volumes of a generator."""
    return [-(-max(LEAST_SIDE, n) // MULTIPLE) * MULTIPLE for n in shape]


def _shared(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "imports": [
            "$import os",
            "$import numpy as np",
            "$import torch",
            "$import monai",
            "$import medvae3d.apps.label as label",
            "$import medvae3d.data.preparation as preparation",
        ],
        "bundle_root": ".",
        "dataset_dir": "",
        "datalist": "$@dataset_dir + '/datalist.json'",
        "output_dir": "$@bundle_root + '/eval'",
        "ckpt_dir": "$@bundle_root + '/models'",
        "ckpt_path": "$@ckpt_dir + '/model.pt'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "seed": 20,
        "channels": facts["channels"],
        "labels": facts["labels"],
        "spacing": facts["spacing"],
        "window": window_of(list(facts["spatial_shape"])),
        "network_def": {
            "_target_": "UNet",
            "spatial_dims": 3,
            "in_channels": "$len(@channels)",
            "out_channels": "$len(@labels)",
            "channels": [16, 32, 64, 128],
            "strides": [2, 2, 2],
            "num_res_units": 1,
            "norm": "instance",
            "dropout": 0.0,
        },
        "network": "$@network_def.to(@device)",
    }


def _windows() -> dict[str, Any]:
    return {
        "_target_": "SlidingWindowInferer",
        "roi_size": "@window",
        "sw_batch_size": 1,
        "overlap": 0.25,
        "mode": "gaussian",
        "padding_mode": "constant",
        "cval": -1.0,
    }


def _inference() -> dict[str, Any]:
    prepared = "preparation.case_transforms(@channels, @spacing, None, is_loaded=True)"
    saved = {"output_dir": "@output_dir", "resample": False, "separate_folder": False}
    return {
        "preprocessing": {
            "_target_": "Compose",
            "transforms": f"$[label.LoadHostd('image')] + {prepared}",
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$preparation.read_items(@datalist, 'testing', optional=True)",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
        "inferer": _windows(),
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "image",
                    "nearest_interp": True,
                    "to_tensor": True,
                },
                {
                    "_target_": "medvae3d.apps.inference.SpatialShaped",
                    "keys": "pred",
                },
                {"_target_": "CastToTyped", "keys": "pred", "dtype": "$np.uint8"},
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_postfix": "mask",
                    "output_dtype": "$np.uint8",
                    **saved,
                },
            ],
        },
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "_disabled_": "$not os.path.exists(@ckpt_path)",
                "load_path": "@ckpt_path",
                "load_dict": {"model": "@network"},
                "map_location": "@device",
            }
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()"],
    }


def _training() -> dict[str, Any]:
    both = ["image", "label"]
    return {
        "max_epochs": 20,
        "epoch_length": 50,
        "batch_size": 2,
        "learning_rate": 0.002,
        "val_interval": 5,
        "loss": {
            "_target_": "DiceCELoss",
            "to_onehot_y": True,
            "softmax": True,
            "include_background": False,
        },
        "optimizer": {
            "_target_": "torch.optim.Adam",
            "params": "$@network.parameters()",
            "lr": "@learning_rate",
        },
        "deterministic": "$preparation.case_transforms(@channels, @spacing, None, @labels)",
        "train": {
            "preprocessing": {
                "_target_": "Compose",
                "transforms": [
                    "$monai.transforms.Compose(@deterministic)",
                    {
                        "_target_": "SpatialPadd",
                        "keys": "image",
                        "spatial_size": "@window",
                        "value": -1.0,
                    },
                    {"_target_": "SpatialPadd", "keys": "label", "spatial_size": "@window"},
                    {
                        "_target_": "RandCropByPosNegLabeld",
                        "keys": both,
                        "label_key": "label",
                        "spatial_size": "@window",
                        "pos": 2,
                        "neg": 1,
                        "num_samples": 1,
                        "allow_smaller": True,
                    },
                    {
                        "_target_": "RandAffined",
                        "keys": both,
                        "prob": 0.8,
                        "rotate_range": [0.17, 0.17, 0.17],
                        "scale_range": [0.1, 0.1, 0.1],
                        "translate_range": [3, 3, 3],
                        "mode": ["bilinear", "nearest"],
                        "padding_mode": "border",
                    },
                    {"_target_": "RandFlipd", "keys": both, "prob": 0.5, "spatial_axis": 0},
                    {
                        "_target_": "RandScaleIntensityd",
                        "keys": "image",
                        "factors": 0.1,
                        "prob": 0.8,
                    },
                    {
                        "_target_": "RandShiftIntensityd",
                        "keys": "image",
                        "offsets": 0.05,
                        "prob": 0.8,
                    },
                ],
            },
            "dataset": {
                "_target_": "CacheDataset",
                "data": "$preparation.read_items(@datalist, 'training')",
                "transform": "@train#preprocessing",
                "progress": False,
            },
            "dataloader": {
                "_target_": "DataLoader",
                "dataset": "@train#dataset",
                "batch_size": "@batch_size",
                "shuffle": True,
                "num_workers": 0,
            },
            "inferer": {"_target_": "SimpleInferer"},
            "postprocessing": {"_target_": "Compose", "transforms": []},
            "handlers": [
                {
                    "_target_": "ValidationHandler",
                    "_disabled_": "@validate#is_empty",
                    "validator": "@validate#evaluator",
                    "epoch_level": True,
                    "interval": "@val_interval",
                },
                {
                    "_target_": "LrScheduleHandler",
                    "lr_scheduler": {
                        "_target_": "torch.optim.lr_scheduler.CosineAnnealingLR",
                        "optimizer": "@optimizer",
                        "T_max": "@max_epochs",
                    },
                    "print_lr": False,
                },
                {
                    "_target_": "StatsHandler",
                    "iteration_log": False,
                    "epoch_log": False,
                },
                {
                    "_target_": "medvae3d.training.checkpoints.WeightsSaver",
                    "path": "@ckpt_path",
                    "network": "@network",
                },
            ],
            "trainer": {
                "_target_": "medvae3d.training.holding.HeldSupervisedTrainer",
                "device": "@device",
                "max_epochs": "@max_epochs",
                "epoch_length": "@epoch_length",
                "train_data_loader": "@train#dataloader",
                "network": "@network",
                "optimizer": "@optimizer",
                "loss_function": "@loss",
                "inferer": "@train#inferer",
                "train_handlers": "@train#handlers",
            },
        },
        "validate": {
            "preprocessing": {"_target_": "Compose", "transforms": "%deterministic"},
            "dataset": {
                "_target_": "CacheDataset",
                "data": "$preparation.read_items(@datalist, 'validation', optional=True)",
                "transform": "@validate#preprocessing",
                "progress": False,
            },
            "is_empty": "$len(@validate#dataset) < 1",
            "dataloader": {
                "_target_": "DataLoader",
                "_disabled_": "@validate#is_empty",
                "dataset": "@validate#dataset",
                "batch_size": 1,
            },
            "inferer": _windows(),
            "postprocessing": {
                "_target_": "Compose",
                "transforms": [
                    {
                        "_target_": "AsDiscreted",
                        "keys": ["pred", "label"],
                        "argmax": [True, False],
                        "to_onehot": "$len(@labels)",
                    }
                ],
            },
            "handlers": [{"_target_": "StatsHandler", "iteration_log": False}],
            "key_metric": {
                "dice": {
                    "_target_": "MeanDice",
                    "include_background": False,
                    "output_transform": "$monai.handlers.from_engine(['pred', 'label'])",
                }
            },
            "evaluator": {
                "_target_": "SupervisedEvaluator",
                "_disabled_": "@validate#is_empty",
                "device": "@device",
                "val_data_loader": "@validate#dataloader",
                "network": "@network",
                "inferer": "@validate#inferer",
                "postprocessing": "@validate#postprocessing",
                "key_val_metric": "@validate#key_metric",
                "val_handlers": "@validate#handlers",
            },
        },
        "initialize": ["$monai.utils.set_determinism(seed=@seed)"],
        "run": ["$@train#trainer.run()"],
    }


def _metadata(generator: Mapping[str, Any], facts: Mapping[str, Any], name: str) -> dict[str, Any]:
    kept = ("schema", "monai_version", "pytorch_version", "numpy_version", "copyright")
    text = f"Finds in a scan what {name} makes; trained on real and on synthetic cases"
    try:
        image = generator["network_data_format"]["inputs"]["image"]
    except (KeyError, TypeError):
        raise BundleError(
            f"metadata.json of {name} does not say what goes into its network "
            f"(network_data_format, inputs, image); a segmenter reads the same. Add it."
        ) from None
    names = {str(value): label for label, value in facts["labels"].items()}
    outputs = {
        "pred": {
            "type": "probabilities",
            "format": "segmentation",
            "num_channels": len(names),
            "spatial_shape": window_of(list(facts["spatial_shape"])),
            "dtype": "float32",
            "value_range": [],
            "is_patch_data": True,
            "channel_def": names,
        }
    }
    return {
        **{key: generator[key] for key in kept if key in generator},
        "version": "0.1.0",
        "changelog": {"0.1.0": "written by medvae3d label-app"},
        "required_packages_version": generator.get("required_packages_version", {}),
        "name": f"Segmenter of {name}",
        "task": "Segmentation of 3D medical images",
        "description": text,
        "authors": "those who trained it",
        "intended_use": "Drafts of labels for a person to correct; no medical device",
        "network_data_format": {"inputs": {"image": image}, "outputs": outputs},
    }


def _card(name: str) -> str:
    return (
        f"# Segmenter of {name}\n\nA small U-Net that drafts labels, trained by the MONAI Label "
        f"application of medvae3d on the cases that were labelled there and on synthetic ones. It "
        f"comes without weights. Its drafts are for a person to correct; no medical device.\n"
    )
