"""What comes from files is shown, never obeyed, by a terminal."""

from __future__ import annotations

import json
import logging
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toprl_export.cli.main import main
from toprl_export.cli.output import log_on_stderr, print_json, say
from toprl_export.errors import MOST_SHOWN, one_line, visible

EVIL = "a\x1b[2J\x1b]0;title\x07\x9b31m\u202etxt\r\x00\ud800z"


@given(st.text())
def test_nothing_is_left_that_a_terminal_acts_on_and_ordinary_text_stays(text: str):
    shown = visible(text)
    assert all(sign in "\n\t" or unicodedata.category(sign) not in ("Cc", "Cs") for sign in shown)
    plain = "".join(sign for sign in text if unicodedata.category(sign)[0] in "LNPZS")
    assert visible(plain) == plain or any(sign in "\u2028\u2029" for sign in plain)


def test_escapes_are_spelled_out():
    assert visible("é\x1b[2J\u202e\ud800") == "é\\x1b[2J\\u202e\\ud800"


def test_a_message_is_one_short_line_that_keeps_its_end():
    shown = one_line("what was wrong\n" + "x" * 10_000 + " how to fix it")
    assert len(shown) < MOST_SHOWN + 10 and "\n" not in shown
    assert shown.startswith("what was wrong x") and shown.endswith("how to fix it")


def test_everything_printed_goes_through_it(capsys: pytest.CaptureFixture[str]):
    say(EVIL)
    with log_on_stderr(logging.INFO):
        # pytest keeps what is logged as it is, and cannot send half a surrogate pair from one process to another.
        logging.getLogger("toprl_export.test").warning("%s", EVIL.replace("\ud800", ""))
    printed = "".join(capsys.readouterr())
    assert "\x1b" not in printed and "\x9b" not in printed and "\u202e" not in printed and "\\x1b[2J" in printed


def test_json_keeps_the_text_and_escapes_it(capsys: pytest.CaptureFixture[str]):
    print_json({"name": EVIL})
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "\x9b" not in printed and "\u202e" not in printed
    assert json.loads(printed) == {"name": EVIL}


@pytest.mark.parametrize("as_json", [False, True])
def test_a_path_with_escapes_is_refused_in_one_harmless_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], as_json: bool
):
    bundle = str(tmp_path / "a\x1b[2J\x9bm\nb")
    assert main(["validate", bundle, *(["--json"] if as_json else [])]) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and "\x1b" not in out + err and "\x9b" not in out + err
