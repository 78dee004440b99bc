"""The built core library through ctypes: include/toprl_flash_attention.h in Python."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

DTYPES = {"fp16": 0, "bf16": 1}
"""Names of the dtypes and their numbers in the interface."""
_Strides = ctypes.c_int64 * 3


class CoreError(RuntimeError):
    """The core refused a call.

    Attributes:
        status: its `toprl_fa_status`.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"FlashAttention: {text}")
        self.status = status


class Params(ctypes.Structure):
    """`toprl_fa_params`."""

    _fields_ = (
        ("struct_size", ctypes.c_uint32),
        *((name, ctypes.c_int32) for name in ("dtype", "batch", "heads", "kv_heads", "q_len", "k_len", "head_dim")),
        ("causal", ctypes.c_int32),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("query", "key", "value", "out", "mask", "workspace")),
        ("workspace_size", ctypes.c_size_t),
        *((f"{name}_strides", _Strides) for name in ("query", "key", "value", "out", "mask")),
    )


def contiguous_params(
    dtype: str,
    query: Sequence[int],
    key: Sequence[int],
    mask: Sequence[int] | None,
    *,
    scale: float,
    causal: bool = False,
) -> Params:
    """A call on contiguous tensors of these shapes, its addresses still null.

    Args:
        dtype: "fp16" or "bf16".
        query: ``[b, heads, q, head_dim]``, also of the result.
        key: ``[b, kv_heads, k, head_dim]``, also of the values.
        mask: ``[b, heads, q, k]``, with 1 where one of the first three is broadcast; None: no mask.
        scale: positive factor of the products.
        causal: whether queries attend only to keys up to their own, aligned at the bottom right.
    """
    params = Params(
        struct_size=ctypes.sizeof(Params), dtype=DTYPES[dtype], causal=causal, scale=scale,
        batch=query[0], heads=query[1], kv_heads=key[1], q_len=query[2], k_len=key[2], head_dim=query[3],
    )  # fmt: skip
    for name, shape in (("query", query), ("key", key), ("value", key), ("out", query)):
        setattr(params, f"{name}_strides", _Strides(*_strides(shape)))
    if mask is not None:
        strides = [0 if size == 1 else stride for size, stride in zip(mask, _strides(mask), strict=False)]
        params.mask_strides = _Strides(*strides)
        # The size of the workspace depends on whether there is a mask; its address comes with the call.
        params.mask = 1
    return params


def _strides(shape: Sequence[int]) -> tuple[int, int, int]:
    _, heads, rows, width = shape
    return heads * rows * width, rows * width, width


class CoreLibrary:
    """libtoprl_flash_attention.so, or the plugin's library, which holds the same functions.

    Args:
        path: the library.

    Raises:
        OSError: it cannot be loaded.
    """

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.toprl_flash_attention_error.restype = ctypes.c_char_p
        self._library.toprl_flash_attention_workspace_size.restype = ctypes.c_size_t
        self._library.toprl_flash_attention_forward.argtypes = [ctypes.POINTER(Params), ctypes.c_void_p]

    def workspace_size(self, params: Params) -> int:
        """Bytes that do for a call of these sizes and of all smaller ones."""
        return int(self._library.toprl_flash_attention_workspace_size(ctypes.byref(params)))

    def prepare(self, dtype: str, head_dim: int) -> None:
        """Load all code for a dtype and head dimension, so that a stream can then be captured.

        Raises:
            CoreError: there is no device, or none that can run it.
        """
        self._check(self._library.toprl_flash_attention_prepare(DTYPES[dtype], head_dim))

    def forward(self, params: Params, stream: int) -> None:
        """Queue a call on a CUDA stream, given by its address.

        Raises:
            CoreError: the call or the device does not fit.
        """
        self._check(self._library.toprl_flash_attention_forward(ctypes.byref(params), stream))

    def supports(self, sm: int) -> bool:
        """Whether a device of compute capability ``sm`` (89 for 8.9) can run the kernels."""
        return bool(self._library.toprl_flash_attention_supports(sm))

    def _check(self, status: int) -> None:
        if status:
            raise CoreError(status, self._library.toprl_flash_attention_error(status).decode())
