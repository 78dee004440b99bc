#include "modules.h"

#include <map>
#include <mutex>
#include <utility>

#include "toprl_flash_attention.h"

namespace toprl {
namespace {

int load_module(const Target& target, const Variant& variant, CuModule& module) {
    if (!target.newer && target.driver->module_load(&module, variant.cubin) == 0) return TOPRL_FA_OK;
    // The driver compiles assembly for newer devices, and where it is older than what made the machine code.
    return target.driver->module_load(&module, variant.ptx) == 0 ? TOPRL_FA_OK : TOPRL_FA_LOAD_FAILED;
}

}  // namespace

int code_sm(int sm) { return sm < 80 ? 0 : sm == 90 ? 90 : 80; }

int find_target(Target& target) {
    target.driver = driver();
    if (!target.driver) return TOPRL_FA_NO_DRIVER;
    const Driver& cuda = *target.driver;
    CuContext context = nullptr;
    int device = 0, major = 0, minor = 0;
    if (cuda.context_current(&context) || !context) return TOPRL_FA_NO_CONTEXT;
    if (cuda.context_id(context, &target.context) || cuda.context_device(&device) ||
        cuda.device_attribute(&major, Driver::kMajorAttribute, device) ||
        cuda.device_attribute(&minor, Driver::kMinorAttribute, device) ||
        cuda.device_attribute(&target.shared, Driver::kSharedAttribute, device))
        return TOPRL_FA_NO_CONTEXT;
    target.sm = code_sm(10 * major + minor);
    target.newer = major != target.sm / 10;
    return target.sm ? TOPRL_FA_OK : TOPRL_FA_BAD_DEVICE;
}

int load_function(const Target& target, const Variant& variant, CuFunction& function) {
    static std::mutex mutex;
    static std::map<std::pair<unsigned long long, const Variant*>, CuFunction> loaded;
    const std::lock_guard<std::mutex> lock(mutex);
    const auto known = loaded.find({target.context, &variant});
    if (known != loaded.end()) {
        function = known->second;
        return TOPRL_FA_OK;
    }
    if (variant.shared > target.shared) return TOPRL_FA_BAD_DEVICE;
    CuModule module = nullptr;
    if (const int status = load_module(target, variant, module)) return status;
    if (target.driver->module_function(&function, module, variant.symbol)) return TOPRL_FA_LOAD_FAILED;
    if (target.driver->function_attribute(function, Driver::kFunctionSharedAttribute, variant.shared))
        return TOPRL_FA_BAD_DEVICE;
    loaded[{target.context, &variant}] = function;
    return TOPRL_FA_OK;
}

}  // namespace toprl
