#include "plan.h"

#include <algorithm>

namespace toprl {
namespace {

// These are those of toprl_flash_attention/tiles.py.
constexpr std::int64_t kFewRows = 16;
constexpr std::int64_t kFullGrid = 128;
constexpr std::int64_t kSplitGrid = 256;
constexpr std::int64_t kSplitTiles = 8;
constexpr std::int64_t kMaxSplits = 32;
constexpr std::int64_t kSmallestBlock = 64;  // of queries and of keys, in the wide and narrow forms

Form choose_form(const toprl_fa_params& params, const Variant& wide, const Variant& narrow) {
    if (std::int64_t(params.heads / params.kv_heads) * params.q_len <= kFewRows) return Form::few;
    const std::int64_t programs = std::int64_t(params.batch) * params.heads * ceil_div(params.q_len, wide.block_q);
    return params.q_len <= narrow.block_q || programs < kFullGrid ? Form::narrow : Form::wide;
}

void choose_splits(const toprl_fa_params& params, Plan& plan) {
    const std::int64_t programs = std::int64_t(params.batch) * params.kv_heads;
    const std::int64_t wanted =
        std::min({kMaxSplits, ceil_div(kSplitGrid, programs), ceil_div(plan.key_tiles, kSplitTiles)});
    plan.tiles_per_split = int(std::max<std::int64_t>(ceil_div(plan.key_tiles, std::max<std::int64_t>(wanted, 1)), 1));
    plan.splits = int(std::max<std::int64_t>(ceil_div(plan.key_tiles, plan.tiles_per_split), 1));
}

// The row of the table that passes, or null.
template <typename Test>
const Variant* find_variant(Test test) {
    const Variant* const end = kVariants + kVariantCount;
    const Variant* const found = std::find_if(kVariants, end, test);
    return found == end ? nullptr : found;
}

}  // namespace

Plan make_plan(const toprl_fa_params& params, int sm) {
    const Dtype dtype = params.dtype == TOPRL_FA_FP16 ? Dtype::fp16 : Dtype::bf16;
    const bool masked = params.mask != nullptr;
    const auto find = [&](Kernel kernel, Form form) {
        const bool looks_at_mask = masked && kernel != Kernel::merge_splits;
        return find_variant([&](const Variant& v) {
            return v.kernel == kernel && v.sm == sm && v.dtype == dtype && v.head_dim == params.head_dim &&
                   v.masked == looks_at_mask && v.form == form;
        });
    };
    Plan plan{};
    const Variant* wide = find(Kernel::attend, Form::wide);
    const Variant* narrow = find(Kernel::attend, Form::narrow);
    const Form form = choose_form(params, *wide, *narrow);
    plan.attend = form == Form::few ? find(Kernel::attend_few, form) : form == Form::wide ? wide : narrow;
    plan.key_tiles = int(ceil_div(params.k_len, plan.attend->block_k));
    if (form == Form::few) {
        choose_splits(params, plan);
        if (plan.splits > 1) plan.merge = find(Kernel::merge_splits, Form::none);
    } else {
        plan.query_blocks = int(ceil_div(params.q_len, plan.attend->block_q));
        if (masked)
            plan.mark = find_variant([&](const Variant& v) {
                return v.kernel == Kernel::mark_tiles && v.sm == sm && v.block_q == plan.attend->block_q &&
                       v.block_k == plan.attend->block_k;
            });
    }
    return plan;
}

std::int64_t mask_batches(const toprl_fa_params& params) { return params.mask_strides[0] ? params.batch : 1; }

std::int64_t mask_heads(const toprl_fa_params& params) { return params.mask_strides[1] ? params.heads : 1; }

std::size_t planned_workspace(const toprl_fa_params& params, const Plan& plan) {
    if (plan.mark) return std::size_t(mask_batches(params) * mask_heads(params) * plan.query_blocks * plan.key_tiles);
    if (!plan.merge) return 0;
    const std::int64_t rows = std::int64_t(params.batch) * params.heads * params.q_len;
    return std::size_t(rows * plan.splits * (params.head_dim + 2)) * sizeof(float);
}

std::size_t workspace_bound(const toprl_fa_params& params) {
    std::int64_t bytes = 0;
    if (params.mask)
        bytes = mask_batches(params) * mask_heads(params) * ceil_div(params.q_len, kSmallestBlock) *
                ceil_div(params.k_len, kSmallestBlock);
    if (ceil_div(params.k_len, kSmallestBlock) > kSplitTiles) {
        // Several splits are made of fewer than kSplitGrid programs, each rounded up by less than one split.
        const std::int64_t programs = std::int64_t(params.batch) * params.kv_heads;
        const std::int64_t parts = std::min(programs * kMaxSplits, kSplitGrid + programs);
        bytes = std::max(bytes, kFewRows * parts * (params.head_dim + 2) * std::int64_t(sizeof(float)));
    }
    return std::size_t(bytes);
}

}  // namespace toprl
