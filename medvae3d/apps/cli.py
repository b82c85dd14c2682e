"""The command line.

What a user can put right is said in a message on the standard error, and the command leaves with
2; an interruption leaves with 130. Any other exception is a fault of ours and keeps its traceback.
Modules that take long to import are imported by the commands that need them.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from medvae3d.apps import (
    bench_command,
    bundle_commands,
    cite,
    data_commands,
    doctor,
    evaluate_command,
    explore_command,
    export_command,
    fill_command,
    generate_command,
    impute_command,
    label_command,
    study_commands,
)
from medvae3d.apps.console import refuse
from medvae3d.apps.run_options import with_run_options
from medvae3d.errors import MedvaeError

INPUT_ERROR, INTERRUPTED = 2, 130
LESS_MEMORY = "Give smaller volumes or fewer of them, or close other programs."


class Commands(TyperGroup):
    """Turns the errors of the library into messages and exit codes."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MedvaeError as error:
            refuse(str(error))
            raise typer.Exit(INPUT_ERROR) from None
        except MemoryError as error:
            cause = f" ({error})" if str(error) else ""
            refuse(f"memory ran out{cause}. {LESS_MEMORY}")
            raise typer.Exit(INPUT_ERROR) from None
        except RecursionError:
            refuse("a file is nested too deeply. Correct it.")
            raise typer.Exit(INPUT_ERROR) from None
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    name="medvae3d",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Synthetic 3D medical volumes with their lesion masks, from trained bundles.",
    epilog="Example: medvae3d generate sts_petct_hvae --count 4 --out made\n\n"
    "Exit codes: 0 done, 1 findings of a check, 2 bad input, 130 interrupted.",
)
app.command(rich_help_panel="Make")(generate_command.generate)
app.command(rich_help_panel="Make")(fill_command.fill)
app.command(rich_help_panel="Make")(impute_command.impute)
app.command(rich_help_panel="Make")(explore_command.explore)
app.command(rich_help_panel="Make")(bundle_commands.demo)
app.command("list", rich_help_panel="Make")(bundle_commands.list_all)
app.command(rich_help_panel="Make")(export_command.export)
app.command("label-app", rich_help_panel="Make")(label_command.label_app)
app.command(rich_help_panel="Train")(bundle_commands.train)
app.command(rich_help_panel="Train")(bundle_commands.figures)
app.command(rich_help_panel="Judge")(evaluate_command.evaluate)
app.command(rich_help_panel="Judge")(cite.cite)
app.command(rich_help_panel="This installation")(doctor.doctor)
app.command(rich_help_panel="This installation")(bench_command.bench)
app.add_typer(data_commands.app, name="data", rich_help_panel="Data")
app.add_typer(study_commands.app, name="study", rich_help_panel="Judge")


def give_run_options(commands: typer.Typer) -> None:
    """Gives every command, also those of groups, the options that all have in common."""
    for command in commands.registered_commands:
        if command.callback is not None:
            command.callback = with_run_options(command.callback)
    for group in commands.registered_groups:
        if group.typer_instance is not None:
            give_run_options(group.typer_instance)


give_run_options(app)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        from medvae3d import __version__

        typer.echo(f"medvae3d {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Synthetic 3D medical volumes with their lesion masks, from trained bundles."""


def main() -> None:
    """Runs the command line."""
    app(prog_name="medvae3d")
