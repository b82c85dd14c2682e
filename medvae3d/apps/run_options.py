"""What every command can do besides its own options: take them from a file, report, be quiet.

``--config FILE`` gives any option a value that the command line does not give, ``--report FILE``
writes down what was run and how it ended, ``--quiet`` prints nothing but errors,
``--trust`` lets bundles from elsewhere execute what they ask for. A command that
makes a folder leaves its options there as ``options.json``, which ``--config`` takes again.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import json
import math
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from medvae3d.apps.console import Stopwatch, quietly
from medvae3d.apps.trust import trusting
from medvae3d.errors import MedvaeError, OutputError, SettingError, causes
from medvae3d.exhaustion import explained
from medvae3d.files import is_plain, load_text, parse_json

OPTIONS_FILE = "options.json"
LARGEST_CONFIG = 1 << 18  # a second to parse
VERSIONS = ("medvae3d", "torch", "monai", "numpy", "nibabel", "SimpleITK", "torchio")
PANEL = "Every command"
FINDINGS = 1
# Ranges of one run are put together file by file, so nothing may lie there that is of one range
# alone; the records of the cases hold the options. A trained folder may be passed on, and options
# name paths of this machine; its train.json and run.json hold the settings.
NO_OPTIONS_FILE = {"generate", "train"}


Report = Annotated[
    Path | None,
    typer.Option(
        "--report", metavar="FILE", rich_help_panel=PANEL,
        help="Write versions, device, options, outputs and time there, as JSON.",
    ),
]  # fmt: skip
Quiet = Annotated[
    bool, typer.Option("--quiet", rich_help_panel=PANEL, help="Print nothing but errors.")
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust", rich_help_panel=PANEL,
        help="Let a bundle from elsewhere execute what its configuration asks for.",
    ),
]  # fmt: skip


def take_config(ctx: typer.Context, value: Path | None) -> Path | None:
    """Makes the options of a file the defaults of a command."""
    if value is not None:
        ctx.default_map = {**(ctx.default_map or {}), **read_config(value, ctx.command)}
    return value


Config = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", rich_help_panel=PANEL, is_eager=True, callback=take_config,
        help="Options from a YAML or JSON file; those of the command line come first.",
    ),
]  # fmt: skip
# What a command has besides its own: names, types and defaults.
COMMON: dict[str, tuple[Any, Any]] = {
    "config": (Config, None), "report_file": (Report, None), "quiet": (Quiet, False),
    "trust": (Trust, False),
}  # fmt: skip


def with_run_options(function: Callable[..., None]) -> Callable[..., None]:
    """A command that has ``--config``, ``--report`` and ``--quiet`` besides its own options."""
    signature = inspect.signature(function, eval_str=True)
    own = dict(signature.parameters)
    contexts = [name for name, each in own.items() if each.annotation is typer.Context]
    context = contexts[0] if contexts else "run_context"
    more = {name: kind for name, kind in COMMON.items() if name not in own}
    if not contexts:
        more[context] = (typer.Context, inspect.Parameter.empty)

    @functools.wraps(function)
    def run(**values: Any) -> None:
        ctx = values[context]
        quiet, report = values["quiet"], values["report_file"]
        trust = values["trust"]
        given = {name: value for name, value in values.items() if name in own}
        require_plain(values)
        with quietly(quiet), reported(ctx, report), trusting(trust), explained(), unwrapped():
            try:
                function(**given)
            except typer.Exit as stop:
                if stop.exit_code == FINDINGS:  # what was found is in what was written
                    _leave_options(ctx)
                raise
        _leave_options(ctx)

    keyword = inspect.Parameter.KEYWORD_ONLY
    added = [
        inspect.Parameter(name, keyword, annotation=kind, default=default)
        for name, (kind, default) in more.items()
    ]
    parameters = [each.replace(kind=keyword) for each in own.values()] + added
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters} | {"return": None}
    return run


@contextmanager
def unwrapped() -> Iterator[None]:
    """Brings an error of ours to light that MONAI has wrapped into others."""
    try:
        yield
    except (MedvaeError, typer.Exit, typer.Abort):
        raise
    except Exception as error:
        for each in causes(error):
            if isinstance(each, MedvaeError):
                raise each from None
        raise


@contextmanager
def reported(ctx: typer.Context, path: Path | None) -> Iterator[None]:
    """Writes down what a command did and how it ended, if a file is named for it.

    Raises:
        OutputError: If the folder of the file does not exist.
    """
    if path is not None and not path.resolve().parent.is_dir():
        raise OutputError(
            f"--report is {path}, whose folder does not exist. Make it, or choose another."
        )
    watch, started = Stopwatch(), datetime.now(timezone.utc)
    code, error = 0, None
    try:
        yield
    except typer.Exit as stop:
        code = int(stop.exit_code)
        raise
    except MedvaeError as problem:
        code, error = 2, str(problem)
        raise
    except KeyboardInterrupt:
        code, error = 130, "interrupted"
        raise
    except BaseException as fault:
        code, error = 1, f"{type(fault).__name__}: {fault}"
        raise
    finally:
        if path is not None:
            facts = {
                "command": ctx.command_path,
                "line": shlex.join(["medvae3d", *sys.argv[1:]]),
                "options": effective(ctx),
                "versions": versions(),
                "device": _device(ctx),
                "started": started.isoformat(timespec="seconds"),
                "seconds": round(watch.seconds, 3),
                "exit_code": code,
                "error": error,
                "outputs": _outputs(ctx),
            }
            _write(path, facts)


def require_plain(values: Mapping[str, Any]) -> None:
    """Refuses what no record of a run could hold: text that is not UTF-8, and control characters.

    Raises:
        SettingError: If there is such a value.
    """
    for name, value in values.items():
        for each in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(each, (str, Path)) and not is_plain(str(each)):
                raise SettingError(
                    f"{name.replace('_', '-')} is {str(each)!r}, which is not UTF-8 or holds "
                    f"control characters. Rename the file."
                )


def effective(ctx: typer.Context) -> dict[str, Any]:
    """The options of a run by their names, as JSON can hold them."""
    names = _names(ctx.command)
    return {
        names[key]: _plain(value)
        for key, value in sorted(ctx.params.items())
        if key in names and value not in (None, (), [])
    }


def versions() -> dict[str, str]:
    """Versions of Python, the package and what it stands on, without importing them."""
    found = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def read_config(path: Path, command: Any) -> dict[str, Any]:
    """Reads options from a YAML or JSON file.

    Args:
        path: The file: a mapping of option names, or what ``--report`` or a run left behind.
        command: The command whose options they are.

    Returns:
        Values by the names of the parameters.

    Raises:
        SettingError: If the file cannot be read, is no mapping, or has a name that the command
            does not have.
    """
    content = _parsed(path)
    if isinstance(content.get("options"), Mapping) and "command" in content:
        content = dict(content["options"])
    known = {option: key for key, option in _names(command).items()}
    many = {each.name for each in command.params if each.nargs == -1 or _is_multiple(each)}
    values: dict[str, Any] = {}
    for name, value in content.items():
        if value in (None, "", "null", "~"):
            continue
        option = str(name).removeprefix("--").replace("_", "-")
        if option not in known:
            near = difflib.get_close_matches(option, known, 1)
            advice = f"Did you mean {near[0]}?" if near else f"It has {', '.join(sorted(known))}."
            raise SettingError(f"{path}: {command.name} has no option {name!r}. {advice}")
        for each in value if isinstance(value, list) else (value,):
            if (
                isinstance(each, str)
                and not is_plain(each)
                or isinstance(each, float)
                and (not math.isfinite(each))
            ):
                raise SettingError(
                    f"{path}: {name} is {each!r}; allowed are finite numbers, and text in UTF-8 "
                    f"without control characters. Correct it."
                )
        if isinstance(value, Mapping):
            typed = value if path.suffix == ".json" else _typed(value)
            value = [f"{key}={_text(each)}" for key, each in typed.items()]
        elif known[option] in many and not isinstance(value, list):
            value = [value]
        values[known[option]] = value
    return values


def _parsed(path: Path) -> dict[str, Any]:
    import yaml

    from medvae3d.apps.yaml_files import parse_yaml

    try:
        text = load_text(path, LARGEST_CONFIG)
    except (OSError, ValueError) as error:
        raise SettingError(f"--config {path} cannot be read: {error}. Name a text file.") from error
    try:
        # Not the values that YAML 1.1 makes of text: it reads 2:30 as 150, and no as false.
        content = parse_json(text) if path.suffix == ".json" else parse_yaml(text)
    except ValueError as error:
        raise SettingError(f"--config {path} is no JSON: {error}. Correct it.") from error
    except yaml.YAMLError as error:
        cause = " ".join(str(error).split())
        raise SettingError(f"--config {path} is no YAML: {cause}. Correct it.") from error
    if not isinstance(content, dict):
        raise SettingError(
            f"--config {path} holds {type(content).__name__}; allowed is a mapping of option names "
            f"to values, such as `count: 20`. Write it so."
        )
    return content


def _names(command: Any) -> dict[str, str]:
    """Names of a command's parameters, and what they are called on the command line."""
    named = {}
    for parameter in command.params:
        if parameter.name in COMMON or parameter.name == "help":
            continue
        longest = max(parameter.opts, key=len)
        named[parameter.name] = longest.lstrip("-").replace("_", "-")
    return named


