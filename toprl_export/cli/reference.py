"""The reference page of the command line, made from the commands: ``python -m toprl_export.cli.reference``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click

from toprl_export.cli.command import GENERAL, Command
from toprl_export.cli.main import PROGRAM, program

INTRODUCTION = f"""\
# Command line

Made from the commands themselves by `python -m toprl_export.cli.reference > docs/cli.md`; `{PROGRAM} COMMAND --help`
prints the same.

Exit codes: 0 done or passed, 1 a gate failed, 2 a user error (reported in one line), 70 a bug (with its traceback),
130 interrupted, 141 the reader of the output went away, 143 terminated (SIGTERM). With `--json`, an error is also
printed on standard output, as `{{"error": {{"message": "…", "exit_code": 2}}}}`. The log goes to standard
error; off a terminal, long work adds a line every 30 seconds. `NO_COLOR` switches colours off.

Shell completion: `{PROGRAM} completion bash|zsh|fish` prints the script.

Flags may stand in a YAML file:

```yaml
# {PROGRAM} train --config train.yaml --seed 1        (a flag given here overrides the file)
task: mini-colour
budget-kept: [192, 64]
overwrite: true
```
"""


def reference_page() -> str:
    """The page as Markdown; it depends on the commands and on what the installed engines bring, and on nothing else."""
    with click.Context(program, info_name=PROGRAM) as top:
        commands = list(_commands(top, program))
        general = _listed(commands[0], commands[0].command.get_params(commands[0]), GENERAL)
        parts = [INTRODUCTION, f"Every command has:\n\n{general}", *map(_command_part, commands)]
    return "\n".join(parts)


def _commands(parent: click.Context, group: click.Group) -> Iterator[click.Context]:
    """A context for every command of the group and of the groups in it."""
    for name in group.list_commands(parent):
        command = group.get_command(parent, name)
        assert command is not None  # it is listed
        ctx = click.Context(command, info_name=name, parent=parent, **command.context_settings)
        if isinstance(command, click.Group):
            yield from _commands(ctx, command)
        else:
            yield ctx


def _command_part(ctx: click.Context) -> str:
    command = ctx.command
    assert isinstance(command, Command)  # all of this program's are
    usage = " ".join([ctx.command_path, *command.collect_usage_pieces(ctx)])
    examples = "".join(f"{PROGRAM} {line}\n" for line in command.examples)
    sections = [
        f"{heading}:\n\n{_listed(ctx, params, heading)}"
        for heading, params in command.sections(ctx).items()
        if heading != GENERAL
    ]
    return "\n".join(
        [
            f"## {ctx.command_path}\n",
            f"{command.help}\n",
            f"```\n{usage}\n```\n",
            *sections,
            f"```bash\n{examples}```\n",
        ]
    )


def _listed(ctx: click.Context, params: Sequence[click.Parameter], heading: str) -> str:
    """The parameters of one section as a list."""
    command = ctx.command
    assert isinstance(command, Command)
    records = [param.get_help_record(ctx) for param in params if command.section_of(param, ctx) == heading]
    return "".join(f"- `{record[0]}`: {record[1]}\n" for record in records if record)


if __name__ == "__main__":
    click.echo(reference_page(), nl=False)
