"""The folder of a report: what may lie in it already, and what is written into it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medvae3d.apps.evaluate_sections import Judged
from medvae3d.apps.report_page import make_page
from medvae3d.apps.report_plots import contact_sheets
from medvae3d.apps.run_options import OPTIONS_FILE
from medvae3d.data.locks import PART
from medvae3d.data.volumes import write_bytes
from medvae3d.errors import OutputError
from medvae3d.evaluation.sections import Section

PAGE, NUMBERS = "index.html", "report.json"
SHEETS = {"real": "real.png", "synthetic": "synthetic.png"}
FORMAT = "medvae3d report 1"


@dataclass(frozen=True)
class Report:
    """Everything that is written down.

    Attributes:
        content: What ``report.json`` holds.
        sections: The sections, as they were computed.
        judged: The cases.
    """

    content: dict[str, Any]
    sections: Mapping[str, Section]
    judged: Judged = field(repr=False)


def write_report(report: Report, folder: Path, viewer_cases: int) -> None:
    """Writes pictures, page and numbers, each whole or not at all.

    Args:
        report: The report.
        folder: Where to; see `require_own_folder`.
        viewer_cases: Cases in the viewer of the page; with none, there are no pictures of cases
            either.
    """
    sheets = contact_sheets(report.judged) if viewer_cases else {}
    text = make_page(report.content, report.sections, report.judged, sheets, viewer_cases)
    numbers = json.dumps(report.content, indent=1, allow_nan=False)
    for name, file in SHEETS.items():
        if name in sheets:
            write_bytes(folder / file, sheets[name])
        else:
            (folder / file).unlink(missing_ok=True)
    write_bytes(folder / PAGE, text.encode())
    # Last: a folder with its numbers is whole.
    write_bytes(folder / NUMBERS, numbers.encode() + b"\n")


def require_own_folder(out: str | Path, *also: str | Path | None) -> Path:
    """Checks that a folder is new or empty, or holds an earlier report and nothing else.

    Args:
        out: The folder.
        *also: Further files that may lie in it.

    Raises:
        OutputError: If it holds other files.
    """
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; a report needs a folder. Choose another name.")
    own = {
        PAGE,
        NUMBERS,
        OPTIONS_FILE,
        *SHEETS.values(),
        *(Path(each).name for each in also if each is not None),
    }
    names = (path.name for path in folder.glob("*") if not PART.fullmatch(path.name))
    foreign = sorted(name for name in names if name not in own)
    if foreign:
        raise OutputError(
            f"{folder} holds {', '.join(foreign[:3])}{', ...' * (len(foreign) > 3)}, which is no "
            f"part of a report. Choose an empty folder, or that of an earlier report."
        )
    numbers = folder / NUMBERS
    if numbers.exists() and FORMAT not in numbers.read_text(encoding="utf-8", errors="replace"):
        raise OutputError(f"{numbers} is not of this command. Choose an empty folder.")
    return folder
