"""`illume simulate`, `sample`, `scenes`, `starter`: command lines of the library, which need torch and no server."""

from __future__ import annotations

import click

from app.cli.server.programs import become


class LibraryCommand(click.Command):
    """A command that passes all its arguments, including `--help`, to a module of the library."""

    def __init__(self, name: str, module: str, summary: str) -> None:
        super().__init__(name, help=summary, add_help_option=False)
        self.module = module

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep all arguments unparsed."""
        ctx.args = list(args)
        return ctx.args

    def invoke(self, ctx: click.Context) -> None:
        """Replace this process with the library's command."""
        become(["-m", self.module, *ctx.args])


simulate = LibraryCommand("simulate", "illume.simulation", "Run the whole loop with a simulated critic.")
sample = LibraryCommand("sample", "illume.sampling", "Sample rationales for a file of prompts.")
scenes = LibraryCommand("scenes", "illume.scenes", "Make scenes with questions, answers and rationales.")
starter = LibraryCommand("starter", "illume.starter", "Train one small model for the tasks scenes, pairs and guard.")
