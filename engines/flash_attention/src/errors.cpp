#include "toprl_flash_attention.h"

extern "C" const char* toprl_flash_attention_error(int status) {
    switch (status) {
        case TOPRL_FA_OK: return "no error";
        case TOPRL_FA_BAD_STRUCT: return "the caller was built for another version of the library: rebuild both";
        case TOPRL_FA_BAD_POINTER: return "query, key, value or out is a null pointer";
        case TOPRL_FA_BAD_SIZE:
            return "a size is negative or too large, or the key-value heads do not divide the heads";
        case TOPRL_FA_BAD_HEAD_DIM: return "the head dimension must be 64 or 128";
        case TOPRL_FA_BAD_DTYPE: return "the dtype must be fp16 or bf16";
        case TOPRL_FA_BAD_SCALE: return "the scale must be a positive number";
        case TOPRL_FA_BAD_ALIGNMENT:
            return "an address is no multiple of 16 bytes, or a stride is negative, too large or no multiple of 16";
        case TOPRL_FA_BAD_WORKSPACE: return "the workspace is missing, too small or no multiple of 16 bytes";
        case TOPRL_FA_NO_DRIVER: return "there is no NVIDIA driver (libcuda.so.1), or one older than CUDA 12";
        case TOPRL_FA_NO_CONTEXT: return "no CUDA context is current on this thread";
        case TOPRL_FA_BAD_DEVICE:
            return "the GPU is too small: compute capability 8.0 with 99 KiB of shared memory is needed";
        case TOPRL_FA_LOAD_FAILED:
            return "the driver could not load the kernels: update the NVIDIA driver, or rebuild the library";
        case TOPRL_FA_LAUNCH_FAILED: return "the driver refused to launch the kernel";
        default: return "unknown status";
    }
}
