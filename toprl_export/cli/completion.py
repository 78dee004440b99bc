"""``toprl-export completion``: the script by which a shell completes commands, flags and names."""

from __future__ import annotations

import click

from toprl_export.cli.command import INPUTS, Command, argument


@click.command(
    "completion",
    cls=Command,
    help="Print the script that completes commands and flags in a shell.",
    examples=[
        'completion bash > ~/.toprl-export.bash && echo ". ~/.toprl-export.bash" >> ~/.bashrc',
        'completion zsh > ~/.toprl-export.zsh && echo ". ~/.toprl-export.zsh" >> ~/.zshrc',
        "completion fish > ~/.config/fish/completions/toprl-export.fish",
    ],
)
@argument(
    INPUTS,
    "shell",
    type=click.Choice(("bash", "zsh", "fish")),
    metavar="SHELL",
    help="bash, zsh or fish",
)
def command(shell: str) -> None:
    """Print the script."""
    from click.shell_completion import get_completion_class

    from toprl_export.cli.main import COMPLETE_VARIABLE, PROGRAM, program

    found = get_completion_class(shell)
    assert found is not None  # click brings one for each of the shells above
    click.echo(found(program, {}, PROGRAM, COMPLETE_VARIABLE).source(), nl=False)
