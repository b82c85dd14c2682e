"""Puts the bundles into wheels; everything else is declared in setup.cfg."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

# What a released bundle consists of: nothing that a training or a test run left in its folder.
BUNDLE_FILES = ("LICENSE", "configs/*", "docs/**/*", "models/model.pt")


class BuildWithBundles(build_py):
    """Copies ``bundles/`` to ``medvae3d/_bundles`` in a wheel.

    An editable installation reads ``bundles/`` in place. A ``package_dir`` entry would do the
    same for wheels, but it turns editable installations into import hooks.
    """

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for source, target in self.bundle_files().items():
            self.mkpath(str(Path(target).parent))
            self.copy_file(source, target)

    def bundle_files(self) -> dict[str, str]:
        here = Path(__file__).parent / "bundles"
        there = Path(self.build_lib) / "medvae3d" / "_bundles"
        found = (
            path
            for bundle in sorted(here.glob("*/configs/metadata.json"))
            for pattern in BUNDLE_FILES
            for path in sorted(bundle.parent.parent.glob(pattern))
            if path.is_file()
        )
        return {str(path): str(there / path.relative_to(here)) for path in found}


setup(cmdclass={"build_py": BuildWithBundles})
