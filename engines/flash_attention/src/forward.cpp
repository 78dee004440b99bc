// One call: check it, plan it, launch its kernels.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>

#include "arguments.h"
#include "modules.h"
#include "plan.h"
#include "toprl_flash_attention.h"

namespace toprl {
namespace {

constexpr std::int64_t kAlignment = 16;  // bytes of addresses, elements of strides
constexpr std::int64_t kLongest = std::int64_t(1) << 29;  // kernels add two lengths and a tile in 32 bits
constexpr std::int64_t kMostPrograms = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t kLargestRowStride = std::int64_t(1) << 23;  // a tile's rows are counted in 32 bits

bool aligned(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % kAlignment == 0; }

bool good_strides(const std::int64_t* strides, std::int64_t multiple) {
    for (int i = 0; i < 3; ++i)
        if (strides[i] < 0 || strides[i] % multiple) return false;
    return strides[2] <= kLargestRowStride;
}

int check_sizes(const toprl_fa_params& p) {
    if (p.struct_size != sizeof(toprl_fa_params)) return TOPRL_FA_BAD_STRUCT;
    if (p.head_dim != 64 && p.head_dim != 128) return TOPRL_FA_BAD_HEAD_DIM;
    if (p.batch < 0 || p.heads < 1 || p.kv_heads < 1 || p.q_len < 0 || p.k_len < 0 || p.heads % p.kv_heads ||
        p.q_len > kLongest || p.k_len > kLongest)
        return TOPRL_FA_BAD_SIZE;
    // Programs of a launch, with room for the splits.
    const std::int64_t rows = std::int64_t(p.batch) * p.heads;
    const std::int64_t marks = ceil_div(p.q_len, 64) * ceil_div(p.k_len, 64);
    const std::int64_t masks = std::max<std::int64_t>(mask_batches(p) * mask_heads(p), 1);  // none in an empty batch
    if (rows > kMostPrograms || rows * ceil_div(p.q_len, 64) > kMostPrograms / 32 ||
        (p.mask && marks > kMostPrograms / masks))
        return TOPRL_FA_BAD_SIZE;
    return TOPRL_FA_OK;
}

int check(const toprl_fa_params& p) {
    if (const int status = check_sizes(p)) return status;
    if (p.dtype != TOPRL_FA_FP16 && p.dtype != TOPRL_FA_BF16) return TOPRL_FA_BAD_DTYPE;
    if (!(p.scale > 0) || !std::isfinite(p.scale)) return TOPRL_FA_BAD_SCALE;
    const bool empty = !p.batch || !p.q_len;
    if (!empty && (!p.out || !p.query || (p.k_len && (!p.key || !p.value)))) return TOPRL_FA_BAD_POINTER;
    const void* pointers[] = {p.query, p.key, p.value, p.out};
    const std::int64_t* strides[] = {p.query_strides, p.key_strides, p.value_strides, p.out_strides};
    for (int i = 0; i < 4; ++i)
        if (!aligned(pointers[i]) || !good_strides(strides[i], kAlignment)) return TOPRL_FA_BAD_ALIGNMENT;
    return good_strides(p.mask_strides, 1) ? TOPRL_FA_OK : TOPRL_FA_BAD_ALIGNMENT;
}

int launch(const Target& target, const Variant& variant, std::int64_t programs, Arguments& arguments,
           CUstream_st* stream) {
    CuFunction function = nullptr;
    if (const int status = load_function(target, variant, function)) return status;
    if (!arguments.fit(variant.arguments, variant.scratch)) return TOPRL_FA_LOAD_FAILED;
    const int failed = target.driver->launch(function, unsigned(programs), 1, 1, unsigned(32 * variant.warps), 1, 1,
                                             unsigned(variant.shared), stream, arguments.addresses(), nullptr);
    return failed ? TOPRL_FA_LAUNCH_FAILED : TOPRL_FA_OK;
}

std::int32_t diagonal_of(const toprl_fa_params& p) { return p.causal ? p.k_len - p.q_len : p.k_len; }

// What `attend` and `attend_few` share; `space` holds marks or parts.
Arguments common_arguments(const toprl_fa_params& p, const void* space) {
    Arguments arguments;
    for (const void* pointer : {p.query, p.key, p.value, static_cast<const void*>(p.out), p.mask, space})
        arguments.add(pointer);
    arguments.add(p.scale * 1.4426950408889634f);  // the kernels' exponentials are powers of two
    for (const std::int32_t size : {p.heads, p.heads / p.kv_heads, p.q_len, p.k_len, diagonal_of(p)})
        arguments.add(size);
    for (const std::int64_t* strides : {p.query_strides, p.key_strides, p.value_strides, p.out_strides, p.mask_strides})
        arguments.add_strides(strides);
    return arguments;
}

int run_many(const toprl_fa_params& p, const Target& target, const Plan& plan, CUstream_st* stream) {
    const std::int64_t per_mask = std::int64_t(plan.query_blocks) * plan.key_tiles;
    if (plan.mark) {
        Arguments arguments;
        arguments.add(p.mask);
        arguments.add(static_cast<const void*>(p.workspace));
        for (const std::int32_t size : {p.q_len, p.k_len, diagonal_of(p)}) arguments.add(size);
        arguments.add_strides(p.mask_strides);
        arguments.add(std::int32_t(mask_heads(p)));
        const std::int64_t programs = mask_batches(p) * mask_heads(p) * per_mask;
        if (const int status = launch(target, *plan.mark, programs, arguments, stream)) return status;
    }
    Arguments arguments = common_arguments(p, plan.mark ? p.workspace : nullptr);
    arguments.add(p.mask_strides[0] ? mask_heads(p) * per_mask : std::int64_t(0));
    arguments.add(p.mask_strides[1] ? per_mask : std::int64_t(0));
    const std::int64_t programs = std::int64_t(p.batch) * p.heads * plan.query_blocks;
    return launch(target, *plan.attend, programs, arguments, stream);
}

int run_few(const toprl_fa_params& p, const Target& target, const Plan& plan, CUstream_st* stream) {
    const std::int32_t rows = p.batch * p.heads * p.q_len;
    Arguments arguments = common_arguments(p, plan.merge ? p.workspace : nullptr);
    for (const std::int32_t size : {plan.splits, plan.tiles_per_split, rows}) arguments.add(size);
    const std::int64_t programs = std::int64_t(p.batch) * p.kv_heads * plan.splits;
    const int status = launch(target, *plan.attend, programs, arguments, stream);
    if (status || !plan.merge) return status;
    Arguments merging;
    merging.add(static_cast<const void*>(p.workspace));
    merging.add(static_cast<const void*>(p.out));
    for (const std::int32_t size : {p.heads, p.q_len}) merging.add(size);
    merging.add_strides(p.out_strides);
    for (const std::int32_t size : {plan.splits, rows}) merging.add(size);
    return launch(target, *plan.merge, rows, merging, stream);
}

}  // namespace
}  // namespace toprl

