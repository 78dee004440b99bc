/* FlashAttention forward: softmax(scale · q kᵀ) v over the allowed keys, on GPUs of compute capability 8.0 and up.
 *
 * Plain C, independent of torch and TensorRT; the CUDA driver is looked up when it is first needed, so that the
 * library links and loads where there is none. All functions may be called from several threads. Keys and values that
 * the mask forbids must still be numbers: an infinity or NaN there can spread.
 */
#ifndef TOPRL_FLASH_ATTENTION_H
#define TOPRL_FLASH_ATTENTION_H

#include <stddef.h>
#include <stdint.h>

#define TOPRL_FA_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

/* cudaStream_t and CUstream are pointers to it. */
struct CUstream_st;

enum toprl_fa_dtype { TOPRL_FA_FP16 = 0, TOPRL_FA_BF16 = 1 };

enum toprl_fa_status {
    TOPRL_FA_OK = 0,
    TOPRL_FA_BAD_STRUCT = 1,    /* struct_size is not that of this header: rebuild the caller or the library */
    TOPRL_FA_BAD_POINTER = 2,   /* query, key, value or out is null */
    TOPRL_FA_BAD_SIZE = 3,      /* a size is negative or too large, or kv_heads does not divide heads */
    TOPRL_FA_BAD_HEAD_DIM = 4,  /* head_dim is neither 64 nor 128 */
    TOPRL_FA_BAD_DTYPE = 5,
    TOPRL_FA_BAD_SCALE = 6,     /* scale is not a positive number */
    TOPRL_FA_BAD_ALIGNMENT = 7, /* a pointer is no multiple of 16 bytes, or a stride none of 16 elements */
    TOPRL_FA_BAD_WORKSPACE = 8, /* workspace is smaller than asked for, or no multiple of 16 bytes */
    TOPRL_FA_NO_DRIVER = 9,     /* libcuda.so.1 is missing or too old */
    TOPRL_FA_NO_CONTEXT = 10,   /* no CUDA context is current on this thread */
    TOPRL_FA_BAD_DEVICE = 11,   /* compute capability below 8.0, or too little shared memory */
    TOPRL_FA_LOAD_FAILED = 12,  /* the driver refused the machine code and the assembly */
    TOPRL_FA_LAUNCH_FAILED = 13 /* the driver refused the launch */
};

/* One call. Strides are in elements, of (batch, head, row); the last dimension is contiguous. The strides of query,
 * key, value and out are multiples of 16, and so are their addresses in bytes.
 */
typedef struct toprl_fa_params {
    uint32_t struct_size; /* sizeof(toprl_fa_params) */
    int32_t dtype;        /* of query, key, value and out: enum toprl_fa_dtype */
    int32_t batch;
    int32_t heads;
    int32_t kv_heads; /* divides heads */
    int32_t q_len;
    int32_t k_len;
    int32_t head_dim;     /* 64 or 128 */
    int32_t causal;       /* not 0: query i attends to keys up to i + k_len - q_len */
    float scale;          /* positive */
    const void* query;    /* [batch, heads, q_len, head_dim] */
    const void* key;      /* [batch, kv_heads, k_len, head_dim] */
    const void* value;    /* like key */
    void* out;            /* like query; a query that may attend nothing gives zeros */
    const void* mask;     /* bytes, not 0 where a query may attend: [batch, heads, q_len, k_len]; null: everywhere */
    void* workspace;      /* device memory; null where its size is 0 */
    size_t workspace_size;
    int64_t query_strides[3];
    int64_t key_strides[3];
    int64_t value_strides[3];
    int64_t out_strides[3];
    int64_t mask_strides[3]; /* 0 where the mask is broadcast */
} toprl_fa_params;

/* Queue the work on a stream of the current context. The first call of a kind loads its code: make one before a
 * stream capture, or call toprl_flash_attention_prepare. */
TOPRL_FA_API int toprl_flash_attention_forward(const toprl_fa_params* params, struct CUstream_st* stream);

/* Bytes of workspace that do for a call of these sizes and of all smaller ones. Reads the sizes, and whether mask and
 * its strides are null; pointers are not followed. */
TOPRL_FA_API size_t toprl_flash_attention_workspace_size(const toprl_fa_params* params);

/* Load all code for a dtype and head dimension on the current context's device. */
TOPRL_FA_API int toprl_flash_attention_prepare(int dtype, int head_dim);

/* 1 where a device of compute capability sm (89 for 8.9) can run the kernels, else 0. */
TOPRL_FA_API int toprl_flash_attention_supports(int sm);

/* What a status means, one line; never null. */
TOPRL_FA_API const char* toprl_flash_attention_error(int status);

#ifdef __cplusplus
}
#endif
#endif
