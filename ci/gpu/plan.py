"""Which checks there are, how long each may take, and the goals that their figures are held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ci.gpu.report import Case, CheckResult, Verdict


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
    "library": Check("ci.gpu.checks.kernel:check_library", 60),
    "tests": Check("ci.gpu.checks.tests:check_tests", 40),
    "llava-1.5": Check("ci.gpu.checks.decoder:check_llava", 45),
    "mini": Check("ci.gpu.checks.engines:check_mini", 30),
    "engines": Check("ci.gpu.checks.engines:check_engines", 60),
}
"""By name, in the order in which they run: what goals depend on comes first. Their limits add up to more than the whole
run may take, but most end sooner; the last get the time that is left."""


@dataclass(frozen=True)
class Goal:
    """A limit on one figure of one table.

    Attributes:
        text: the goal in words.
        check: whose cases count.
        table: of these the ones in this table.
        figure: what is compared.
        sign: whether ``limit`` is a minimum or a maximum.
        limit: to be met.
        over: of several cases the "worst" or the "best" counts.
        case: only cases whose name begins so.
    """

    text: str
    check: str
    table: str
    figure: str
    sign: Literal[">=", "<="]
    limit: float
    over: Literal["worst", "best"] = "worst"
    case: str = ""

    @property
    def needed(self) -> str:
        """The limit in words."""
        return f"{self.figure} {'≥' if self.sign == '>=' else '≤'} {self.limit:g}, {self.over} case"

    def judge(self, checks: Sequence[CheckResult], device: str, quick: bool) -> Verdict:
        """Compare the goal with what was found on a GPU at full size; a case that failed counts as missed."""
        if device != "cuda" or quick:
            return self._not_run("the shapes were small" if device == "cuda" else "not run on a GPU")
        found = next((check for check in checks if check.name == self.check), None)
        if found is None:
            return self._not_run(f"the check {self.check} was left out")
        cases = [case for case in found.cases if case.table == self.table and case.name.startswith(self.case)]
        failed = [case for case in cases if case.status == "failed"]
        measured = [case for case in cases if case.status == "ok" and self.figure in case.figures]
        if failed and (self.over == "worst" or not measured):
            return Verdict(self.text, self.needed, f"{failed[0].name}: {failed[0].why}", "not reached")
        if not measured:
            return self._not_run(self._reason(found))
        return self._compare(measured, len(cases) - len(measured), found)

    def _compare(self, measured: Sequence[Case], left_out: int, check: CheckResult) -> Verdict:
        pick_largest = (self.sign == ">=") == (self.over == "best")
        chosen = (max if pick_largest else min)(measured, key=lambda case: case.figures[self.figure])
        value = chosen.figures[self.figure]
        met = value >= self.limit if self.sign == ">=" else value <= self.limit
        # The worst of the recorded cases says nothing about the one that crashed the process.
        whole = self.over == "best" or check.status == "finished"
        found = f"{value:.4g} ({chosen.name}; {len(measured)} cases"
        found += f", {left_out} not run)" if left_out else ")"
        found += "" if whole else f"; {check.why}"
        return Verdict(self.text, self.needed, found, "reached" if met and whole else "not reached")

    def _reason(self, check: CheckResult) -> str:
        """Why nothing was measured for this goal: the reason of its own case, if there is one, in whichever table."""
        left_out = [case for case in check.cases if case.status == "not run"]
        left_out.sort(key=lambda case: (not case.name.startswith(self.case), case.table != self.table))
        return next((case.why for case in left_out), check.why) or "nothing was measured"

    def _not_run(self, why: str) -> Verdict:
        return Verdict(self.text, self.needed, why, "not run")


GOALS = (
    Goal("kernel: error against fp64, over SDPA's own", "kernel-error", "error", "of_sdpa_error", "<=", 2),
    Goal("that error check notices a wrong mask", "kernel-error", "control", "of_sdpa_error", ">=", 10),
    Goal("kernel: speed at head dim 128, over SDPA flash", "kernel-speed", "head dim 128", "of_sdpa_flash", ">=", 0.7),
    Goal("the same, goal", "kernel-speed", "head dim 128", "of_sdpa_flash", ">=", 0.9),
    Goal("compiled kernel (C interface): error, over SDPA's own", "library", "error", "of_sdpa_error", "<=", 2),
    Goal("compiled kernel: speed, over SDPA flash", "library", "head dim 128", "of_sdpa_flash", ">=", 0.7),
    Goal("the same, goal", "library", "head dim 128", "of_sdpa_flash", ">=", 0.9),
    Goal(
        "LLaVA-NeXT-7B shape, 320 of 2,880 kept, batch 1: time to first token, over the fastest unpruned PyTorch",
        "llava-next", "first token", "speedup", ">=", 2.5, over="best", case="batch 1, 320 kept",
    ),
    Goal("the same, goal", "llava-next", "first token", "speedup", ">=", 3, over="best", case="batch 1, 320 kept"),
    Goal("the same by a mask, as for any prompt", "llava-next", "first token", "speedup", ">=", 2.5,
         case="batch 1, 320 kept, SDPA, mask"),
    Goal("the same by our kernel and a mask", "llava-next-kernel", "first token", "speedup", ">=", 2.5,
         case="batch 1, 320 kept, our kernel, mask"),
    Goal("our walk, unpruned, gives Hugging Face's logits in fp32", "llava-next", "agreement", "relative_error", "<=",
         1e-4),
    Goal("our walk, pruned, by our kernel: error, over that by SDPA", "llava-next-kernel", "pruned", "of_sdpa_error",
         "<=", 2, case="walk"),
    Goal("mini gives the CPU's logits in fp32, pruned and unpruned", "mini", "agreement", "logit_error", "<=", 1e-3),
    Goal("ONNX Runtime on the GPU: parity", "engines", "parity", "logit_error", "<=", 1e-4, case="onnx cuda fp32"),
    Goal("TensorRT engine: parity in fp32", "engines", "parity", "logit_error", "<=", 1e-3, case="trt fp32"),
    Goal("tests marked gpu pass", "tests", "tests", "failures", "<=", 0),
)  # fmt: skip
"""In the order in which they are reported."""


def judge_all(checks: Sequence[CheckResult], device: str, quick: bool) -> tuple[Verdict, ...]:
    """The verdict on every goal."""
    return tuple(goal.judge(checks, device, quick) for goal in GOALS)