extern "C" {

int toprl_flash_attention_forward(const toprl_fa_params* params, CUstream_st* stream) {
    if (!params) return TOPRL_FA_BAD_POINTER;
    if (const int status = toprl::check(*params)) return status;
    toprl_fa_params call = *params;
    if (!call.batch || !call.q_len) return TOPRL_FA_OK;
    if (!call.k_len) call.mask = nullptr;
    toprl::Target target{};
    if (const int status = toprl::find_target(target)) return status;
    const toprl::Plan plan = toprl::make_plan(call, target.sm);
    const std::size_t needed = toprl::planned_workspace(call, plan);
    if (needed && (!call.workspace || call.workspace_size < needed || !toprl::aligned(call.workspace)))
        return TOPRL_FA_BAD_WORKSPACE;
    return plan.query_blocks ? toprl::run_many(call, target, plan, stream) : toprl::run_few(call, target, plan, stream);
}

size_t toprl_flash_attention_workspace_size(const toprl_fa_params* params) {
    return params && toprl::check_sizes(*params) == TOPRL_FA_OK ? toprl::workspace_bound(*params) : 0;
}

int toprl_flash_attention_prepare(int dtype, int head_dim) {
    if (dtype != TOPRL_FA_FP16 && dtype != TOPRL_FA_BF16) return TOPRL_FA_BAD_DTYPE;
    if (head_dim != 64 && head_dim != 128) return TOPRL_FA_BAD_HEAD_DIM;
    toprl::Target target{};
    if (const int status = toprl::find_target(target)) return status;
    const toprl::Dtype wanted = dtype == TOPRL_FA_FP16 ? toprl::Dtype::fp16 : toprl::Dtype::bf16;
    for (int i = 0; i < toprl::kVariantCount; ++i) {
        const toprl::Variant& v = toprl::kVariants[i];
        const bool used = (v.dtype == wanted && v.head_dim == head_dim) || v.kernel == toprl::Kernel::mark_tiles;
        toprl::CuFunction function = nullptr;
        if (!used || v.sm != target.sm) continue;
        if (const int status = toprl::load_function(target, v, function)) return status;
    }
    return TOPRL_FA_OK;
}

int toprl_flash_attention_supports(int sm) { return toprl::code_sm(sm) != 0; }

}  // extern "C"
