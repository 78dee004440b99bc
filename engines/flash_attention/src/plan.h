// Which kernels a call runs, with which tiles and how much workspace. No driver is needed for it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "toprl_flash_attention.h"
#include "variants.h"

namespace toprl {

struct Plan {
    const Variant* attend;
    const Variant* mark;    // null: the call has no mask, or few queries
    const Variant* merge;   // null: there is one split
    int splits;
    int tiles_per_split;
    int query_blocks;
    int key_tiles;
};

inline std::int64_t ceil_div(std::int64_t value, std::int64_t by) { return (value + by - 1) / by; }

// The call's plan on a device whose code is that of `sm` (80 or 90). The sizes must have been checked.
Plan make_plan(const toprl_fa_params& params, int sm);

// Leading sizes of the marks: those dimensions of the mask that are not broadcast.
std::int64_t mask_batches(const toprl_fa_params& params);
std::int64_t mask_heads(const toprl_fa_params& params);

// Bytes that one planned call uses.
std::size_t planned_workspace(const toprl_fa_params& params, const Plan& plan);

// Bytes that do for a call of these sizes and of all smaller ones, on any device.
std::size_t workspace_bound(const toprl_fa_params& params);

}  // namespace toprl
