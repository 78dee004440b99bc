"""Which checks there are, and how long each may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        target: ``module:function``; the function is given a `Context`.
        seconds: after which it begins no more cases; a quarter more, and it is stopped.
    """

    target: str
    seconds: float


CHECKS = {
    "llava-next": Check("ci.gpu.checks.decoder:check_llava_next", 120),
    "kernel-error": Check("ci.gpu.checks.kernel:check_error", 90),
    "kernel-speed": Check("ci.gpu.checks.kernel:check_speed", 45),
    "llava-next-kernel": Check("ci.gpu.checks.decoder:check_llava_next_kernel", 60),
    "library": Check("ci.gpu.checks.library:check_library", 60),
    "tests": Check("ci.gpu.checks.tests:check_tests", 40),
    "llava-1.5": Check("ci.gpu.checks.decoder:check_llava", 45),
    "mini": Check("ci.gpu.checks.mini:check_mini", 30),
    "engines": Check("ci.gpu.checks.engines:check_engines", 60),
}
"""By name, in the order in which they run: what the goals hang on comes first. All of them take more than there is, but
most end sooner; what comes last gets what is left."""
