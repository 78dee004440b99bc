import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"), reason="ELF libraries only"
)

PROBE = """
import ctypes, math
from toprl_engines.trt.library_alias import load_alias
try:
    ctypes.CDLL("libtoprl_other_name.so")
except OSError:
    print("unknown before")
load_alias("libtoprl_other_name.so", of="libm.so.6")
load_alias("libtoprl_other_name.so", of="libm.so.6")
cosine = ctypes.CDLL("libtoprl_other_name.so").cos
cosine.restype, cosine.argtypes = ctypes.c_double, [ctypes.c_double]
print(cosine(1.0) == math.cos(1.0))
"""


def test_a_loaded_library_is_found_by_its_second_name():
    """In a process of its own: what is loaded stays loaded."""
    probe = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    assert probe.stdout.split("\n")[:2] == ["unknown before", "True"]


def test_a_library_that_is_not_there_gets_no_second_name():
    from toprl_engines.trt.library_alias import load_alias

    with pytest.raises(OSError, match=r"libtoprl_nowhere\.so\.1"):
        load_alias("libtoprl_nowhere.so", of="libtoprl_nowhere.so.1")
