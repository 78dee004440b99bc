"""The program: exit codes, one-line errors, --config, the log, and a --help that imports nothing heavy."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

from toprl_export import progress
from toprl_export.cli import options
from toprl_export.cli.analyze import ANALYSES
from toprl_export.cli.command import Command, option
from toprl_export.cli.main import COMMANDS, main
from toprl_export.errors import UserError

HEAVY = ("torch", "transformers", "onnx", "onnxruntime", "sklearn", "matplotlib", "numpy", "PIL")
Run = Callable[..., Any]


@pytest.fixture
def fake_command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Run], None]:
    """Puts a command ``train`` with a few flags, and the given body, in the place of the real one."""

    def install(run: Run) -> None:
        @click.command("train", cls=Command, examples=["train --seed 1"])
        @options.seed
        @option("Inputs", "--limit", type=options.POSITIVE)
        @options.device
        @options.overwrite
        @option("Inputs", "--budget-kept")
        @option("Inputs", "--agent", multiple=True)
        @option("Inputs", "--pair", several_words=True, type=options.POSITIVE)
        @option("Inputs", "--plugin/--no-plugin", default=True)
        @option("Inputs", "--condition", type=click.Choice(("none", "text")))
        @options.as_json
        def command(**flags: Any) -> Any:
            return run(**flags)

        module = ModuleType("toprl_export.cli.train")
        module.command = command  # type: ignore[attr-defined]  # a module made by hand
        monkeypatch.setitem(sys.modules, "toprl_export.cli.train", module)

    return install


def raising(error: BaseException) -> Run:
    def run(**_: Any) -> int:
        raise error

    return run


def parsed(fake_command: Callable[[Run], None], *argv: str) -> dict[str, Any]:
    seen: list[dict[str, Any]] = []
    fake_command(lambda **flags: seen.append(flags))
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
    fake_command: Callable[[Run], None],
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
    fake_command: Callable[[Run], None], capsys: pytest.CaptureFixture[str], error: Exception
):
    fake_command(raising(error))
    assert main(["train"]) == 70
    captured = capsys.readouterr().err
    assert "Traceback" in captured and captured.splitlines()[-1].startswith("error: this is a bug")


@pytest.mark.parametrize("argv", [["--debug", "train"], ["train", "--debug"]])
def test_debug_shows_the_traceback_of_a_users_mistake(
    fake_command: Callable[[Run], None], capsys: pytest.CaptureFixture[str], argv: list[str]
):
    fake_command(raising(UserError("wrong")))
    assert main(argv) == 2
    captured = capsys.readouterr().err
    assert "Traceback" in captured and captured.splitlines()[-1] == "error: wrong"


@pytest.mark.parametrize(
    ("error", "argv", "code", "message"),
    [
        (UserError("wrong"), ["--json"], 2, "wrong"),
        (KeyboardInterrupt(), ["--json"], 130, "interrupted"),
        (RuntimeError("oops"), ["--json"], 70, "this is a bug in toprl-export: "),
        (AssertionError("must not run"), ["--json", "--nonsense"], 2, "unknown option --nonsense"),
        (AssertionError("must not run"), ["--seed", "x", "--json"], 2, "--seed: 'x' is not a whole number"),
        (UserError("wrong"), ["--config", "{path}"], 2, "wrong"),
    ],
)
def test_errors_are_a_json_object_besides_the_line(
    fake_command: Callable[[Run], None],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    error: BaseException,
    argv: list[str],
    code: int,
    message: str,
):
    (tmp_path / "json.yaml").write_text("json: true")
    fake_command(raising(error))
    assert main(["train", *(word.format(path=tmp_path / "json.yaml") for word in argv)]) == code
    captured = capsys.readouterr()
    told = json.loads(captured.out)["error"]
    assert told["exit_code"] == code and told["message"].startswith(message)
    assert captured.err.splitlines()[-1].removeprefix("error: ") == told["message"]


def test_a_commands_exit_code_is_the_programs(fake_command: Callable[[Run], None]):
    fake_command(lambda **_: 1)
    assert main(["train"]) == 1


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'? known: train, build"),
        (["--nonsense"], "unknown option --nonsense: see toprl-export --help"),
        (["train", "--zzz"], "unknown option --zzz: see toprl-export train --help"),
        (["train", "--see", "1"], "unknown option --see; did you mean --seed? see toprl-export train --help"),
        (["train", "rest"], "unexpected extra argument (rest): see toprl-export train --help"),
        (["train", "--seed", "-1"], "--seed: -1 is out of range, expected 0 to 4294967295"),
        (["train", "--seed", "x"], "--seed: 'x' is not a whole number"),
        (["train", "--seed", "--overwrite"], "--seed needs a value, not the flag --overwrite"),
        (["train", "--overwrite", "--seed"], "--seed' requires an argument"),
        (["train", "--limit", "0"], "--limit: 0 is too small, expected at least 1"),
        (["train", "--pair", "1", "x"], "--pair: 'x' is not a whole number"),
        (["train", "--device", "tpu"], "unknown device 'tpu', expected auto, cpu, cuda or cuda:N"),
        (
            ["train", "--condition", "test"],
            "unknown value of --condition 'test'; did you mean 'text'? known: none, text",
        ),
    ],
)
def test_mistyped_command_lines(
    fake_command: Callable[[Run], None], capsys: pytest.CaptureFixture[str], argv: list[str], expected: str
):
    fake_command(raising(AssertionError("must not run")))
    assert main(argv) == 2
    captured = capsys.readouterr().err
    assert captured.startswith("error: ") and expected in captured and captured.count("\n") == 1


def test_a_flag_may_take_several_words_and_be_repeated(fake_command: Callable[[Run], None]):
    flags = parsed(fake_command, "--pair", "1", "2", "--seed", "-0", "--pair", "3", "--pair=4", "--agent", "a")
    assert (flags["pair"], flags["seed"], flags["agent"]) == ((1, 2, 3, 4), 0, ("a",))


def test_config_supplies_defaults_and_typed_flags_win(fake_command: Callable[[Run], None], tmp_path: Path):
    config = tmp_path / "train.yaml"
    config.write_text(
        "seed: 5\nlimit: 7\nbudget_kept: [192, 64]\nagent: [a, b]\npair: [1, 2]\noverwrite: true\nplugin: false\n"
    )
    flags = parsed(fake_command, "--config", str(config), "--limit", "9", "--agent=c")
    assert (flags["seed"], flags["limit"], flags["budget_kept"]) == (5, 9, "192,64")
    assert (flags["agent"], flags["pair"], flags["overwrite"], flags["plugin"]) == (("c",), (1, 2), True, False)
    assert parsed(fake_command, f"--config={config}")["agent"] == ("a", "b")
    assert parsed(fake_command, "--plugin", "--config", str(config))["plugin"] is True


@pytest.mark.parametrize(
    ("content", "plugin"), [("no-plugin: true", False), ("no_plugin: false", True), ("plugin: true", True)]
)
def test_config_knows_both_names_of_a_switch(
    fake_command: Callable[[Run], None], tmp_path: Path, content: str, plugin: bool
):
    config = tmp_path / "train.yaml"
    config.write_text(content)
    assert parsed(fake_command, "--config", str(config))["plugin"] is plugin


def test_config_false_leaves_a_switch_off_and_an_empty_file_changes_nothing(
    fake_command: Callable[[Run], None], tmp_path: Path
):
    config = tmp_path / "train.yaml"
    config.write_text("overwrite: false\n")
    assert parsed(fake_command, "--config", str(config))["overwrite"] is False
    config.write_text("# nothing\n")
    assert parsed(fake_command, "--config", str(config)) == parsed(fake_command)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("sead: 1", "unknown flag in {path} 'sead'; did you mean 'seed'? known: agent, "),
        ("config: other.yaml", "unknown flag in {path} 'config'"),
        ("seed: x", "--seed: 'x' is not a whole number"),
        ("seed:", "seed has no value"),
        ("seed: true", "seed holds True, expected a text or a number"),
        ("seed: {a: 1}", "seed holds {{'a': 1}}, expected a text or a number"),
        ("overwrite: 3", "overwrite is 3, expected true or false"),
        ("condition: test", "unknown value of --condition 'test'; did you mean 'text'?"),
        ("[1, 2]", "holds a list, expected lines such as `seed: 0`"),
        ("seed: [1", "is not valid YAML"),
        ("!!python/object:os.system {}", "is not valid YAML"),
    ],
)
def test_config_mistakes(
    fake_command: Callable[[Run], None],
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
    assert captured.startswith("error: ") and expected.format(path=config) in captured and captured.count("\n") == 1
    assert main(["train", "--config", str(tmp_path / "absent.yaml")]) == 2
    assert "does not exist" in capsys.readouterr().err


def logging_command(**_: Any) -> None:
    for name in ("toprl_export.x", "toprl_trainers.x", "toprl_engines.x", "somebody.else"):
        logger = logging.getLogger(name)
        logger.warning("%s warns", name)
        logger.info("%s informs", name)
        logger.debug("%s details", name)


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        ([], ["warns", "informs"]),
        (["-q"], ["warns"]),
        (["--quiet"], ["warns"]),
        (["-v"], ["warns", "informs", "details"]),
        (["--verbose"], ["warns", "informs", "details"]),
    ],
)
def test_the_log_goes_to_standard_error(
    fake_command: Callable[[Run], None], capsys: pytest.CaptureFixture[str], flags: list[str], shown: list[str]
):
    fake_command(logging_command)
    assert main(["train", *flags]) == 0
    captured = capsys.readouterr()
    lines = [line.split(maxsplit=2)[2] for line in captured.err.splitlines()]
    packages = ("toprl_export.x", "toprl_trainers.x", "toprl_engines.x")
    assert lines == [f"{package} {word}" for package in packages for word in shown]
    assert captured.out == "" and not logging.getLogger("toprl_export").handlers


def test_long_work_is_not_silent_in_a_pipe(
    fake_command: Callable[[Run], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    clock = iter(range(0, 10_000, 20))

    def work(**_: Any) -> None:
        with progress.Progress("updates", 4, "update") as shown:
            for _ in range(4):
                shown.update()

    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    fake_command(work)
    assert main(["train"]) == 0
    lines = [line.split(maxsplit=1)[1] for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "INFO updates: 2/4 updates, 0:40 elapsed, about 0:40 left",
        "INFO updates: 4/4 updates, 1:20 elapsed, about 0:00 left",
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(
    ("terminal", "no_color", "coloured"), [(True, "", True), (True, "1", False), (False, "", False)]
)
def test_colour_is_for_terminals(terminal: bool, no_color: str, coloured: bool):
    import pty

    reading, writing = pty.openpty() if terminal else os.pipe()
    command = [sys.executable, "-m", "toprl_export.cli.main", "trian"]
    subprocess.run(command, stderr=writing, env={**os.environ, "NO_COLOR": no_color}, check=False)
    os.close(writing)
    printed = os.read(reading, 1000)
    os.close(reading)
    assert printed.startswith(b"\x1b[31m\x1b[1merror: " if coloured else b"error: unknown command")


def test_bare_program_prints_help_and_fails(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 2
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("toprl-export ")


def test_help_has_sections_defaults_and_examples(
    fake_command: Callable[[Run], None], capsys: pytest.CaptureFixture[str]
):
    fake_command(raising(AssertionError("must not run")))
    for flag in ("-h", "--help"):
        assert main(["train", flag]) == 0
        printed = capsys.readouterr().out
        headings = [line for line in printed.splitlines() if line.endswith(":") and not line.startswith(" ")]
        assert headings == ["Inputs:", "Machine:", "Output:", "General:", "Examples:"]
        assert "seed of everything random  [default: 0]" in printed
        assert printed.endswith("  toprl-export train --seed 1\n")


COMMAND_LINES = [
    [],
    *([name] for name in COMMANDS),
    *(["analyze", name] for name in ANALYSES),
]


def test_help_imports_nothing_heavy():
    script = (
        "import sys\nfrom toprl_export.cli.main import main\n"
        "assert not [name for name in sys.modules if name.startswith('toprl_export.cli.') and name[17:] in "
        f"{list(COMMANDS)!r}]\n"
        f"for words in {COMMAND_LINES!r}:\n    assert main([*words, '--help']) == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.count("Usage: toprl-export") == len(COMMAND_LINES)
    assert done.stderr.strip() == "[]"


def test_the_programs_help_imports_no_command():
    script = (
        "import sys\nfrom toprl_export.cli.main import main\nmain(['--help'])\n"
        f"sys.exit(any('toprl_export.cli.' + name in sys.modules for name in {list(COMMANDS)!r}))"
    )
    subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)


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


def test_output_may_be_closed():
    command = f'exec 1>&-; exec "{sys.executable}" -m toprl_export.cli.main tasks'
    done = subprocess.run(command, shell=True, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("arguments", [["run", "x", "--prompt", b"\xff"], ["train", "--output-dir", b"/tmp/\xff"]])
def test_what_is_not_utf8_is_refused_before_any_work(arguments: list[str | bytes]):
    done = subprocess.run(["toprl-export", *arguments], capture_output=True, check=False)
    assert done.returncode == 2 and b"is not UTF-8" in done.stderr and done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("arguments", [["--help"], ["tasks"], ["validate", "--help"], ["inspect", "nöwhere"]])
def test_a_terminal_that_knows_ascii_alone_breaks_no_command(arguments: list[str]):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run(["toprl-export", *arguments], capture_output=True, env=environment, check=False)
    assert done.returncode in (0, 2) and b"Traceback" not in done.stderr
