#include "driver.h"

#include <dlfcn.h>

namespace toprl {
namespace {

template <typename Function>
bool look_up(void* library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    return function != nullptr;
}

bool load(Driver& driver) {
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    return library && look_up(library, "cuInit", driver.init) &&
           look_up(library, "cuCtxGetCurrent", driver.context_current) &&
           look_up(library, "cuCtxGetDevice", driver.context_device) &&
           look_up(library, "cuCtxGetId", driver.context_id) &&
           look_up(library, "cuDeviceGetAttribute", driver.device_attribute) &&
           look_up(library, "cuModuleLoadData", driver.module_load) &&
           look_up(library, "cuModuleGetFunction", driver.module_function) &&
           look_up(library, "cuFuncSetAttribute", driver.function_attribute) &&
           look_up(library, "cuLaunchKernel", driver.launch) && driver.init(0) == 0;
}

}  // namespace

const Driver* driver() {
    static Driver functions{};
    static const bool loaded = load(functions);
    return loaded ? &functions : nullptr;
}

}  // namespace toprl
