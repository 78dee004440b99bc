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


KERNEL_CHECK = "kernel-error"

CHECKS = {
    KERNEL_CHECK: Check("ci.gpu.checks.kernel:check_error", 100),
    "kernel-speed": Check("ci.gpu.checks.kernel:check_speed", 40),
    "llava-next": Check("ci.gpu.checks.decoder:check_llava_next", 85),
    "llava-1.5": Check("ci.gpu.checks.decoder:check_llava", 45),
    "library": Check("ci.gpu.checks.library:check_library", 50),
    "engines": Check("ci.gpu.checks.engines:check_engines", 70),
    "mini": Check("ci.gpu.checks.mini:check_mini", 30),
    "tests": Check("ci.gpu.checks.tests:check_tests", 30),
}
"""By name, in the order in which they run: what the goals hang on comes first."""
