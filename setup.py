"""Puts bundles and manifests into wheels; everything else is declared in setup.cfg."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
# What a released bundle consists of: nothing that a training or a test run left in its folder.
BUNDLE_FILES = ("LICENSE", "configs/*", "docs/**/*", "models/model.pt*")


class BuildWithData(build_py):
    """Copies ``bundles/`` and ``data_manifests/`` into the package in a wheel.

    They become ``medvae3d/_bundles`` and ``medvae3d/_data_manifests``. An editable installation
    reads both in place. A ``package_dir`` entry would do the same for wheels, but it turns editable
    installations into import hooks.
    """

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for source, target in self.data_files_to_copy().items():
            self.mkpath(str(Path(target).parent))
            self.copy_file(source, target)

    def data_files_to_copy(self) -> dict[str, str]:
        bundles = [
            path
            for metadata in sorted(ROOT.glob("bundles/*/configs/metadata.json"))
            for pattern in BUNDLE_FILES
            for path in sorted(metadata.parents[1].glob(pattern))
            if path.is_file()
        ]
        manifests = sorted(ROOT.glob("data_manifests/*.json"))
        package = Path(self.build_lib) / "medvae3d"
        return {
            str(path): str(package / f"_{path.relative_to(ROOT)}") for path in bundles + manifests
        }


setup(cmdclass={"build_py": BuildWithData})
