"""The page ``docs/reference/systems.md``, written from the registry.

``python -m medvae3d.models.registry_page > docs/reference/systems.md`` writes it again.
"""

from __future__ import annotations

from medvae3d.models.registry import PAGES, PRIORS, STATES, SYSTEMS, System

HEAD = """# Systems

What `medvae3d list` prints, with papers. Every system makes an image of any number of channels and
its mask, and is trained with one command:

```text
usage: medvae3d train NAME --datalist LIST --out DIR
```

`DIR` is a bundle afterwards. [Evidence](evidence.md) says of each what it has to show, and what
holds it. This page is written from `medvae3d/models/registry.py`.
"""


def page() -> str:
    """The whole page."""
    states = "\n".join(f"- *{name}*: {what}." for name, what in STATES.items())
    lines = [HEAD, "## What a state means", "", states, "", "## The systems", ""]
    lines += ["| name | system | what it does | cases need | likelihood | state |"]
    lines += ["|---|---|---|---|---|---|", *(_row(each) for each in SYSTEMS.values()), ""]
    lines += [
        "*Likelihood*: whether the importance-weighted log-likelihood of a case can be estimated.",
        "Systems without one are compared by what they rebuild and sample alone:",
        "",
    ]
    lines += [
        f"- `{each.name}`: {each.density}." for each in SYSTEMS.values() if not each.tractable
    ]
    lines += ["", "## Priors", "", "Fitted after training; a system may be sampled from any.", ""]
    lines += ["| name | prior | what it is |", "|---|---|---|"]
    lines += [f"| `{each.name}` | {each.title} | {each.summary} |" for each in PRIORS.values()]
    sources = [each.papers for each in SYSTEMS.values()]
    sources += [each.papers for each in PRIORS.values()]
    papers = dict.fromkeys(paper for each in sources for paper in each)
    lines += ["", "[Priors](../concepts/priors.md) has their mathematics.", "", "## Papers", ""]
    lines += [f"- {paper.citation}." for paper in papers]
    lines += ["", "`medvae3d cite NAME` prints those of a system as BibTeX.", ""]
    return "\n".join(lines)


def _row(system: System) -> str:
    name = f"[`{system.name}`](../{PAGES.get(system.name, 'concepts/zoo.md')})"
    likelihood = "yes" if system.tractable else "no"
    state = system.state if system.is_trainable else f"{system.state}, from Python alone"
    cells = (name, system.title, system.summary, system.needs, likelihood, state)
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    import sys

    sys.stdout.write(page())
