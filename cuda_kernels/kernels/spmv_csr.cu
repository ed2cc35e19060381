// y = A x with a sparse A of (m, k). CSR costs 8 bytes per non-zero (column and value), which determine the time.
#include "device.cuh"

// Step 1, as published: one thread per row. Neighbouring threads read rows that are far apart, and a warp waits for its
// longest row.
extern "C" __global__ void spmv_thread_per_row(const int* __restrict__ pointers, const int* __restrict__ columns,
                                               const float* __restrict__ values, const float* __restrict__ x,
                                               float* __restrict__ y, int m) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= m) return;
    float sum = 0.f;
    for (int i = pointers[row]; i < pointers[row + 1]; ++i) sum = fmaf(values[i], x[columns[i]], sum);
    y[row] = sum;
}

// Step 2: one warp per row. Columns and values are read 32 neighbours at a time, each byte once: the 8 bytes per
// non-zero that CSR costs.
extern "C" __global__ void spmv_warp_per_row(const int* __restrict__ pointers, const int* __restrict__ columns,
                                             const float* __restrict__ values, const float* __restrict__ x,
                                             float* __restrict__ y, int m) {
    int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= m) return;
    float sum = 0.f;
    for (int i = pointers[row] + lane; i < pointers[row + 1]; i += 32) sum = fmaf(values[i], x[columns[i]], sum);
    sum = warp_sum(sum);
    if (lane == 0) y[row] = sum;
}

// Step 3: fewer bytes. A column is stored as its distance from the one before, in 8 bits: 5 bytes per non-zero with
// FP32 values, 2 with INT8 values and one scale per row. Entries come in fours ("quads"), so a lane reads 4 distances
// and 4 values at once. Distances become columns by a prefix sum over the warp, for two reads at a time, packed into
// the halves of one word. x is kept in shared memory if it fits (once per multiprocessor: one large block on each,
// which takes its rows in turn): there, scattered reads cost only bank conflicts.
constexpr int READS = 4, BLOCK = 1024;

struct Quad {
    float v[4];
};

__device__ __forceinline__ Quad load_quad(const float* values, int quad) {
    float4 v = load_once((const float4*)values + quad);
    return Quad{{v.x, v.y, v.z, v.w}};
}

__device__ __forceinline__ Quad load_quad(const signed char* values, int quad) {
    int v = __ldcs((const int*)values + quad);
    return Quad{{(float)(signed char)v, (float)(signed char)(v >> 8), (float)(signed char)(v >> 16),
                 (float)(signed char)(v >> 24)}};
}

__device__ __forceinline__ unsigned sum_of_bytes(unsigned word) { return __dp4a(word, 0x01010101u, 0u); }

__device__ __forceinline__ unsigned prefix_sum(unsigned v, int lane) {
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
        unsigned below = __shfl_up_sync(FULL_WARP, v, offset);
        if (lane >= offset) v += below;
    }
    return v;
}

template <typename Value>
__device__ __forceinline__ float row_sum(const unsigned* distances, const Value* values, const float* x, int quad,
                                         int end, int lane) {
    float sum = 0.f;
    unsigned column = 0;
    for (; quad < end; quad += 32 * READS) {
        unsigned d[READS];
        Quad v[READS];
#pragma unroll
        for (int i = 0; i < READS; ++i) {
            int at = quad + i * 32 + lane;
            d[i] = at < end ? __ldcs(distances + at) : 0;
            v[i] = at < end ? load_quad(values, at) : Quad{{0.f, 0.f, 0.f, 0.f}};
        }
#pragma unroll
        for (int i = 0; i < READS; i += 2) {  // 32 lanes x 4 bytes x 255 fits 16 bits
            unsigned own = sum_of_bytes(d[i]) | sum_of_bytes(d[i + 1]) << 16;
            unsigned upto = prefix_sum(own, lane), before = upto - own, total = __shfl_sync(FULL_WARP, upto, 31);
            unsigned start[2] = {column + (before & 0xffff), column + (total & 0xffff) + (before >> 16)};
            column += (total & 0xffff) + (total >> 16);
#pragma unroll
            for (int h = 0; h < 2; ++h)
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    start[h] += d[i + h] >> (8 * j) & 0xff;
                    sum = fmaf(v[i + h].v[j], x[start[h]], sum);
                }
        }
    }
    return warp_sum(sum);
}

template <typename Value>
__device__ __forceinline__ void spmv_rows(const int* pointers, const unsigned* distances, const Value* values,
                                          const float* scales, const float* x, float* y, int m) {
    int lane = threadIdx.x % 32;
    for (int row = blockIdx.x * (BLOCK / 32) + threadIdx.x / 32; row < m; row += gridDim.x * (BLOCK / 32)) {
        float sum = row_sum(distances, values, x, pointers[row], pointers[row + 1], lane);
        if (lane == 0) y[row] = scales ? sum * scales[row] : sum;
    }
}

template <typename Value>
__device__ __forceinline__ void spmv_delta8(const int* pointers, const unsigned* distances, const Value* values,
                                            const float* scales, const float* x, float* y, int m, int k, int shared) {
    DYNAMIC_SHARED(float, xs);
    if (shared) {
        for (int i = threadIdx.x; i < k / 4; i += BLOCK) copy_async16(xs + 4 * i, x + 4 * i);
        for (int i = k / 4 * 4 + threadIdx.x; i < k; i += BLOCK) xs[i] = x[i];
        copy_async_commit();
        copy_async_wait<0>();
        __syncthreads();
        spmv_rows(pointers, distances, values, scales, xs, y, m);
    } else {
        spmv_rows(pointers, distances, values, scales, x, y, m);
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK, 1)
    spmv_delta8_fp32(const int* __restrict__ pointers, const unsigned* __restrict__ distances,
                     const float* __restrict__ values, const float* __restrict__ x, float* __restrict__ y, int m, int k,
                     int shared) {
    spmv_delta8(pointers, distances, values, nullptr, x, y, m, k, shared);
}

extern "C" __global__ void __launch_bounds__(BLOCK, 1)
    spmv_delta8_int8(const int* __restrict__ pointers, const unsigned* __restrict__ distances,
                     const signed char* __restrict__ values, const float* __restrict__ scales,
                     const float* __restrict__ x, float* __restrict__ y, int m, int k, int shared) {
    spmv_delta8(pointers, distances, values, scales, x, y, m, k, shared);
}
