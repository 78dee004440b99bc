"""The program: exit codes, one-line errors, --config, and a --help that imports nothing heavy."""

from __future__ import annotations

import argparse
import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from toprl_export.cli import arguments
from toprl_export.cli.main import COMMANDS, main
from toprl_export.errors import UserError

HEAVY = ("torch", "transformers", "onnx", "onnxruntime", "sklearn", "matplotlib", "numpy", "PIL")
Runner = Callable[[argparse.Namespace], int]


@pytest.fixture
def fake_command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Runner], None]:
    """Puts a command ``train`` with a few flags, and the given ``run``, in the place of the real one."""

    def install(run: Runner) -> None:
        def add_parser(subparsers: arguments.Subparsers) -> None:
            parser = subparsers.add_parser("train")
            arguments.add_seed(parser)
            parser.add_argument("--limit", type=arguments.positive_int)
            arguments.add_device(parser)
            arguments.add_overwrite(parser)
            arguments.add_config(parser)
            parser.add_argument("--budget-kept")
            parser.add_argument("--agent", action="append")
            parser.add_argument("--pair", nargs="+", type=int)
            parser.add_argument("--plugin", action=argparse.BooleanOptionalAction, default=True)

        module = ModuleType("toprl_export.cli.train")
        module.add_parser = add_parser  # type: ignore[attr-defined]  # a module made by hand
        module.run = run  # type: ignore[attr-defined]  # as above
        monkeypatch.setitem(sys.modules, "toprl_export.cli.train", module)

    return install


def raising(error: BaseException) -> Runner:
    def run(_: argparse.Namespace) -> int:
        raise error

    return run


def parsed(fake_command: Callable[[Runner], None], *argv: str) -> argparse.Namespace:
    seen: list[argparse.Namespace] = []
    fake_command(lambda args: seen.append(args) or 0)
    assert main(["train", *argv]) == 0
    return seen[0]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("budget 0 is too small"), 2, "error: budget 0 is too small"),
        (UserError("two\nlines"), 2, "error: two lines"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ModuleNotFoundError("", name="torch"), 2, "error: this needs torch, which is not installed: "),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x/y"), 2, "error: no space left on the disk of /x/y"),
    ],
)
def test_expected_failures_are_one_line(
    fake_command: Callable[[Runner], None],
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    line: str,
):
    fake_command(raising(error))
    assert main(["train"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(line) and captured.err.count("\n") == 1


@pytest.mark.parametrize("error", [RuntimeError("oops"), ModuleNotFoundError("", name="torch.gone"), OSError(5, "io")])
def test_a_bug_shows_its_traceback_and_is_no_failed_gate(
    fake_command: Callable[[Runner], None], capsys: pytest.CaptureFixture[str], error: Exception
):
    fake_command(raising(error))
    assert main(["train"]) == 70
    captured = capsys.readouterr().err
    assert "Traceback" in captured and captured.splitlines()[-1].startswith("error: this is a bug")


@pytest.mark.parametrize("argv", [["--debug", "train"], ["train", "--debug"]])
def test_debug_shows_the_traceback_of_a_users_mistake(
    fake_command: Callable[[Runner], None], capsys: pytest.CaptureFixture[str], argv: list[str]
):
    fake_command(raising(UserError("wrong")))
    assert main(argv) == 2
    captured = capsys.readouterr().err
    assert "Traceback" in captured and captured.splitlines()[-1] == "error: wrong"


def test_a_commands_exit_code_is_the_programs(fake_command: Callable[[Runner], None]):
    fake_command(lambda _: 1)
    assert main(["train"]) == 1


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'? known: train, build"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["train", "--nonsense"], "unrecognized arguments: --nonsense: see toprl-export train --help"),
        (["train", "--see", "1"], "unrecognized arguments: --see 1"),
        (["train", "--seed", "-1"], "-1 is out of range, expected 0 to 4294967295"),
        (["train", "--seed", "x"], "'x' is not a whole number"),
        (["train", "--limit", "0"], "0 is too small, expected at least 1"),
        (["train", "--device", "tpu"], "unknown device 'tpu', expected auto, cpu, cuda or cuda:N"),
    ],
)
def test_mistyped_command_lines(
    fake_command: Callable[[Runner], None], capsys: pytest.CaptureFixture[str], argv: list[str], expected: str
):
    fake_command(raising(AssertionError("must not run")))
    assert main(argv) == 2
    captured = capsys.readouterr().err
    assert captured.startswith("error: ") and expected in captured and captured.count("\n") == 1