def _is_multiple(parameter: Any) -> bool:
    return bool(getattr(parameter, "multiple", False))


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def _typed(value: Any) -> Any:
    """What stands below a name in YAML, whose values are read as text: numbers are numbers."""
    if isinstance(value, Mapping):
        return {key: _typed(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_typed(each) for each in value]
    try:
        return parse_json(value)
    except ValueError:
        return value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _device(ctx: typer.Context) -> str | None:
    """Where a run computed; ``None`` for one that never loaded torch."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return None
    if ctx.params.get("device"):
        return str(ctx.params["device"])
    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else "cpu"


def _outputs(ctx: typer.Context) -> list[str]:
    places: Sequence[Any] = [ctx.params.get(name) for name in ("out", "kept")]
    return [str(place) for place in places if place is not None and Path(place).exists()]


def _leave_options(ctx: typer.Context) -> None:
    out = ctx.params.get("out")
    if ctx.info_name in NO_OPTIONS_FILE or out is None or not Path(out).is_dir():
        return
    _write(Path(out) / OPTIONS_FILE, {"command": ctx.command_path, "options": effective(ctx)})


def _write(path: Path, content: Mapping[str, Any]) -> None:
    from medvae3d.data.nifti import write_bytes

    write_bytes(path, json.dumps(content, indent=1).encode() + b"\n")
