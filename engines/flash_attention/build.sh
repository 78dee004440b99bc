#!/usr/bin/env bash
# Builds the FlashAttention libraries. No GPU is needed.
#
#   build.sh [--tensorrt-root DIR] [--output DIR] [--kernels FILE] [--ptxas FILE] [--jobs N]
#
#   --tensorrt-root DIR  TensorRT or TensorRT for RTX, with include/NvInferRuntime.h: also builds the plugin
#   --output DIR         where the libraries are put (default: engines/flash_attention/build/lib)
#   --kernels FILE       a kernels.cpp compiled before, instead of compiling the kernels now
#   --ptxas FILE         assembler, such as nvcc's (default: the one that comes with Triton)
#   --jobs N             kernels and files compiled at a time (default: one per processor)
#
# Needs CMake 3.22, a C++17 compiler and a Python with Triton (PYTHON=…; PyTorch for CUDA brings Triton).
# The plugin also needs CUDA's headers (CUDA_HOME=…, default /usr/local/cuda).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

fail() {
    echo "error: $*" >&2
    exit 2
}

tensorrt_root="" output="" kernels="" ptxas="" jobs=$(nproc)
while [ $# -gt 0 ]; do
    case $1 in
        --help | -h)
            sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
            exit 0
            ;;
        --tensorrt-root | --output | --kernels | --ptxas | --jobs)
            [ $# -ge 2 ] || fail "$1 needs a value"
            name=${1#--}
            printf -v "${name//-/_}" '%s' "$2"
            shift 2
            ;;
        *) fail "unknown argument $1: see $0 --help" ;;
    esac
done
[ -z "$tensorrt_root" ] || [ -f "$tensorrt_root/include/NvInferRuntime.h" ] ||
    fail "--tensorrt-root $tensorrt_root has no include/NvInferRuntime.h: name the directory TensorRT was unpacked to"
command -v cmake >/dev/null || fail "cmake is not installed"
python=${PYTHON:-python3}
mkdir -p "$here/build" "${output:=$here/build/lib}"
output=$(cd "$output" && pwd)

if [ -z "$kernels" ]; then
    "$python" -c 'import triton' 2>/dev/null ||
        fail "$python has no Triton: pip install triton, or name another Python (PYTHON=…)"
    echo "Compiling the kernels (some minutes) …"
    kernels=$here/build/generated/kernels.cpp
    PYTHONPATH=$here "$python" -m toprl_flash_attention.compile \
        --output "$here/build/generated" --jobs "$jobs" ${ptxas:+--ptxas "$ptxas"}
fi
[ -f "$kernels" ] || fail "--kernels $kernels is not a file"

cmake -S "$here" -B "$here/build/cmake" \
    -DTOPRL_KERNELS="$(realpath "$kernels")" -DTENSORRT_ROOT="${tensorrt_root:+$(realpath "$tensorrt_root")}" \
    -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$output"
cmake --build "$here/build/cmake" --parallel "$jobs"
echo "Built in $output:"
ls "$output"/libtoprl_flash_attention*.so
