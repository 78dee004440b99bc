// What TensorRT looks for in a library of plugins.
#include <NvInferRuntime.h>

#include <atomic>

#include "plugin.h"

namespace toprl {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

}  // namespace

void log_error(char const* text) {
    nvinfer1::ILoggerFinder* finder = logger_finder.load();
    nvinfer1::ILogger* logger = finder ? finder->findLogger() : nullptr;
    if (logger) logger->log(nvinfer1::ILogger::Severity::kERROR, text);
}

}  // namespace toprl

extern "C" {

TOPRL_FA_API void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { toprl::logger_finder.store(finder); }

TOPRL_FA_API nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count) {
    static toprl::FlashAttentionCreator creator;
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
    count = 1;
    return creators;
}

}  // extern "C"
