"""The code blocks of README and of the pages: each is run by a test, or has a reason not to be."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medvae3d.data.volumes import write_volume

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"))
    if not path.relative_to(ROOT)
    .as_posix()
    .startswith(("docs/_", "docs/tutorials/", "docs/reference/gallery"))
)  # tutorials are run by tests/test_docs.py, the gallery by tests/test_gallery.py
CODE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^(medvae3d|python|torchrun|make|pip|curl|git) ", re.MULTILINE)

# Blocks by page and number, which are run in this order, in one folder and one interpreter.
RUN = {
    "README.md": (1, 3, 4),
    "docs/concepts/patches.md": (0,),
    "docs/how-to/explore.md": (0, 1),
    "docs/how-to/export.md": (0, 1),
    "docs/how-to/formats.md": (
        "import_dataset([subject]",
        "samples/dataset.json",
        "wds",
        "as_dataset(200",
        "data align",
    ),
    "docs/how-to/generate.md": tuple(range(11)),
    "docs/how-to/insert.md": tuple(range(5)),
    "docs/how-to/monai-label.md": ("label-app",),
    "docs/how-to/on-the-fly.md": (1, 0, 2),  # the third is about the first
    "docs/how-to/train.md": ("data check",),
    "docs/reference/commands.md": ("flair.nii.gz",),
}
EXTRAS = {
    "docs/how-to/export.md": ("onnx", "onnxruntime", "onnxscript"),
    "docs/how-to/formats.md": ("highdicom", "webdataset"),
}
# What a block needs that is not there when tests run, by what is written in it.
REASONS = {
    "placeholders, not a command: what is possible there is read by test_commands_are_understood":
        r"\b(SOURCE|LIST|DIR|BUNDLE|NAME|WHAT|SYSTEM)\b|\[--|study segmentation \.\.\.",
    "several GPUs or a cluster": r"torchrun|SBATCH|ray start|sbatch|--ranks|--workers|RAY_",
    "data of the reader's own; the command is tried on phantoms in tests/apps or tests/studies":
        r"--(datalist|real) |\bcases\.json|datalist\.json|\$D/|DATA/|my_scans|n=10\.json|"
        r"data import (scans|hospital)|study classification|classification_study",
    "an installation of MONAI Label, which tests/label has": r"monailabel|label-app|127\.0\.0\.1",
    "the bundle in $B; tests/bundles runs these with each": r"^B=|\$B|monai\.bundle\.load",
    "minutes to hours, as it measures speed or trains": r"tests/benchmarks|study zoo",
    "what tests are started by themselves": r"^make |pre-commit",
}  # fmt: skip


def code_of(page):
    """Number, language and text of each block that is code; listings of files are none."""
    found = CODE.findall((ROOT / page).read_text(encoding="utf-8"))
    return [
        (number, language, text)
        for number, (language, text) in enumerate(found)
        if language in ("sh", "bash", "console", "python")
        or (language in ("", "text") and COMMAND.search(text))
    ]


def named(key, number, text):
    return key == number if isinstance(key, int) else key in text


def is_run(page, number, text):
    return any(named(key, number, text) for key in RUN.get(page, ()))


def reasons(text):
    return [why for why, words in REASONS.items() if re.search(words, text, re.MULTILINE)]


@pytest.mark.parametrize("page", PAGES)
def test_each_block_is_run_or_says_why_not(page):
    for number, _, text in code_of(page):
        if not is_run(page, number, text):
            assert reasons(text), (
                f"block {number} of {page} is neither in RUN of {Path(__file__).name} nor needs "
                f"anything that its REASONS name:\n{text}"
            )


def test_what_is_to_be_run_is_there():
    for page, keys in RUN.items():
        blocks = code_of(page)
        for key in keys:
            there = [number for number, _, text in blocks if named(key, number, text)]
            assert len(there) == 1, f"{page}: {key}"


def test_a_block_without_a_reason_is_seen():
    assert reasons("medvae3d generate sts_petct_hvae --count 4 --out out\n") == []
    assert reasons("medvae3d evaluate --real cases.json --synthetic s --out r\n") != []


def prepare(page, folder):
    """What a page takes for granted: the bundles of a checkout, and a few files of the reader."""
    import medvae3d
    from medvae3d.synthesis.hosts import phantom_host

    (folder / "bundles").symlink_to(ROOT / "bundles")
    if page in ("README.md", "docs/reference/commands.md"):
        bundle = medvae3d.load_bundle("brain_mri_ms_pavae")
        host = phantom_host(bundle.recipe, 0, 0)
        nowhere = np.zeros(host.grid.shape, bool)
        host.write_channel(0, folder / "flair.nii.gz", host.volumes[0].array, nowhere)
    if page in ("docs/how-to/explore.md", "docs/how-to/train.md"):
        write_cases(folder, medvae3d.load_bundle("hippocampus_mri_hvae"))
    if page == "docs/how-to/formats.md":
        import SimpleITK as sitk

        medvae3d.load_bundle("sts_petct_hvae").write(folder / "samples", 2, seed=1)
        for name in ("scan", "scan_seg"):
            voxels = np.zeros((4, 5, 6), np.uint8)
            voxels[1:3, 1:3, 1:3] = 1
            sitk.WriteImage(sitk.GetImageFromArray(voxels), str(folder / f"{name}.nrrd"))


def write_cases(folder, bundle):
    """The list of a reader, with cases A and B, samples of a bundle."""
    entries = []
    for name, sample in zip("AB", bundle.generate(2, seed=1), strict=True):
        image = sample.image.numpy()[0]
        write_volume(folder / f"{name}.nii.gz", image, sample.grid)
        write_volume(folder / f"{name}_mask.nii.gz", sample.label.numpy()[0], sample.grid)
        entries.append({"image": f"{name}.nii.gz", "label": f"{name}_mask.nii.gz", "name": name})
    (folder / "cases.json").write_text(json.dumps({"training": entries}))


def run_shell(text, cli):
    """Runs the lines of a block: our own commands in this process, others in one of their own."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0] == "medvae3d":
            done = cli(words[1:])
            assert done.exit_code == 0, f"{line}\n{done.output}\n{done.exception!r}"
        else:
            assert words[0] == "python", line
            call = [sys.executable, *words[1:]]
            done = subprocess.run(call, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a minute of processor time at most, more beside other work
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("page", RUN)
def test_blocks_do_what_they_say(page, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from medvae3d.apps.cli import app

    for needed in EXTRAS.get(page, ()):
        pytest.importorskip(needed)
    prepare(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    known = {"__name__": "__main__"}
    code = code_of(page)
    for key in RUN[page]:
        ((number, language, text),) = (each for each in code if named(key, each[0], each[2]))
        if language == "python":
            exec(compile(text, f"{page}, block {number}", "exec"), known)
        else:
            run_shell(text, lambda words: CliRunner().invoke(app, words))
