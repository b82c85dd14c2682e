"""Every parameter of every command: what it reads, writes, or neither; and how to call it.

A new option has to be entered here before the tests let it through.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# What a parameter names. A list names volumes, so that whatever reads a list reads volumes too.
LIST, VOLUME, BUNDLE, WEIGHTS, SOURCE, CITED = (
    "list", "volume", "bundle", "weights", "source", "cited",
)  # fmt: skip
READS: dict[tuple[str, str], str] = {
    ("generate", "bundle"): BUNDLE,
    ("generate", "mask"): VOLUME,
    ("generate", "host"): VOLUME,
    ("generate", "host_label"): VOLUME,
    ("generate", "host_brain"): VOLUME,
    ("fill", "bundle"): BUNDLE,
    ("fill", "image"): VOLUME,
    ("fill", "region"): VOLUME,
    ("fill", "label"): VOLUME,
    ("explore", "bundle"): BUNDLE,
    ("explore", "datalist"): LIST,
    ("explore", "host"): VOLUME,
    ("impute", "bundle"): BUNDLE,
    ("impute", "datalist"): LIST,
    ("impute", "image"): VOLUME,
    ("impute", "label"): VOLUME,
    ("export", "bundle"): BUNDLE,
    ("bench", "bundle"): BUNDLE,
    ("label-app", "bundle"): BUNDLE,
    ("train", "what"): BUNDLE,
    ("train", "like"): BUNDLE,
    ("train", "datalist"): LIST,
    ("figures", "bundle"): BUNDLE,
    ("figures", "datalist"): LIST,
    ("figures", "weights"): WEIGHTS,
    ("figures", "twin"): WEIGHTS,
    ("evaluate", "real"): LIST,
    ("evaluate", "synthetic"): LIST,
    ("evaluate", "reference"): LIST,
    ("evaluate", "features"): WEIGHTS,
    ("evaluate", "lpips"): WEIGHTS,
    ("evaluate", "bundle"): BUNDLE,
    ("cite", "what"): CITED,
    ("data import", "source"): SOURCE,
    ("data align", "datalist"): LIST,
    ("data export", "datalist"): LIST,
    ("data check", "datalist"): LIST,
    ("study segmentation", "datalist"): LIST,
    ("study segmentation", "bundle"): BUNDLE,
    ("study classification", "datalist"): LIST,
    ("study classification", "samples"): LIST,
    ("study zoo", "datalist"): LIST,
    ("study zoo", "like"): BUNDLE,
}
# Files and folders that are made; some are read too where they are there already.
WRITES = {"out", "kept", "report_file", "report"}
# Neither: numbers, names, switches. `folder` is one whose disk is looked at, `config` is read by
# every command and tried by itself.
PLAIN = {
    "likeliest", "rounds", "ray", "ray_address",
    "as_json", "folder", "count", "seed", "start", "volume_ml", "class_name", "temperature",
    "extrapolate", "lesions", "at", "allow_overlap", "device", "healthy", "margin", "what",
    "cases", "way", "points", "format", "decoder_only", "settings", "recipe", "resume",
    "verbose", "split", "section", "quick", "channels", "axes", "mode", "shard_size", "shape",
    "spacing", "name", "n", "ratio", "seeds", "arms", "steps", "fit", "fit_setting",
    "filter_by", "filter_above", "real_share", "synthetic_until", "workers", "export_nnunet",
    "task", "label_key", "classes", "preset", "generator_steps", "systems", "samples", "draws",
    "judged", "real_split", "synthetic_split", "most", "intensity", "labels", "viewer_cases",
    "paired", "quiet", "trust", "config", "context", "run_context",
}  # fmt: skip


class Good(NamedTuple):
    """Input with which nothing is wrong, to stand beside what is hostile."""

    joint: Path  # a bundle of one channel, one latent for image and mask
    pair: Path  # the same of two channels
    stages: Path  # a bundle of two channels, in two stages
    datalist: Path
    image: Path  # a scan for `stages`
    other: Path  # its second channel
    label: Path


Call = Callable[[Path, Path, Good], list[object]]


def list_calls() -> dict[str, Call]:
    """How each command is given a data list: of the list, a folder to write to and good input."""
    kinds = ("nnunet", "bids", "dicom", "webdataset")
    return {
        "data check": lambda f, out, g: ["data", "check", f],
        "data import": lambda f, out, g: ["data", "import", f, "--out", out / "o"],
        "data align": lambda f, out, g: ["data", "align", f, "--out", out / "o"],
        **{
            f"data export {kind}": lambda f, out, g, kind=kind: [
                "data", "export", f, "--out", out / "o", "--format", kind, "--channels", "CT",
            ]
            for kind in kinds
        },
        "explore": lambda f, out, g: [
            "explore", g.joint, "interpolation", "--datalist", f, "--out", out / "o",
            "--cases", "training_0,training_1",
        ],
        "impute": lambda f, out, g: ["impute", g.pair, "--datalist", f, "--out", out / "o"],
        "train": lambda f, out, g: ["train", "vae", "--datalist", f, "--out", out / "o"],
        "figures": lambda f, out, g: ["figures", g.joint, "--datalist", f, "--quick"],
        "evaluate --real": lambda f, out, g: [
            "evaluate", "--real", f, "--synthetic", g.datalist, "--out", out / "o",
        ],
        "evaluate --synthetic": lambda f, out, g: [
            "evaluate", "--real", g.datalist, "--synthetic", f, "--out", out / "o",
        ],
        "evaluate --reference": lambda f, out, g: [
            "evaluate", "--real", g.datalist, "--synthetic", g.datalist, "--reference", f,
            "--out", out / "o",
        ],
        "study segmentation": lambda f, out, g: [
            "study", "segmentation", "--datalist", f, "--bundle", g.joint, "--out", out / "o",
            "--arms", "real", "--steps", 1, "--seeds", 1,
        ],
        "study classification --datalist": lambda f, out, g: [
            "study", "classification", "--datalist", f, "--out", out / "o", "--shape", "8,8,8",
        ],
        "study classification --samples": lambda f, out, g: [
            "study", "classification", "--datalist", g.datalist, "--samples", f,
            "--out", out / "o", "--shape", "8,8,8",
        ],
        "study zoo": lambda f, out, g: [
            "study", "zoo", "--datalist", f, "--out", out / "o", "--systems", "vae",
        ],
    }  # fmt: skip


def volume_calls() -> dict[str, Call]:
    """How each command is given a volume itself."""

    def generate(*words: object) -> list[object]:
        return ["generate", *words, "--count", 1]

    return {
        "generate --host": lambda f, out, g: generate(
            g.stages, "--host", f, "--host", g.other, "--out", out / "o"
        ),
        "generate --host second": lambda f, out, g: generate(
            g.stages, "--host", g.image, "--host", f, "--out", out / "o"
        ),
        "generate --host-label": lambda f, out, g: generate(
            g.stages, "--host", g.image, "--host", g.other, "--host-label", f, "--out", out / "o"
        ),
        "generate --host-brain": lambda f, out, g: generate(
            g.stages, "--host", g.image, "--host", g.other, "--host-brain", f, "--out", out / "o"
        ),
        "generate --mask": lambda f, out, g: generate(g.stages, "--mask", f, "--out", out / "o"),
        "fill --image": lambda f, out, g: [
            "fill", g.stages, "--image", f, "--image", g.other, "--region", g.label,
            "--out", out / "o",
        ],
        "fill --region": lambda f, out, g: [
            "fill", g.stages, "--image", g.image, "--image", g.other, "--region", f,
            "--out", out / "o",
        ],
        "fill --label": lambda f, out, g: [
            "fill", g.stages, "--image", g.image, "--image", g.other, "--label", f, "--healthy",
            "--out", out / "o",
        ],
        "impute --image": lambda f, out, g: [
            "impute", g.pair, "--image", f"PET={f}", "--out", out / "o",
        ],
        "impute --label": lambda f, out, g: [
            "impute", g.pair, "--image", f"CT={g.datalist.parent / 'training_0_i.nii.gz'}",
            "--label", f, "--out", out / "o",
        ],
        "explore --host": lambda f, out, g: [
            "explore", g.stages, "volume", "--volume-ml", "5:9", "--host", f, "--host", g.other,
            "--out", out / "o",
        ],
    }  # fmt: skip


def bundle_calls() -> dict[str, Call]:
    """How each command is given a bundle."""
    return {
        "generate": lambda f, out, g: ["generate", f, "--count", 1, "--out", out / "o"],
        "fill": lambda f, out, g: [
            "fill", f, "--image", g.image, "--region", g.label, "--out", out / "o",
        ],
        "explore": lambda f, out, g: [
            "explore", f, "volume", "--volume-ml", "5:9", "--out", out / "o",
        ],
        "impute": lambda f, out, g: [
            "impute", f, "--image", f"CT={g.image}", "--out", out / "o",
        ],
        "bench": lambda f, out, g: ["bench", f],
        "export": lambda f, out, g: ["export", f, "--out", out / "o" / "a.onnx"],
        "label-app": lambda f, out, g: ["label-app", "--bundle", f, "--out", out / "o"],
        "train": lambda f, out, g: ["train", f, "--datalist", g.datalist, "--out", out / "o"],
        "train --like": lambda f, out, g: [
            "train", "vae", "--like", f, "--datalist", g.datalist, "--out", out / "o",
        ],
        "figures": lambda f, out, g: ["figures", f, "--datalist", g.datalist, "--quick"],
        "evaluate --bundle": lambda f, out, g: [
            "evaluate", "--real", g.datalist, "--synthetic", g.datalist, "--bundle", f,
            "--out", out / "o",
        ],
        "study segmentation": lambda f, out, g: [
            "study", "segmentation", "--datalist", g.datalist, "--bundle", f, "--out", out / "o",
        ],
        "study zoo --like": lambda f, out, g: [
            "study", "zoo", "--datalist", g.datalist, "--like", f, "--out", out / "o",
            "--systems", "vae",
        ],
    }  # fmt: skip


def weights_calls() -> dict[str, Call]:
    """How commands that refuse weights are given them; `evaluate` goes on without them."""

    return {
        "figures --weights": lambda f, out, g: [
            "figures", g.joint, "--datalist", g.datalist, "--quick", "--weights", f,
        ],
        "figures --twin": lambda f, out, g: [
            "figures", g.joint, "--datalist", g.datalist, "--quick", "--twin", f,
        ],
    }  # fmt: skip
