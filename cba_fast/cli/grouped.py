"""The help of a command: its options by what they are about, and an example at the end."""

import click

from .options import GROUPS


class GroupedCommand(click.Command):
    """A command whose options are listed in the groups of `GROUPS`."""

    def format_options(self, ctx, formatter):
        """Write a section for each group that has options."""
        rows: dict[str, list] = {group: [] for group in GROUPS}
        for param in self.get_params(ctx):
            if (row := param.get_help_record(ctx)) is not None:
                rows[getattr(param, "group", GROUPS[-1])].append(row)
        for group, found in rows.items():
            if found:
                with formatter.section(group):
                    formatter.write_dl(found)


def with_example(command: click.Command, name: str, example: str) -> click.Command:
    """Return the command with its options in groups and an example below them."""
    return GroupedCommand(
        command.name,
        callback=command.callback,
        params=command.params,
        help=command.help,
        epilog=f"\b\nExample:\n  cba-fast {name} {example}",
    )
