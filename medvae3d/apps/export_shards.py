"""Cases as WebDataset shards: tar files with the same bytes each time."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medvae3d import __version__
from medvae3d.apps.export_cases import copy_volume, facts_of, label_names, letters, write_json
from medvae3d.data.datalists import Case, DataList
from medvae3d.data.importing.shards import INDEX
from medvae3d.data.volumes import read_mask, write_volume
from medvae3d.errors import SettingError

SHARD_CASES = 64


class ShardWriter:
    """Writes cases to one tar file after the other.

    Args:
        folder: Where to.
        names: Names of the channels; each is the ending of a member.
        listed: The cases.
        size: Most cases in a shard.
    """

    def __init__(
        self, folder: Path, names: Sequence[str], listed: DataList, size: int = SHARD_CASES
    ) -> None:
        if size < 1:
            raise SettingError(f"--shard-size is {size}; allowed is 1 or more.")
        self.folder, self.listed, self.size = folder, listed, size
        self.words = [letters(name) for name in names]
        if len({"label", "json", *self.words}) != len(self.words) + 2:
            raise SettingError(
                f"the channels are {', '.join(names)}; names of members have to differ from each "
                f"other and from label and json. Name them with --channels."
            )
        self.shards: list[dict[str, Any]] = []

    def write(self, case: Case, index: int) -> None:
        """Adds a case; the first one of a shard begins its file."""
        # No dots: a sample's name ends at the first one.
        key = f"{letters(case.name)}_{index:06d}"
        scratch = self.folder / ".scratch.nii.gz"
        members: list[tuple[str, bytes]] = []
        for word, path in zip(self.words, case.image, strict=True):
            copy_volume(path, scratch)
            members.append((f"{key}.{word}.nii.gz", scratch.read_bytes()))
        if case.label is not None:
            mask = read_mask(case.label)
            write_volume(scratch, mask.array, mask.grid)
            members.append((f"{key}.label.nii.gz", scratch.read_bytes()))
        scratch.unlink(missing_ok=True)
        facts = {"case": case.name, "subject": case.subject, "split": case.split}
        facts |= facts_of(case, self.listed)
        members.append((f"{key}.json", json.dumps(facts, ensure_ascii=False).encode()))
        if index % self.size == 0:
            self._close()
            self.shards.append({"file": f"{index // self.size:06d}.tar", "cases": 0})
        shard = self.shards[-1]
        shard["cases"] += 1
        with tarfile.open(self.folder / shard["file"], "a", format=tarfile.PAX_FORMAT) as archive:
            for name, content in members:
                # Neither time nor owner: equal cases give equal bytes.
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(content), 0o644
                archive.addfile(member, io.BytesIO(content))

    def finish(self) -> None:
        """Writes the index of the shards."""
        self._close()
        write_json(
            self.folder / INDEX,
            {
                "name": str(self.listed.info.get("name", "cases")),
                "medvae3d": __version__,
                "channels": self.words,
                "labels": label_names(self.listed),
                "licence": self.listed.info.get("licence"),
                "cases": len(self.listed),
                "synthetic_cases": sum(facts_of(c, self.listed)["Synthetic"] for c in self.listed),
                "shards": self.shards,
            },
        )

    def _close(self) -> None:
        if self.shards:
            content = (self.folder / self.shards[-1]["file"]).read_bytes()
            self.shards[-1] |= {
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
