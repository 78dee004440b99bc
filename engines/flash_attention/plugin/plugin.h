// `toprl::FlashAttention` for TensorRT and TensorRT for RTX: a layer over the C interface of the core.
#pragma once

#include <NvInferRuntime.h>

#include "toprl_flash_attention.h"

namespace toprl {

// One line in TensorRT's log, at level error; goes nowhere before the library was registered with TensorRT.
void log_error(char const* text);

// Inputs: query [b, heads, q, head_dim], key and value [b, kv_heads, k, head_dim], all fp16 or all bf16; optionally a
// boolean mask that broadcasts to [b, heads, q, k], its last dimension whole. Output: like query.
class FlashAttentionPlugin final : public nvinfer1::IPluginV3,
                                   public nvinfer1::IPluginV3OneCore,
                                   public nvinfer1::IPluginV3OneBuild,
                                   public nvinfer1::IPluginV3OneRuntime {
public:
    explicit FlashAttentionPlugin(float scale);

    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    char const* getPluginName() const noexcept override;
    char const* getPluginVersion() const noexcept override;
    char const* getPluginNamespace() const noexcept override;

    std::int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* inputs, std::int32_t inputCount,
                                 nvinfer1::DynamicPluginTensorDesc const* outputs,
                                 std::int32_t outputCount) noexcept override;
    std::int32_t getOutputDataTypes(nvinfer1::DataType* outputs, std::int32_t outputCount,
                                    nvinfer1::DataType const* inputs, std::int32_t inputCount) const noexcept override;
    std::int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, std::int32_t inputCount,
                                 nvinfer1::DimsExprs const* shapeInputs, std::int32_t shapeInputCount,
                                 nvinfer1::DimsExprs* outputs, std::int32_t outputCount,
                                 nvinfer1::IExprBuilder& builder) noexcept override;
    bool supportsFormatCombination(std::int32_t position, nvinfer1::DynamicPluginTensorDesc const* tensors,
                                   std::int32_t inputCount, std::int32_t outputCount) noexcept override;
    std::int32_t getNbOutputs() const noexcept override;
    std::size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, std::int32_t inputCount,
                                 nvinfer1::DynamicPluginTensorDesc const* outputs,
                                 std::int32_t outputCount) const noexcept override;

    std::int32_t onShapeChange(nvinfer1::PluginTensorDesc const* inputs, std::int32_t inputCount,
                               nvinfer1::PluginTensorDesc const* outputs, std::int32_t outputCount) noexcept override;
    std::int32_t enqueue(nvinfer1::PluginTensorDesc const* inputDescs, nvinfer1::PluginTensorDesc const* outputDescs,
                         void const* const* inputs, void* const* outputs, void* workspace,
                         cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

private:
    float scale_;
    int inputs_ = 0;                  // three, or four with a mask; 0: not yet told
    std::size_t workspace_size_ = 0;  // for the shapes in use
    nvinfer1::PluginField field_;
    nvinfer1::PluginFieldCollection fields_;
};

class FlashAttentionCreator final : public nvinfer1::IPluginCreatorV3One {
public:
    FlashAttentionCreator();

    nvinfer1::IPluginV3* createPlugin(char const* name, nvinfer1::PluginFieldCollection const* fields,
                                      nvinfer1::TensorRTPhase phase) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override;
    char const* getPluginName() const noexcept override;
    char const* getPluginVersion() const noexcept override;
    char const* getPluginNamespace() const noexcept override;

private:
    nvinfer1::PluginField field_;
    nvinfer1::PluginFieldCollection fields_;
};

}  // namespace toprl
