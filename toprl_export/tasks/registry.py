"""The tasks by name; the first is the default.

>>> TASKS.names()[0]
'mini-exist'
>>> sample = TASKS.get("mini-exist").sample("held-out", seed=0, index=0)
>>> sample.image.shape, sample.evidence.shape
((192, 192, 3), (24, 24))
>>> TASKS.get("mini-exist").score("Yes.", "yes")
1.0
"""

from __future__ import annotations

from toprl_export.registry import Registry
from toprl_export.tasks.task import Task

_MINI = "toprl_export.tasks.mini_tasks"

TASKS: Registry[Task] = Registry(
    "task",
    {
        "mini-exist": f"{_MINI}:EXIST",
        "mini-read": f"{_MINI}:READ",
        "mini-colour": f"{_MINI}:COLOUR",
        "mini-count": f"{_MINI}:COUNT",
        "mini-relation": f"{_MINI}:RELATION",
        "mini-compare": f"{_MINI}:COMPARE",
        "easy-vqa": "toprl_export.tasks.easy_vqa:EASY_VQA",
    },
)
