"""The `illume` command: its subcommands, and how mistakes on its command line are reported."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

COMMANDS = {
    "demo": ("app.cli.server.demo:demo", "Set up and run everything on this machine, with three example projects"),
    "serve": ("app.cli.server.serve:serve", "Run the web server"),
    "worker": ("app.cli.server.worker:worker", "Run a worker, which samples candidates and runs rounds"),
    "beat": ("app.cli.server.beat:beat", "Run the scheduler, which starts whatever is due"),
    "db": ("app.cli.db:db", "Maintain the database"),
    "user": ("app.cli.user:user", "Manage accounts"),
    "token": ("app.cli.token:token", "Manage tokens for the REST API"),
    "project": ("app.cli.project:project", "Manage projects"),
    "round": ("app.cli.round:tuning_round", "Start, list, cancel and resume tuning rounds"),
    "import": ("app.cli.files.import_file:import_command", "Import prompts from a file into a project"),
    "export": ("app.cli.files.export_file:export_command", "Export a project's dataset to a file"),
    "publish": ("app.cli.files.publish:publish_command", "Write or upload a repository for the Hugging Face Hub"),
    "erase": ("app.cli.erase:erase_command", "Permanently erase a person, an image or a project"),
    "backup": ("app.cli.files.backup:backup_command", "Back up the whole installation to one file"),
    "restore": ("app.cli.files.restore:restore_command", "Restore an installation from a backup"),
    "simulate": ("app.cli.method:simulate", "Run the whole loop with a simulated critic"),
    "sample": ("app.cli.method:sample", "Sample rationales for a file of prompts"),
    "scenes": ("app.cli.method:scenes", "Make scenes with questions, answers and rationales"),
    "starter": ("app.cli.method:starter", "Train one small model for the tasks scenes, pairs and guard"),
    "doctor": ("app.cli.doctor:doctor", "Check this installation and say how to fix what is wrong"),
}
"""Where each command is defined, and its line in the list of commands."""


class Illume(click.Group):
    """The group of all commands.

    A command's module is imported only when the command is used: help and completion must answer at once, and a
    command must not wait for the imports of the others.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The names in the order in which help lists them."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that `args` begin with, and load it."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, None if command is None else load_command(name or ""), rest

    def invoke(self, ctx: click.Context) -> int:
        """Run a command; its exit code."""
        from app.cli.terminal import report_failures

        return report_failures(lambda: super(Illume, self).invoke(ctx))


def load_command(name: str) -> click.Command:
    """Import the module of a command."""
    module, _, attribute = COMMANDS[name][0].partition(":")
    command: click.Command = getattr(import_module(module), attribute)
    return command


illume = Illume(
    "illume",
    commands={name: click.Command(name, short_help=summary) for name, (_, summary) in COMMANDS.items()},
    help="Critics pick the rationales that fit; their picks tune the vision-language model that wrote them.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
click.version_option(package_name="illume", message="illume %(version)s")(illume)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. A mistake of the caller's is reported in one sentence, never as a traceback."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code: Any = illume.main(words, prog_name="illume", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "illume"
        click.echo(f"illume: {' '.join(error.format_message().split())} See `{path} --help`.", err=True)
        return error.exit_code
    except click.Abort:
        return 130
    return int(code or 0)
