"""Shards, a single process, and devices; what several processes do is tested in ``toprl/test_processes.py``."""

from __future__ import annotations

import pytest
import torch

from toprl_export.errors import UserError
from toprl_trainers.rl.processes import SINGLE_PROCESS, Processes, Shard, launched_processes


def test_shards_cover_everything_once():
    for count in (1, 2, 3, 5):
        shards = [Processes(index, count).shard(13) for index in range(count)]
        assert [item for shard in shards for item in shard] == list(range(13))
        assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_without_a_launcher_there_is_a_single_process():
    assert launched_processes() is SINGLE_PROCESS
    x = torch.rand(3)
    assert SINGLE_PROCESS.all_reduce(x) is x and Shard.whole(3).gather({"x": x})["x"] is x
    with pytest.raises(UserError, match="mine"), SINGLE_PROCESS.collective_errors():
        raise UserError("mine")


def test_a_model_on_another_processs_gpu_is_refused():
    second = Processes(1, 2, torch.device("cuda:1"))
    second.check_device(torch.device("cuda:1"))
    second.check_device(torch.device("cuda"))
    with pytest.raises(UserError, match="process 1 was launched for cuda:1, but its model is on cuda:0: leave out"):
        second.check_device(torch.device("cuda:0"))