def test_config_supplies_defaults_and_typed_flags_win(fake_command: Callable[[Runner], None], tmp_path: Path):
    config = tmp_path / "train.yaml"
    config.write_text(
        "seed: 5\nlimit: 7\nbudget_kept: [192, 64]\nagent: [a, b]\npair: [1, 2]\noverwrite: true\nplugin: false\n"
    )
    args = parsed(fake_command, "--config", str(config), "--limit", "9", "--agent=c")
    assert (args.seed, args.limit, args.budget_kept) == (5, 9, "192,64")
    assert (args.agent, args.pair, args.overwrite, args.plugin) == (["c"], [1, 2], True, False)
    assert parsed(fake_command, f"--config={config}").agent == ["a", "b"]


def test_config_false_leaves_a_switch_off_and_an_empty_file_changes_nothing(
    fake_command: Callable[[Runner], None], tmp_path: Path
):
    config = tmp_path / "train.yaml"
    config.write_text("overwrite: false\n")
    assert parsed(fake_command, "--config", str(config)).overwrite is False
    config.write_text("# nothing\n")
    with_file, without = parsed(fake_command, "--config", str(config)), parsed(fake_command)
    assert {**vars(with_file), "config": None} == vars(without)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("sead: 1", "unknown flag in {path} 'sead'; did you mean 'seed'? known: agent, "),
        ("config: other.yaml", "unknown flag in {path} 'config'"),
        ("seed: x", "argument --seed: 'x' is not a whole number"),
        ("seed:", "seed has no value"),
        ("seed: true", "seed holds True, expected a text or a number"),
        ("seed: {a: 1}", "seed holds {{'a': 1}}, expected a text or a number"),
        ("overwrite: 3", "overwrite is 3, expected true or false"),
        ("[1, 2]", "holds a list, expected lines such as `seed: 0`"),
        ("seed: [1", "is not valid YAML"),
        ("!!python/object:os.system {}", "is not valid YAML"),
    ],
)
def test_config_mistakes(
    fake_command: Callable[[Runner], None],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    content: str,
    expected: str,
):
    config = tmp_path / "train.yaml"
    config.write_text(content)
    fake_command(raising(AssertionError("must not run")))
    assert main(["train", "--config", str(config)]) == 2
    captured = capsys.readouterr().err
    assert expected.format(path=config) in captured and captured.count("\n") == 1


def test_config_that_cannot_be_read(fake_command: Callable[[Runner], None], capsys: pytest.CaptureFixture[str]):
    fake_command(raising(AssertionError("must not run")))
    assert main(["train", "--config", "/no/such/file.yaml"]) == 2
    assert "--config /no/such/file.yaml cannot be read (No such file or directory)" in capsys.readouterr().err


def test_bare_program_prints_help_and_fails(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 2
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("toprl-export ")


def test_help_imports_nothing_heavy():
    script = (
        "import sys\nfrom toprl_export.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "usage: toprl-export" in done.stdout
    assert done.stderr.strip() == "[]"


def test_a_reader_that_goes_away_is_met_quietly():
    script = "import sys; from toprl_export.cli.main import main; sys.exit(main(['doctor']))"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=writing, stderr=subprocess.PIPE, env=buffered, check=False
    )
    os.close(writing)
    assert done.returncode == 141
    assert done.stderr == b""
