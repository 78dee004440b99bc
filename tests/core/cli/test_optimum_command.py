"""``optimum-cli export toprl``: what Optimum's parser shows, takes and passes on to ``build``."""

from __future__ import annotations

import sys

import click
import pytest

from toprl_export.cli.build import command as build
from toprl_export.cli.main import PROGRAM, program

optimum_cli = pytest.importorskip("optimum.commands.optimum_cli", reason="needs the extra toprl-export[optimum]")


@pytest.fixture
def optimum(monkeypatch: pytest.MonkeyPatch):
    """Runs ``optimum-cli export toprl WORDS``: its exit code, and what was given to our own program."""

    def run(*words: str) -> tuple[int, list[str]]:
        given: list[str] = []

        def main(argv: list[str]) -> int:
            given.extend(argv)
            return 7

        monkeypatch.setattr("toprl_export.cli.optimum_command.main", main)
        monkeypatch.setattr(sys, "argv", ["optimum-cli", "export", "toprl", *words])
        with pytest.raises(SystemExit) as left:
            optimum_cli.main()
        return left.value.code, given

    return run


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), []),
        (("DIR",), ["--output-dir", "DIR"]),
        (("--output-dir", "DIR"), ["--output-dir", "DIR"]),
        (("--agent", "a", "DIR", "--agent", "b"), ["--agent", "a", "--agent", "b", "--output-dir", "DIR"]),
        (("--budget-kept=12,6", "--static-k", "--dry-run"), ["--budget-kept", "12,6", "--static-k", "--dry-run"]),
        (("--stage", "0,1", "--prec", "fp16"), ["--stage-layers", "0,1", "--precision", "fp16"]),
        (
            ("--engine", "trt", "--max-batch", "2", "--refittable"),
            ["--engine", "trt", "--max-batch", "2", "--refittable"],
        ),
        (("--config", "f.yaml", "-q", "--json"), ["--config", "f.yaml", "-q", "--json"]),
        (("--model", "a model"), ["--model", "a model"]),
    ],
)
def test_words_are_passed_on_to_build_in_their_order(optimum, words: tuple[str, ...], expected: list[str]):
    assert optimum(*words) == (7, ["build", *expected])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("one", "--output-dir", "two"), "one and --output-dir are both given: leave one of the two out"),
        (("one", "two"), "unrecognized arguments: two"),
        (("--no-such-flag",), "unrecognized arguments: --no-such-flag"),
        (("--baseline",), "argument --baseline: expected one argument"),
        (("--static-k=3",), "argument --static-k: ignored explicit argument '3'"),
    ],
)
def test_what_optimums_parser_refuses_is_not_passed_on(optimum, capsys, words: tuple[str, ...], expected: str):
    assert optimum(*words) == (2, [])
    assert expected in capsys.readouterr().err.strip().splitlines()[-1]


def test_its_help_has_every_option_of_build_in_the_same_sections(optimum, capsys):
    assert optimum("--help") == (0, [])
    shown = " ".join(capsys.readouterr().out.split())
    with click.Context(build, info_name="build", parent=click.Context(program, info_name=PROGRAM)) as ctx:
        sections = build.sections(ctx)
    assert "TensorRT (--engine trt)" in sections
    for heading, options in sections.items():
        assert f" {heading}: " in shown
        for option in options:
            assert all(flag in shown for flag in option.opts), option.opts
    assert "[default: fp32]" in shown and "--attention {plugin,native}" in shown


def test_optimums_own_commands_are_still_there(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(sys, "argv", ["optimum-cli", "--help"])
    with pytest.raises(SystemExit):
        optimum_cli.main()
    assert "export" in capsys.readouterr().out
