#include "plugin.h"

#include <cstring>
#include <new>

namespace toprl {
namespace {

using nvinfer1::DataType;

constexpr char kName[] = "FlashAttention";
constexpr char kVersion[] = "1";
constexpr char kNamespace[] = "toprl";
constexpr char kScale[] = "scale";
constexpr int kMask = 3;  // position of the mask among the inputs

void contiguous(nvinfer1::Dims const& dims, std::int64_t* strides) {
    std::int64_t stride = dims.d[3];
    for (int i = 2; i >= 0; --i) {
        strides[i] = stride;
        stride *= dims.d[i];
    }
}

// As `contiguous`, and 0 where the mask is broadcast.
void broadcast(nvinfer1::Dims const& dims, std::int64_t* strides) {
    contiguous(dims, strides);
    for (int i = 0; i < 3; ++i)
        if (dims.d[i] == 1) strides[i] = 0;
}

// The call of these shapes, without its addresses; a mask is marked by a pointer that is not null.
toprl_fa_params parameters(nvinfer1::Dims const& query, nvinfer1::Dims const& key, nvinfer1::Dims const* mask,
                           DataType type, float scale) {
    toprl_fa_params call{};
    call.struct_size = sizeof call;
    call.dtype = type == DataType::kHALF ? TOPRL_FA_FP16 : TOPRL_FA_BF16;
    call.batch = std::int32_t(query.d[0]);
    call.heads = std::int32_t(query.d[1]);
    call.q_len = std::int32_t(query.d[2]);
    call.head_dim = std::int32_t(query.d[3]);
    call.kv_heads = std::int32_t(key.d[1]);
    call.k_len = std::int32_t(key.d[2]);
    call.scale = scale;
    contiguous(query, call.query_strides);
    contiguous(key, call.key_strides);
    contiguous(key, call.value_strides);
    contiguous(query, call.out_strides);
    if (mask) {
        call.mask = &call;
        broadcast(*mask, call.mask_strides);
    }
    return call;
}

// Whether sizes, of which -1 is not yet known, may be equal.
bool agree(std::int64_t left, std::int64_t right) { return left == right || left == -1 || right == -1; }

bool fit(nvinfer1::Dims const& query, nvinfer1::Dims const& key, nvinfer1::Dims const& value,
         nvinfer1::Dims const* mask) {
    if (query.nbDims != 4 || key.nbDims != 4 || value.nbDims != 4 || (mask && mask->nbDims != 4)) return false;
    for (int i = 0; i < 4; ++i)
        if (!agree(key.d[i], value.d[i])) return false;
    if ((query.d[3] != 64 && query.d[3] != 128) || key.d[3] != query.d[3] || !agree(key.d[0], query.d[0])) return false;
    if (query.d[1] < 1 || key.d[1] < 1 || query.d[1] % key.d[1]) return false;
    if (!mask) return true;
    for (int i = 0; i < 3; ++i)
        if (mask->d[i] != 1 && !agree(mask->d[i], query.d[i])) return false;
    return agree(mask->d[3], key.d[2]);
}

// 0 where the inputs' shapes go together, else 1 and a line in the log.
int check(nvinfer1::Dims const& query, nvinfer1::Dims const& key, nvinfer1::Dims const& value,
          nvinfer1::Dims const* mask) {
    if (fit(query, key, value, mask)) return 0;
    log_error(
        "toprl::FlashAttention: query must be [batch, heads, q, head_dim] with head_dim 64 or 128, key and value "
        "[batch, kv_heads, k, head_dim] with kv_heads dividing heads, and a mask [batch, heads, q, k], with 1 where "
        "one of the first three is broadcast");
    return 1;
}

}  // namespace

FlashAttentionPlugin::FlashAttentionPlugin(float scale)
    : scale_(scale), field_(kScale, &scale_, nvinfer1::PluginFieldType::kFLOAT32, 1), fields_{1, &field_} {}

nvinfer1::IPluginCapability* FlashAttentionPlugin::getCapabilityInterface(
    nvinfer1::PluginCapabilityType type) noexcept {
    switch (type) {
        case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
        case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
        case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* FlashAttentionPlugin::clone() noexcept { return new (std::nothrow) FlashAttentionPlugin(scale_); }

char const* FlashAttentionPlugin::getPluginName() const noexcept { return kName; }
char const* FlashAttentionPlugin::getPluginVersion() const noexcept { return kVersion; }
char const* FlashAttentionPlugin::getPluginNamespace() const noexcept { return kNamespace; }

std::int32_t FlashAttentionPlugin::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* inputs,
                                                   std::int32_t inputCount, nvinfer1::DynamicPluginTensorDesc const*,
                                                   std::int32_t outputCount) noexcept {
    if ((inputCount != kMask && inputCount != kMask + 1) || outputCount != 1) {
        log_error("toprl::FlashAttention takes query, key, value and optionally a mask, and gives one output");
        return 1;
    }
    nvinfer1::Dims const* mask = inputCount > kMask ? &inputs[kMask].desc.dims : nullptr;
    return check(inputs[0].desc.dims, inputs[1].desc.dims, inputs[2].desc.dims, mask);
}

std::int32_t FlashAttentionPlugin::getOutputDataTypes(DataType* outputs, std::int32_t, DataType const* inputs,
                                                      std::int32_t) const noexcept {
    outputs[0] = inputs[0];
    return 0;
}

std::int32_t FlashAttentionPlugin::getOutputShapes(nvinfer1::DimsExprs const* inputs, std::int32_t,
                                                   nvinfer1::DimsExprs const*, std::int32_t,
                                                   nvinfer1::DimsExprs* outputs, std::int32_t,
                                                   nvinfer1::IExprBuilder&) noexcept {
    outputs[0] = inputs[0];
    return 0;
}

bool FlashAttentionPlugin::supportsFormatCombination(std::int32_t position,
                                                     nvinfer1::DynamicPluginTensorDesc const* tensors,
                                                     std::int32_t inputCount, std::int32_t) noexcept {
    nvinfer1::PluginTensorDesc const& tensor = tensors[position].desc;
    if (tensor.format != nvinfer1::TensorFormat::kLINEAR) return false;
    if (position == kMask && inputCount > kMask) return tensor.type == DataType::kBOOL;
    if (position == 0) return tensor.type == DataType::kHALF || tensor.type == DataType::kBF16;
    return tensor.type == tensors[0].desc.type;
}

std::int32_t FlashAttentionPlugin::getNbOutputs() const noexcept { return 1; }

std::size_t FlashAttentionPlugin::getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs,
                                                   std::int32_t inputCount, nvinfer1::DynamicPluginTensorDesc const*,
                                                   std::int32_t) const noexcept {
    nvinfer1::Dims const* mask = inputCount > kMask ? &inputs[kMask].max : nullptr;
    const toprl_fa_params call = parameters(inputs[0].max, inputs[1].max, mask, inputs[0].desc.type, scale_);
    return toprl_flash_attention_workspace_size(&call);
}

std::int32_t FlashAttentionPlugin::onShapeChange(nvinfer1::PluginTensorDesc const* inputs, std::int32_t inputCount,
                                                 nvinfer1::PluginTensorDesc const*, std::int32_t) noexcept {
    nvinfer1::Dims const* mask = inputCount > kMask ? &inputs[kMask].dims : nullptr;
    if (check(inputs[0].dims, inputs[1].dims, inputs[2].dims, mask)) return 1;
    const toprl_fa_params call = parameters(inputs[0].dims, inputs[1].dims, mask, inputs[0].type, scale_);
    inputs_ = inputCount;
    workspace_size_ = toprl_flash_attention_workspace_size(&call);
    // So that no code has to be loaded while a stream is captured. A failure shows in `enqueue`; here there may be no
    // device yet.
    toprl_flash_attention_prepare(call.dtype, call.head_dim);
    return 0;
}

std::int32_t FlashAttentionPlugin::enqueue(nvinfer1::PluginTensorDesc const* inputDescs,
                                           nvinfer1::PluginTensorDesc const*, void const* const* inputs,
                                           void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
    if (!inputs_) return 1;  // TensorRT tells the shapes, and with them the number of inputs, before it runs a layer
    nvinfer1::Dims const* mask = inputs_ > kMask ? &inputDescs[kMask].dims : nullptr;
    toprl_fa_params call = parameters(inputDescs[0].dims, inputDescs[1].dims, mask, inputDescs[0].type, scale_);
    call.query = inputs[0];
    call.key = inputs[1];
    call.value = inputs[2];
    call.mask = mask ? inputs[kMask] : nullptr;
    call.out = outputs[0];
    call.workspace = workspace;
    call.workspace_size = workspace_size_;
    const int status = toprl_flash_attention_forward(&call, stream);
    if (status) log_error(toprl_flash_attention_error(status));
    return status;
}

nvinfer1::IPluginV3* FlashAttentionPlugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
    return clone();
}

