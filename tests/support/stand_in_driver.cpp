// A libcuda.so.1 without a device: it writes every launch as a line of JSON to the file STAND_IN_LOG.
// Code is the text "cubin NAME LETTERS" or "ptx NAME LETTERS", as tests/support/flash_attention.py makes it.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>

struct Function {
    std::string code, symbol;
    int shared = 48 * 1024;
};

static std::string setting(const char* name, const char* otherwise) {
    const char* value = std::getenv(name);
    return value ? value : otherwise;
}

static std::string argument(char letter, const void* address) {
    std::uint64_t bits = 0;
    std::memcpy(&bits, address, letter == 'f' || letter == 'i' ? 4 : 8);
    if (letter == 'f') {
        float number = 0;
        std::memcpy(&number, &bits, sizeof number);
        return std::to_string(number);
    }
    return std::to_string(letter == 'i' ? std::int64_t(std::int32_t(bits)) : std::int64_t(bits));
}

extern "C" {

int cuInit(unsigned) { return std::atoi(setting("STAND_IN_INIT", "0").c_str()); }

int cuCtxGetCurrent(void** context) {
    *context = setting("STAND_IN_CONTEXT", "one") == "none" ? nullptr : reinterpret_cast<void*>(1);
    return 0;
}

int cuCtxGetId(void*, unsigned long long* id) {
    *id = 7;
    return 0;
}

int cuCtxGetDevice(int* device) {
    *device = 0;
    return 0;
}

int cuDeviceGetAttribute(int* value, int attribute, int) {
    const int sm = std::atoi(setting("STAND_IN_SM", "90").c_str());
    *value = attribute == 75 ? sm / 10 : attribute == 76 ? sm % 10 : std::atoi(setting("STAND_IN_SHARED", "232448").c_str());
    return 0;
}

int cuModuleLoadData(void** module, const void* image) {
    const std::string code = static_cast<const char*>(image);
    if (code.substr(0, code.find(' ')) == setting("STAND_IN_REFUSE", "") || setting("STAND_IN_REFUSE", "") == "all")
        return 209;  // CUDA_ERROR_NO_BINARY_FOR_GPU
    *module = new std::string(code);
    return 0;
}

int cuModuleGetFunction(void** function, void* module, const char* name) {
    *function = new Function{*static_cast<std::string*>(module), name};
    return 0;
}

int cuFuncSetAttribute(void* function, int attribute, int value) {
    if (attribute == 8) static_cast<Function*>(function)->shared = value;
    return 0;
}

int cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned, unsigned,
                   unsigned shared, void* stream, void** arguments, void**) {
    const Function& kernel = *static_cast<Function*>(function);
    std::istringstream code(kernel.code);
    std::string kind, name, letters;
    code >> kind >> name >> letters;
    if (!x || y != 1 || z != 1 || shared > unsigned(kernel.shared)) return 1;
    std::ostringstream line;
    line << "{\"kind\": \"" << kind << "\", \"name\": \"" << name << "\", \"symbol\": \"" << kernel.symbol
         << "\", \"grid\": " << x << ", \"threads\": " << threads << ", \"shared\": " << shared
         << ", \"stream\": " << reinterpret_cast<std::uintptr_t>(stream) << ", \"arguments\": [";
    letters += "pp";  // what Triton adds
    for (std::size_t i = 0; i < letters.size(); ++i) line << (i ? ", " : "") << argument(letters[i], arguments[i]);
    std::FILE* log = std::fopen(std::getenv("STAND_IN_LOG"), "a");
    std::fprintf(log, "%s]}\n", line.str().c_str());
    std::fclose(log);
    return std::atoi(setting("STAND_IN_LAUNCH", "0").c_str());
}

}  // extern "C"
