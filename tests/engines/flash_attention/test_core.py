"""The C++ core against the Python launcher: the same call must give the driver the same launches."""

from __future__ import annotations

import ctypes
import math
import sys
from types import ModuleType

import pytest
import torch

from tests.support.flash_attention import SCRATCH, argument_names, build_core, call_core
from toprl_flash_attention.kernel import flash_attention
from toprl_flash_attention.library import CoreLibrary, Params, contiguous_params
from toprl_flash_attention.tiles import workspace_bound

OK, BAD_STRUCT, BAD_POINTER, BAD_SIZE, BAD_HEAD_DIM, BAD_DTYPE, BAD_SCALE, BAD_ALIGNMENT, BAD_WORKSPACE = range(9)
NO_DRIVER, NO_CONTEXT, BAD_DEVICE, LOAD_FAILED, LAUNCH_FAILED = range(9, 14)
POINTERS = {"query": 0x1000, "key": 0x2000, "value": 0x3000, "out": 0x4000, "mask": 0x5001, "workspace": 0x6000}
CASES = [
    # (batch, heads, kv_heads, q, k, head_dim), shape of the mask, causal, dtype
    ((1, 2, 2, 300, 300, 128), None, True, "fp16"),
    ((8, 32, 8, 300, 700, 64), None, False, "bf16"),
    ((2, 32, 32, 700, 700, 128), (2, 1, 700, 700), False, "fp16"),
    ((2, 4, 2, 70, 130, 64), (1, 4, 1, 130), True, "bf16"),
    ((1, 4, 4, 65, 129, 128), (1, 1, 65, 129), False, "bf16"),
    ((1, 32, 32, 1, 3000, 128), None, False, "fp16"),
    ((2, 32, 8, 4, 900, 128), (2, 1, 1, 900), True, "bf16"),
    ((4, 8, 8, 1, 333, 64), (4, 1, 1, 333), False, "fp16"),
    ((64, 8, 8, 1, 5000, 64), None, False, "fp16"),
]
REFUSED = [
    ({"struct_size": 8}, BAD_STRUCT),
    ({"query": None}, BAD_POINTER),
    ({"out": None}, BAD_POINTER),
    ({"kv_heads": 3}, BAD_SIZE),
    ({"q_len": -1}, BAD_SIZE),
    ({"batch": 1 << 30}, BAD_SIZE),
    ({"k_len": 1 << 30}, BAD_SIZE),  # two of these and a tile would be more than 32 bits hold
    ({"head_dim": 80}, BAD_HEAD_DIM),
    ({"dtype": 2}, BAD_DTYPE),
    ({"scale": 0.0}, BAD_SCALE),
    ({"scale": math.nan}, BAD_SCALE),
    ({"scale": math.inf}, BAD_SCALE),
    ({"key": 0x2008}, BAD_ALIGNMENT),
    ({"value_strides": (ctypes.c_int64 * 3)(64, 64, 72)}, BAD_ALIGNMENT),
    ({"out_strides": (ctypes.c_int64 * 3)(64, 64, -64)}, BAD_ALIGNMENT),
    ({"workspace": None}, BAD_WORKSPACE),
    ({"workspace_size": 1}, BAD_WORKSPACE),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build_core(tmp_path_factory.mktemp("core"))


@pytest.fixture(scope="module")
def answers(library):
    """The core's answers to `CASES` on Hopper."""
    return call_core(library, [call(*case) for case in CASES])


@pytest.fixture(scope="module")
def refusals(library):
    """The core's answers to `REFUSED`."""
    return call_core(library, [call((2, 4, 2, 70, 130, 64), (2, 1, 70, 130), **changes) for changes, _ in REFUSED])


def call(sizes, mask=None, causal=False, kind="fp16", **changes) -> Params:
    batch, heads, kv_heads, q_len, k_len, head_dim = sizes
    shapes = (batch, heads, q_len, head_dim), (batch, kv_heads, k_len, head_dim), mask
    params = contiguous_params(kind, *shapes, scale=0.25, causal=causal)
    addresses = {**POINTERS, "mask": POINTERS["mask"] if mask else None}
    for name, value in {**addresses, "workspace_size": 1 << 30, **changes}.items():
        setattr(params, name, value)
    return params


class Recorder:
    """Stands in for a Triton kernel: keeps what it is launched with."""

    def __init__(self, name, launches):
        self.name, self.launches = name, launches

    def __getitem__(self, grid):
        def launch(*arguments, **constants):
            named = dict(zip(argument_names(self.name), arguments, strict=True))
            self.launches.append((self.name, grid[0], named, constants))

        return launch


InterpretedFunction = type("InterpretedFunction", (Recorder,), {})


def python_launches(monkeypatch, sizes, mask, causal, dtype):
    """What `flash_attention` launches, its tensors replaced by the addresses of `POINTERS`."""
    launches = []
    module = ModuleType("toprl_flash_attention.triton_kernels")
    for name in ("attend", "attend_few", "merge_splits", "mark_tiles"):
        setattr(module, name, InterpretedFunction(name, launches))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    batch, heads, kv_heads, q_len, k_len, head_dim = sizes
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    query = torch.zeros(batch, heads, q_len, head_dim, dtype=kind)
    key, value = (torch.zeros(batch, kv_heads, k_len, head_dim, dtype=kind) for _ in range(2))
    allowed = None if mask is None else torch.ones(mask, dtype=torch.bool)
    flash_attention(query, key, value, allowed, scale=0.25, causal=causal)
    for _, _, named, _ in launches:
        for name, argument in named.items():
            if argument is None or (isinstance(argument, torch.Tensor) and not argument.numel()):
                named[name] = 0
            elif isinstance(argument, torch.Tensor):
                named[name] = POINTERS["workspace" if name in ("marks", "parts") else name]
    return launches


@pytest.mark.parametrize("number", range(len(CASES)))
def test_the_core_launches_what_the_python_function_launches(answers, monkeypatch, number):
    status, launches = answers[number]
    expected = python_launches(monkeypatch, *CASES[number])
    assert status == OK
    assert [launch.name.split("_sm90")[0] for launch in launches] == [name for name, *_ in expected]
    for launch, (_, grid, named, constants) in zip(launches, expected, strict=True):
        assert (launch.grid, launch.threads) == (grid, 32 * constants.get("num_warps", 4))
        assert (launch.stream, launch.scratch) == (5, [0] * SCRATCH)
        for name, value in named.items():
            if not unused_stride(name, CASES[number][0]):
                assert launch.arguments[name] == pytest.approx(value, rel=1e-5), name
        blocks = [constants[name] for name in ("HEAD_DIM", "BLOCK_Q", "BLOCK_K", "MASKED") if name in constants]
        assert launch.name.split("_w")[0].endswith("_".join(f"{block:d}" for block in blocks))


def unused_stride(name, sizes):
    """Whether ``name`` is a stride of a dimension of size 1, which multiplies nothing."""
    batch, heads, kv_heads, q_len, k_len, _ = sizes
    of = {"q": (batch, heads, q_len), "o": (batch, heads, q_len), "k": (batch, kv_heads, k_len)}
    tensor, _, dimension = name.partition("_")
    lengths = of.get({"v": "k"}.get(tensor, tensor))
    return lengths is not None and dimension in "bhr" and lengths["bhr".index(dimension)] == 1


def test_another_call_gives_other_launches(library, monkeypatch):
    """The comparison notices a wrong diagonal and a wrong stride."""
    ((_, _, named, _),) = python_launches(monkeypatch, *CASES[0])
    wide = call(*CASES[0])
    wide.key_strides[2] = 256
    (_, (straight,)), (_, (strided,)) = call_core(library, [call(CASES[0][0], causal=False), wide])
    assert straight.arguments["diagonal"] != named["diagonal"]
    assert strided.arguments["k_r"] == 256 != named["k_r"]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_a_call_that_does_not_fit_is_refused(refusals, number):
    assert refusals[number] == (REFUSED[number][1], [])


def test_what_the_machine_lacks_is_told(library):
    def status(**machine):
        ((status, _),) = call_core(library, [call(CASES[0][0])], **machine)
        return status

    assert status(with_driver=False) in (NO_DRIVER, NO_CONTEXT)  # the latter on a machine with a GPU
    assert status(init="100") == NO_DRIVER
    assert status(context="none") == NO_CONTEXT
    assert status(sm="75") == BAD_DEVICE
    assert status(shared="50000") == BAD_DEVICE
    assert status(refuse="all") == LOAD_FAILED
    assert status(launch="1") == LAUNCH_FAILED


@pytest.mark.parametrize(
    ("sm", "refuse", "code", "kind"),
    [
        ("80", "", "sm80", "cubin"),
        ("89", "", "sm80", "cubin"),
        ("90", "", "sm90", "cubin"),
        ("90", "cubin", "sm90", "ptx"),  # a driver older than the machine code
        ("100", "", "sm80", "ptx"),
        ("120", "", "sm80", "ptx"),
    ],
)
def test_each_device_gets_the_code_that_it_can_run(library, sm, refuse, code, kind):
    ((_, (launch,)),) = call_core(library, [call(CASES[0][0])], sm=sm, refuse=refuse)
    assert launch.kind == kind
    assert f"_{code}_" in launch.name


def test_empty_calls_launch_nothing_or_write_zeros(library):
    no_queries = call((1, 2, 2, 0, 5, 64), query=None, out=None)
    no_keys = call((1, 2, 2, 70, 0, 64), (1, 1, 70, 0), key=None, value=None)
    few_no_keys = call((1, 2, 2, 1, 0, 64))
    no_batch = call((0, 2, 2, 70, 5, 64), (0, 1, 70, 5))
    calls = [no_queries, no_batch, no_keys, few_no_keys]
    *none, (status, (many,)), (few_status, (few,)) = call_core(library, calls)
    assert none == [(OK, []), (OK, [])]
    assert (status, few_status) == (OK, OK)
    assert (many.name.split("_sm")[0], many.grid) == ("attend", 4)
    assert (few.name.split("_sm")[0], few.grid) == ("attend_few", 2)


def test_the_workspace_for_large_sizes_does_for_smaller_ones(library):
    core = CoreLibrary(library)
    largest = core.workspace_size(call((4, 32, 8, 2048, 3072, 128), (4, 1, 2048, 3072)))
    for batch in (1, 2, 3, 4):
        for q_len in (1, 2, 4, 5, 64, 65, 700, 2048):
            for k_len in (1, 500, 513, 2000, 3072):
                smaller = call((batch, 32, 8, q_len, k_len, 128), (batch, 1, q_len, k_len))
                assert core.workspace_size(smaller) <= largest


def test_the_bound_is_that_of_the_python_function(library):
    core = CoreLibrary(library)
    for sizes, mask, causal, dtype in CASES:
        batch, _, kv_heads, q_len, k_len, head_dim = sizes
        masks = 0 if mask is None else mask[0] * mask[1]
        bound = workspace_bound(batch, kv_heads, q_len, k_len, head_dim, masks)
        assert core.workspace_size(call(sizes, mask, causal, dtype)) == bound


def test_a_workspace_of_the_size_asked_for_is_enough(library):
    core = CoreLibrary(library)
    calls = []
    for sizes, mask, causal, dtype in CASES:
        params = call(sizes, mask, causal, dtype)
        params.workspace_size = core.workspace_size(params)
        calls.append(params)
    assert [status for status, _ in call_core(library, calls)] == [OK] * len(calls)


def test_it_says_which_devices_it_supports(library):
    core = CoreLibrary(library)
    assert [core.supports(sm) for sm in (75, 80, 86, 89, 90, 100, 120)] == [False, *[True] * 6]


def test_every_status_has_its_own_text(library):
    raw = ctypes.CDLL(str(library))
    raw.toprl_flash_attention_error.restype = ctypes.c_char_p
    texts = [raw.toprl_flash_attention_error(status) for status in range(LAUNCH_FAILED + 2)]
    assert len(set(texts)) == len(texts)
    assert texts[-1] == b"unknown status"


def test_the_struct_is_that_of_the_header(library):
    """Every field lies where the C compiler puts it: a call with all fields set arrives whole."""
    params = call(*CASES[3][:2])
    for offset, name in enumerate(("query", "key", "value", "out", "mask")):
        setattr(params, f"{name}_strides", (ctypes.c_int64 * 3)(*[16 * (3 * offset + i + 1) for i in range(3)]))
    ((_, (_, launch)),) = call_core(library, [params])
    given = [launch.arguments[f"{n}_{d}"] for n in ("q", "k", "v", "o", "mask") for d in "bhr"]
    assert given == [16 * (i + 1) for i in range(15)]
