"""The errors a user can cause, and the one that names the extra to install."""

from __future__ import annotations

import importlib
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

EXTRA_OF_MODULE = {
    "accelerate": "train",
    "torch": "train",
    "sklearn": "train",
    "matplotlib": "train",
    "onnx": "onnx",
    "onnx_ir": "onnx",
    "onnxscript": "onnx",
    "onnxruntime": "serve-onnx",
    "easy_vqa": "demo",
}
"""Which extra of toprl-export brings an optional top-level module; engines name those of their own (`require`)."""


class ToprlError(Exception):
    """Base of every error this project raises on purpose."""


class UserError(ToprlError):
    """A mistake the user can mend; the command line prints it as one line and exits 2.

    The message says what was wrong, what was expected and how to fix it.
    """


class MissingExtraError(UserError):
    """An optional package is needed and not installed."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"this needs {module}, which is not installed: pip install 'toprl-export[{extra}]'")
        self.module = module
        self.extra = extra

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        """Made again from what it was made of, so that it gets from one process to another."""
        return type(self), (self.module, self.extra)


def is_utf8(text: str) -> bool:
    """Whether a text can be written to a file: what the system could not decode stands in it as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def require(module: str, extra: str) -> ModuleType:
    """Import ``module`` and return it.

    Raises:
        MissingExtraError: its top-level package is not installed; ``extra`` brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name != package:
            raise
        raise MissingExtraError(package, extra) from error


def missing_extra(error: ModuleNotFoundError) -> MissingExtraError | None:
    """The error to show instead of ``error`` when an extra brings the module, or None."""
    module = (error.name or "").partition(".")[0]
    extra = EXTRA_OF_MODULE.get(module)
    return MissingExtraError(module, extra) if extra and error.name == module else None


SAVE_AGAIN = "save it again with save_pretrained by a release of transformers that is not newer, or give another model"
"""What to do about a checkpoint's file that cannot be read."""


_INVISIBLE = ("Cc", "Cs")
_REORDERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def visible(text: str) -> str:
    """``text`` with everything spelled out that a terminal would act on instead of showing it.

    Names and answers come from files: an escape sequence in one could colour, hide or overwrite what is printed.
    Line ends and tabs stay.

    >>> visible("agents/\x1b[2J")
    'agents/\\x1b[2J'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_spelled(sign) for sign in text)


MOST_SHOWN = 1000
"""Characters of a message; what libraries quote from a damaged file has no end."""


def one_line(message: str) -> str:
    """``message`` as it is printed: in one line, control characters spelled out, the middle of a long one left out."""
    shown = visible(" ".join(message.split()))
    return shown if len(shown) <= MOST_SHOWN else f"{shown[: MOST_SHOWN - 400]} … {shown[-400:]}"


def _spelled(sign: str) -> str:
    if sign in "\n\t" or not (unicodedata.category(sign) in _INVISIBLE or sign in _REORDERING):
        return sign
    return f"\\x{ord(sign):02x}" if ord(sign) < 0x100 else f"\\u{ord(sign):04x}"


@contextmanager
def refusing(what: str, remedy: str) -> Iterator[None]:
    """Turn whatever a library raises over somebody else's files into one line.

    Args:
        what: what cannot be done, for the message; the first line of the reason follows.
        remedy: what to do about it.

    Raises:
        UserError: anything went wrong inside.
    """
    try:
        yield
    except ToprlError:
        raise
    except Exception as error:  # what a foreign file can make transformers, tokenizers and jinja raise has no end
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{what} ({type(error).__name__}: {reason}): {remedy}") from error
