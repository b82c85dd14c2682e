"""What each page takes for granted when its blocks are run, and what makes them small; no tests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from page_blocks import ROOT
from page_runs import NETWORK, SMALLER, STAGES, STEPS, as_fitted, as_options, run_words
from small_bundles import NAMES
from small_readers import write_list

import medvae3d


@dataclass(frozen=True)
class Given:
    """What a page takes for granted.

    Attributes:
        files: Writes what the reader has into a folder.
        smaller: What is appended to commands here, besides `page_runs.SMALLER`.
        replaced: Words of the Python here, and what stands in their place to make it small.
        order: Numbers of blocks, where they are not run one after the other.
        before: What is done before a block, by its number.
        needs: Packages that are optional.
    """

    files: Callable[[Path], object] = lambda folder: None
    smaller: Mapping[str, Sequence[str]] = field(default_factory=dict)
    replaced: Mapping[str, str] = field(default_factory=dict)
    order: Sequence[int] = ()
    before: Mapping[int, Callable[[Path], object]] = field(default_factory=dict)
    needs: Sequence[str] = ()


def shelf(folder: Path) -> Path:
    """The shipped bundles, as copies that accept whatever shape a mask has.

    What a training of a few steps makes is no lesion yet; the limits on what a sample may look like
    are all that differs, and trained folders take them over.
    """
    for name in NAMES:
        shutil.copytree(ROOT / "bundles" / name, folder / name)
        path = folder / name / "configs" / "inference.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        content["synthesis"] |= {
            "max_attempts": 200, "max_components": 10**6, "allow_border": True,
        }  # fmt: skip
        path.write_text(json.dumps(content, indent=4), encoding="utf-8")
    return folder


def list_of(name: str, **what: object) -> Callable[[Path], object]:
    """Writes a data list of that name, see `small_readers.write_list`."""
    return lambda folder: write_list(folder / name, **what)  # type: ignore[arg-type]


def together(*writers: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: [write(folder) for write in writers]


def without(name: str) -> Callable[[Path], object]:
    """Removes what a block made to which the next one is an alternative."""
    return lambda folder: shutil.rmtree(folder / name, ignore_errors=True)


def flair(folder: Path) -> None:
    """A head to put lesions into."""
    from medvae3d.synthesis.hosts import phantom_host

    bundle = medvae3d.load_bundle("brain_mri_ms_pavae")
    host = phantom_host(bundle.recipe, 0, 0)
    nowhere = np.zeros(host.grid.shape, bool)
    host.write_channel(0, folder / "flair.nii.gz", host.volumes[0].array, nowhere)


def one_scan(folder: Path) -> None:
    """PET, CT and mask of one patient, and a hole."""
    listed = json.loads((folder / "cases.json").read_text())["training"][0]
    for source, name in zip([*listed["image"], listed["label"]], ("pet", "ct", "tumour"),
                            strict=True):  # fmt: skip
        shutil.copyfile(folder / source, folder / f"{name}.nii.gz")
    shutil.copyfile(folder / "tumour.nii.gz", folder / "hole.nii.gz")


def my_scans(folder: Path) -> None:
    """A scan of two channels, as hosts are named."""
    listed = json.loads((folder / "cases.json").read_text())["training"][0]
    (folder / "my_scans").mkdir()
    for number, file in enumerate(listed["image"]):
        shutil.copyfile(folder / file, folder / "my_scans" / f"a_{number:04d}.nii.gz")


def other_formats(folder: Path) -> None:
    """NRRD files by twos, folders of DICOM studies, and samples to pass on."""
    from small_dicom import put_series, ramp

    medvae3d.load_bundle("sts_petct_hvae").write(folder / "samples", 2, seed=1)
    voxels = np.zeros((4, 5, 6), np.uint8)
    voxels[1:3, 1:3, 1:3] = 1
    (folder / "scans").mkdir()
    names = ("scan", "scan_seg", "scans/a_mask", "scans/a_arterial", "scans/a_venous")
    for times, name in enumerate(names, 1):
        image = sitk.GetImageFromArray(voxels * (1 if name.endswith("mask") else times))
        sitk.WriteImage(image, str(folder / f"{name}.nrrd"))
    kinds = {"oncology": (("PT", "wb pet"), ("CT", "ct thorax")),
             "neurology": (("MR", "ax FLAIR fs"), ("MR", "sag T1"))}  # fmt: skip
    for source, series in kinds.items():
        for number, (modality, words) in enumerate(series):
            put_series(
                folder / source / str(number), modality, uid=number + 1, description=words,
                values=lambda x, y, z, times=number + 1: times * ramp(x, y, z),
            )  # fmt: skip


def explored(folder: Path) -> None:
    """Cases with a class, in the form of a bundle of two labels."""
    classes = ("benign", "malignant")
    write_list(folder / "cases.json", "hippocampus_mri_hvae", classes=classes)


def lists_of_a_study(folder: Path) -> None:
    """A run of a study that leaves its lists behind."""
    words = "medvae3d study segmentation --datalist cases.json --bundle hvae=sts_petct_hvae"
    run_words([*words.split(), *STUDY, "--n", "10", "--arms", "classical", "--out", "study"])


def protocol_lists(folder: Path) -> None:
    """A list of the first ten cases, as a study leaves one behind, and the folder of $D."""
    write_list(folder / "lists" / "n=10.json", "hippocampus_mri_hvae", training=10, unseen=0)
    shutil.copytree(folder / "hippocampus", folder, dirs_exist_ok=True)


FITTED = as_fitted((*STEPS, *NETWORK))
BUNDLE_RUN = "python -m monai.bundle run --config_file"
MONAI_STEPS = as_options((*STEPS, *NETWORK))
STUDY = ("--steps", "2", "--seeds", "1")
# As in the folder of the public data sets.
SARCOMAS = list_of("sts_petct/datalist.json", shape=(24, 24, 24), spacing=(6, 6, 6))
HIPPOCAMPI = list_of(
    "hippocampus/datalist.json", bundle="hippocampus_mri_hvae", training=10, unseen=4
)
BRAINS = list_of(
    "open_ms/datalist.json", bundle="brain_mri_ms_pavae", training=2, unseen=1, has_brains=True,
    shape=(64, 64, 64),
)  # fmt: skip
GIVEN: Mapping[str, Given] = {
    "README.md": Given(
        together(flair, list_of("cases.json", training=10)),
        {"medvae3d study segmentation": (*STUDY, *FITTED)},
    ),
    "docs/concepts/conditional.md": Given(list_of("cases.json", classes=("a", "b"))),
    "docs/concepts/discrete.md": Given(list_of("cases.json"), {
        "medvae3d train vqvae": (*STEPS, *NETWORK, "network_def#prior_steps=2"),
    }),
    "docs/concepts/models.md": Given(
        together(SARCOMAS, HIPPOCAMPI), {"python tests/benchmarks/slices.py": ("--count", "2")}
    ),
    "docs/concepts/priors.md": Given(
        list_of("cases.json"),
        {"medvae3d train": (*STEPS, *NETWORK, "network_def#rank=2")},
        needs=("zuko",),
    ),
    "docs/concepts/scale.md": Given(smaller={"medvae3d generate": ("--count", "2")}),
    "docs/how-to/bundles.md": Given(
        together(list_of("cases.json"), my_scans),
        {f"{BUNDLE_RUN} bundles/sts_petct_hvae/configs/inference.json": ("--count", "4"),
         f"{BUNDLE_RUN} bundles/sts_petct_hvae/configs/train.json": MONAI_STEPS,
         "torchrun": MONAI_STEPS},
    ),
    "docs/how-to/evaluate.md": Given(together(
        list_of("cases.json"), list_of("train.json"), list_of("held_out.json"),
        list_of("synthetic/dataset.json"),
    ), {
        "medvae3d evaluate --real cases.json --synthetic synthetic --out report --filter": (
            "--sections", "agreement", "--viewer-cases", "1",
        ),
    }, {"most=100": 'most=100, sections="masks"'}),
    "docs/how-to/explore.md": Given(
        together(explored, SARCOMAS),
        before={3: together(list_of("cases.json"), one_scan), 5: without("filler")},
    ),
    "docs/how-to/export.md": Given(needs=("onnx", "onnxruntime", "onnxscript")),
    "docs/how-to/formats.md": Given(other_formats, needs=("pydicom", "highdicom", "webdataset")),
    "docs/how-to/impute.md": Given(together(
        list_of("cases.json", lacking="CT"),
        one_scan,
        list_of("third_without_ct.json", lacking="CT"),
        list_of("unseen_without_ct.json", lacking="CT"),
    )),
    "docs/how-to/on-the-fly.md": Given(order=(1, 0, 2)),  # the third is about the first
    "docs/how-to/study-classification.md": Given(
        together(list_of("cases.json", classes=("AD", "CN"), training=6), SARCOMAS),
        {"medvae3d study classification --datalist": (
            *SMALLER["medvae3d study classification"], "--shape", "16,16,16",
        )},
        {"TableForm()": "TableForm(shape=(16, 16, 16))",
         'n=("20", "all")': 'n=("3",), seeds=1, steps=2, generator_steps=2'},
    ),
    "docs/how-to/study.md": Given(
        list_of("cases.json", training=10),
        {"medvae3d train": (*STEPS, *NETWORK[1:]),  # in the form of the bundle
         "medvae3d study segmentation": (*STUDY, "--arms", "classical,synthetic"),
         "medvae3d study segmentation --datalist cases.json --bundle hvae=sts_petct_hvae": (
             *STUDY, *FITTED, "--n", "3", "--ratio", "1",
             "--workers", "1",  # each imports torch for itself; docs/concepts/scale.md has two
         )},
        {'split="validation"':
             f'split="validation", steps=2, seeds=1, fit_changes={(*STEPS, *NETWORK)}'},
        before={3: together(without("study"), lists_of_a_study), 4: without("study")},
    ),
    "docs/how-to/train.md": Given(
        list_of("cases.json"),
        before={
            5: list_of("cases.json", bundle="brain_mri_ms_pavae"),  # one channel of MR
            6: list_of("cases.json"),
        },
    ),
    "docs/reference/commands.md": Given(flair),
    "docs/reference/comparison.md": Given(HIPPOCAMPI),
    "docs/reference/figures.md": Given(
        list_of("DATA/sts_petct/datalist.json"),
        {BUNDLE_RUN: ("--quick", "True", "--sections", "['control']", "--tensorboard", "False")},
        replaced={'out="figures"': 'out="figures", quick=True, sections="control"'},
    ),
    "docs/reference/gaussian-problem.md": Given(
        smaller={
            "python tests/benchmarks/gaussian_problem.py": ("--iterations", "20", "--seeds", "1"),
        }
    ),
    "docs/reference/performance.md": Given(
        smaller={f"python tests/benchmarks/{script}.py": words.split() for script, words in {
            "patches_a_second": "--cases 2 --shape 40 40 40 --patch 16 --rounds 1 --step-ms 1",
            "decoding": "--only windows --head 48 --window 16",
            "writing": "--rounds 1 --count 1",
            "startup": "--rounds 1",
            "step_times": "--device cpu --formats bfloat16 --batches 1 --rounds 1",
        }.items()}
    ),
    "docs/reference/protocol.md": Given(
        together(HIPPOCAMPI, BRAINS, protocol_lists),
        {"medvae3d study segmentation": (*STUDY, *FITTED, "--ratio", "1"),
         "medvae3d study segmentation --datalist open_ms/datalist.json": (
             *STUDY, *as_fitted((
                 *STEPS, *STAGES, "prior_passes=8", "epoch_length=60", "learning_rate=0.01",
             )),
         )},
        before={number: without("study") for number in range(1, 5)},
    ),
    "docs/reference/studies-classification.md": Given(
        together(SARCOMAS, HIPPOCAMPI, BRAINS),
        {"medvae3d study classification --task tumour_patch --preset rhvae_small_sample": (
            *SMALLER["medvae3d study classification"], "--arms", "classical,synthetic",
        )},
    ),
}  # fmt: skip
