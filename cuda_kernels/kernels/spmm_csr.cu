// C = A B with a sparse A of (m, k) in CSR and a dense B of (k, n), row-major. C is (m, n).
#include "device.cuh"

// Step 1: one thread per output. Every thread of a row reads its columns and values again, and B 4 bytes at a time.
extern "C" __global__ void spmm_thread_per_output(const int* __restrict__ pointers, const int* __restrict__ columns,
                                                  const float* __restrict__ values, const float* __restrict__ b,
                                                  float* __restrict__ c, int m, int n) {
    int row = blockIdx.x * blockDim.y + threadIdx.y, col = blockIdx.y * blockDim.x + threadIdx.x;
    if (row >= m || col >= n) return;
    float sum = 0.f;
    for (int i = pointers[row]; i < pointers[row + 1]; ++i)
        sum = fmaf(values[i], b[(size_t)columns[i] * n + col], sum);
    c[(size_t)row * n + col] = sum;
}

// Step 2: one warp per row and slab of columns. 32 non-zeros are read at once into the warp's part of shared memory;
// then LANES lanes take 4 columns each of a non-zero's row of B, in 16-byte loads, four in flight. With few columns
// (LANES < 32) the warp works on 32 / LANES non-zeros at a time and adds up at the end. Warps of a block take
// neighbouring rows of the same slab, so that a row of B that several of them need is in the L1 cache.
constexpr int WARPS = 8;

struct Entries {
    int column[32];
    float value[32];
};

__device__ __forceinline__ void add_scaled(float4& sum, float s, float4 v) {
    sum.x = fmaf(s, v.x, sum.x), sum.y = fmaf(s, v.y, sum.y);
    sum.z = fmaf(s, v.z, sum.z), sum.w = fmaf(s, v.w, sum.w);
}

template <int LANES>
__device__ __forceinline__ void spmm_rows(Entries* shared, const int* __restrict__ pointers,
                                          const int* __restrict__ columns, const float* __restrict__ values,
                                          const float* __restrict__ b, float* __restrict__ c, int m, int n) {
    constexpr int GROUPS = 32 / LANES;
    int lane = threadIdx.x % 32, group = lane / LANES, row = blockIdx.x * WARPS + threadIdx.x / 32;
    int col = (blockIdx.y * LANES + lane % LANES) * 4;
    if (row >= m) return;
    bool aligned = n % 4 == 0;
    Entries& mine = shared[threadIdx.x / 32];
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
    int end = pointers[row + 1];
    for (int start = pointers[row]; start < end; start += 32) {
        int count = min(32, end - start);
        if (lane < count) {
            mine.column[lane] = columns[start + lane];
            mine.value[lane] = values[start + lane];
        }
        __syncwarp();
        int i = group;
        for (; i + 3 * GROUPS < count; i += 4 * GROUPS) {
            float4 v[4];
#pragma unroll
            for (int u = 0; u < 4; ++u) v[u] = load4(b + (size_t)mine.column[i + u * GROUPS] * n, col, n, aligned);
#pragma unroll
            for (int u = 0; u < 4; ++u) add_scaled(sum, mine.value[i + u * GROUPS], v[u]);
        }
        for (; i < count; i += GROUPS)
            add_scaled(sum, mine.value[i], load4(b + (size_t)mine.column[i] * n, col, n, aligned));
        __syncwarp();
    }
#pragma unroll
    for (int offset = LANES; offset < 32; offset *= 2) {
        sum.x += __shfl_xor_sync(FULL_WARP, sum.x, offset);
        sum.y += __shfl_xor_sync(FULL_WARP, sum.y, offset);
        sum.z += __shfl_xor_sync(FULL_WARP, sum.z, offset);
        sum.w += __shfl_xor_sync(FULL_WARP, sum.w, offset);
    }
    if (group != 0) return;
    float* to = c + (size_t)row * n + col;
    if (aligned && col + 4 <= n) {
        *(float4*)to = sum;
        return;
    }
    if (col < n) to[0] = sum.x;
    if (col + 1 < n) to[1] = sum.y;
    if (col + 2 < n) to[2] = sum.z;
    if (col + 3 < n) to[3] = sum.w;
}

#define SPMM_ARGUMENTS                                                                                       \
    const int *__restrict__ pointers, const int *__restrict__ columns, const float *__restrict__ values,     \
        const float *__restrict__ b, float *__restrict__ c, int m, int n

extern "C" __global__ void __launch_bounds__(WARPS * 32) spmm_row_split_4(SPMM_ARGUMENTS) {
    __shared__ Entries shared[WARPS];
    spmm_rows<4>(shared, pointers, columns, values, b, c, m, n);
}

extern "C" __global__ void __launch_bounds__(WARPS * 32) spmm_row_split_8(SPMM_ARGUMENTS) {
    __shared__ Entries shared[WARPS];
    spmm_rows<8>(shared, pointers, columns, values, b, c, m, n);
}

extern "C" __global__ void __launch_bounds__(WARPS * 32) spmm_row_split_16(SPMM_ARGUMENTS) {
    __shared__ Entries shared[WARPS];
    spmm_rows<16>(shared, pointers, columns, values, b, c, m, n);
}

extern "C" __global__ void __launch_bounds__(WARPS * 32) spmm_row_split_32(SPMM_ARGUMENTS) {
    __shared__ Entries shared[WARPS];
    spmm_rows<32>(shared, pointers, columns, values, b, c, m, n);
}