nvinfer1::PluginFieldCollection const* FlashAttentionPlugin::getFieldsToSerialize() noexcept { return &fields_; }

FlashAttentionCreator::FlashAttentionCreator()
    : field_(kScale, nullptr, nvinfer1::PluginFieldType::kFLOAT32, 1), fields_{1, &field_} {}

nvinfer1::IPluginV3* FlashAttentionCreator::createPlugin(char const*, nvinfer1::PluginFieldCollection const* fields,
                                                         nvinfer1::TensorRTPhase) noexcept {
    for (int i = 0; fields && i < fields->nbFields; ++i) {
        nvinfer1::PluginField const& field = fields->fields[i];
        if (std::strcmp(field.name, kScale) || field.type != nvinfer1::PluginFieldType::kFLOAT32 || !field.data)
            continue;
        float scale = 0;
        std::memcpy(&scale, field.data, sizeof scale);
        if (scale > 0) return new (std::nothrow) FlashAttentionPlugin(scale);
    }
    log_error("toprl::FlashAttention: the attribute scale, a positive float, is missing");
    return nullptr;
}

nvinfer1::PluginFieldCollection const* FlashAttentionCreator::getFieldNames() noexcept { return &fields_; }
char const* FlashAttentionCreator::getPluginName() const noexcept { return kName; }
char const* FlashAttentionCreator::getPluginVersion() const noexcept { return kVersion; }
char const* FlashAttentionCreator::getPluginNamespace() const noexcept { return kNamespace; }

}  // namespace toprl
