"""How the pages under docs/ become a site; ``make docs`` builds it, warnings are errors.

Pages are written to be read as they lie in the repository too. What a site needs besides is added
while it is built: model cards and other pages from outside of this folder, links that follow them,
the table of contents, and the reference of the library from its docstrings.
"""

from __future__ import annotations

import ast
import re
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
GENERATED = DOCS / "_generated"
# Pages that lie elsewhere, and where they come to lie.
OUTSIDE = {
    ROOT / "README.md": "readme",
    ROOT / "CHANGELOG.md": "changelog",
    ROOT / "CONTRIBUTING.md": "contributing",
    **{
        card: f"bundles/{card.parents[1].name}/README"
        for card in sorted(ROOT.glob("bundles/*/docs/README.md"))
    },
}
# Captions of the table of contents, and what is listed under them.
CONTENTS = {
    "Tutorials": "tutorials/*",
    "How to": "how-to/*",
    "Concepts": "concepts/*",
    "Reference": "reference/*",
    "Library": "_generated/api/*",
    "Bundles": "_generated/bundles/*/README",
    "Project": "_generated/*",
}

project = "medvae3d"
author = "the authors of medvae3d"
project_copyright = "the authors of medvae3d, Apache-2.0"
release = metadata.version("medvae3d")
version = ".".join(release.split(".")[:2])

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["gallery/*", "notebooks/*", "_build/*"]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4
# Short names of types that stand in several modules, such as Batch, are not links.
suppress_warnings = ["ref.python"]
html_theme = "furo"
html_title = f"medvae3d {release}"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["site.css"]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_inherit_docstrings = False
napoleon_use_rtype = False
napoleon_use_ivar = True
default_role = "code"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def collect(app: Any) -> None:
    """Copies pages from outside of this folder, and writes one page for each package."""
    shutil.rmtree(GENERATED, ignore_errors=True)
    for source, name in OUTSIDE.items():
        target = GENERATED / f"{name}.md"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
        for picture in source.parent.glob("*.png"):
            shutil.copyfile(picture, target.parent / picture.name)
    (GENERATED / "api").mkdir(parents=True)
    for package in sorted((ROOT / "medvae3d").iterdir()):
        if package.name.startswith(("_", ".")) or package.name == "apps":
            continue
        if package.suffix == ".py" or (package / "__init__.py").exists():
            (GENERATED / "api" / f"{package.stem}.rst").write_text(_api(package), encoding="utf-8")


def _api(package: Path) -> str:
    """A page with all public modules of a package, or with one module."""
    name = f"medvae3d.{package.stem}"
    files = [package] if package.suffix == ".py" else sorted(package.rglob("*.py"))
    lines = [name, "=" * len(name), ""]
    for file in files:
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        module = module.removesuffix(".__init__")
        has_text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
        if file.name == "__init__.py" or not has_text:
            continue
        if module != name:
            lines += [module, "-" * len(module), ""]
        lines += [f".. automodule:: {module}", ""]
    return "\n".join(lines)


def follow(app: Any, docname: str, source: list[str]) -> None:
    """Lets links of a page lead to where its targets lie in the site."""
    if Path(app.env.doc2path(docname)).suffix != ".md":
        return
    page = DOCS / f"{docname}.md"
    origin = {f"_generated/{name}": path for path, name in OUTSIDE.items()}.get(docname, page)

    def moved(match: re.Match[str]) -> str:
        target, hash_, anchor = match[2].partition("#")
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        file = (origin.parent / target).resolve()
        if file in OUTSIDE:
            there = GENERATED / f"{OUTSIDE[file]}.md"
        elif file.is_relative_to(DOCS):
            there = file
        elif file.suffix == ".png" and origin in OUTSIDE:
            there = page.parent / file.name
        else:  # a file of the repository that is no page: its name alone
            return f"{match[1][1:-1]} (`{file.relative_to(ROOT)}`)" if match[1] else match[0]
        depth = "../" * docname.count("/")
        return f"{match[1]}({depth}{there.relative_to(DOCS).as_posix()}{hash_}{anchor})"

    parts = re.split(r"(```.*?```)", source[0], flags=re.DOTALL)
    source[0] = "".join(
        part if part.startswith("```") else re.sub(r"(\[[^\]]*\])\(([^)\s]+)\)", moved, part)
        for part in parts
    )
    if docname == "index":
        source[0] += _contents()


def _contents() -> str:
    blocks = []
    listed: set[str] = {"index"}
    for caption, pattern in CONTENTS.items():
        pages = [
            path.relative_to(DOCS).with_suffix("").as_posix()
            for suffix in (".md", ".rst")
            for path in sorted(DOCS.glob(pattern + suffix))
        ]
        pages = [page for page in pages if page not in listed]
        listed.update(pages)
        body = "\n".join(pages)
        blocks.append(f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{body}\n```\n")
    return "".join(blocks)


def as_mathml(display: str) -> Any:
    """How a formula is written: as MathML, which browsers draw without any script."""

    def visit(translator: Any, node: Any) -> None:
        from docutils.nodes import SkipNode

        text = node.astext().strip()
        text = re.sub(r"\\begin\{split\}|\\end\{split\}", "", text)
        translator.body.append(convert(text, display=display))
        raise SkipNode

    return visit


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", collect)
    app.connect("source-read", follow)
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(as_mathml("inline"), None),
        block_renderers=(as_mathml("block"), None),
    )
