"""Answers to the embedded tasks' questions, worked out from the list of objects alone."""

from __future__ import annotations

import itertools
import re

from toprl_export.tasks.scenes import SceneObject


def solve(question: str, objects: tuple[SceneObject, ...]) -> str:
    """Answer from the list of objects alone; fails where there is not exactly one right answer."""
    digits = [(item.kind, item.row, item.column) for item in objects if item.kind.isdecimal()]
    if match := re.fullmatch(r"is there a (\w+) in the image\?", question):
        return {True: "yes", False: "no"}[match[1] in [item.kind for item in objects]]
    if match := re.fullmatch(r"what colour is the (\d)\?", question):
        (colour,) = [item.colour for item in objects if item.kind == match[1]]
        return colour
    if match := re.fullmatch(r"how many (\w+)s are there\?", question):
        return str([item.kind for item in objects].count(match[1]))
    if question == "what number is written in the image?":
        assert len({column for _, _, column in digits}) == 1, "not in one column"
        written = sorted((row, digit) for digit, row, _ in digits)
        assert all(after[0] - before[0] == 2 for before, after in itertools.pairwise(written)), "not written as one"
        return " ".join(digit for _, digit in written)
    if match := re.fullmatch(r"which digit is the (largest|smallest)\?", question):
        return str({"largest": max, "smallest": min}[match[1]](int(digit) for digit, _, _ in digits))
    match = re.fullmatch(r"which digit is (topmost|lowest)\?", question)
    assert match, question
    ranked = sorted(digits, key=lambda digit: digit[1], reverse=match[1] == "lowest")
    assert abs(ranked[0][1] - ranked[1][1]) >= 2, "no clear margin"
    return ranked[0][0]
