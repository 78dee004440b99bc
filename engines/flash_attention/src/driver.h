// The few functions of the CUDA driver that are needed, looked up in libcuda.so.1 at run time.
#pragma once

#include <cstddef>

struct CUstream_st;

namespace toprl {

using CuContext = struct CUctx_st*;
using CuModule = struct CUmod_st*;
using CuFunction = struct CUfunc_st*;

struct Driver {
    static constexpr int kMajorAttribute = 75;          // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    static constexpr int kMinorAttribute = 76;          // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR
    static constexpr int kSharedAttribute = 97;         // CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
    static constexpr int kFunctionSharedAttribute = 8;  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES

    int (*init)(unsigned flags);
    int (*context_current)(CuContext* context);
    int (*context_device)(int* device);
    int (*context_id)(CuContext context, unsigned long long* id);
    int (*device_attribute)(int* value, int attribute, int device);
    int (*module_load)(CuModule* module, const void* image);
    int (*module_function)(CuFunction* function, CuModule module, const char* name);
    int (*function_attribute)(CuFunction function, int attribute, int value);
    int (*launch)(CuFunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                  unsigned block_y, unsigned block_z, unsigned shared, CUstream_st* stream, void** arguments,
                  void** extra);
};

// The driver, or null where it is missing, too old or cannot be started.
const Driver* driver();

}  // namespace toprl
