// Kernels loaded into CUDA contexts.
#pragma once

#include "driver.h"
#include "variants.h"

namespace toprl {

// Where the calling thread's work goes.
struct Target {
    const Driver* driver;
    unsigned long long context;  // its id: an address could be reused by a later context
    int sm;                      // of the code that the device runs: 80 or 90
    bool newer;                  // the device is newer than the machine code
    int shared;                  // bytes that a program may use
};

// Each gives a toprl_fa_status.
int find_target(Target& target);
int load_function(const Target& target, const Variant& variant, CuFunction& function);

// The SM whose code a device of this compute capability runs, or 0.
int code_sm(int sm);

}  // namespace toprl
