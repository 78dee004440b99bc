// The compiled kernels. kernels.cpp, written by toprl_flash_attention/compile.py, defines the table.
#pragma once

#include <cstdint>

namespace toprl {

enum class Kernel { attend, attend_few, merge_splits, mark_tiles };
enum class Dtype { fp16, bf16, none };
enum class Form { wide, narrow, few, none };

struct Variant {
    Kernel kernel;
    int sm;  // 80 or 90
    Dtype dtype;
    int head_dim;
    bool masked;
    Form form;
    int block_q;
    int block_k;
    int warps;
    int shared;             // bytes
    const char* arguments;  // a letter each: p(ointer), f(loat), i(nt), l(ong)
    int scratch;            // null pointers to pass behind them
    const char* symbol;
    const std::uint64_t* cubin;
    const std::uint64_t* ptx;
};

extern const Variant kVariants[];
extern const int kVariantCount;

}  // namespace toprl
