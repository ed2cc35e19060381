// C = A B in FP32. A is (m, k) and C (m, n), row-major; B is (k, n) row-major, except in the split-K kernel.
#include "device.cuh"

#ifndef TILE
#define TILE 16
#endif

// Step 1: one thread per output. Every operation reads its operands from the caches.
extern "C" __global__ void gemm_naive(const float* __restrict__ a, const float* __restrict__ b, float* __restrict__ c,
                                      int m, int n, int k) {
    int row = blockIdx.y * blockDim.y + threadIdx.y, col = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= m || col >= n) return;
    float sum = 0.f;
    for (int i = 0; i < k; ++i) sum = fmaf(a[(size_t)row * k + i], b[(size_t)i * n + col], sum);
    c[(size_t)row * n + col] = sum;
}

// Step 2, as published: TILE x TILE tiles of A and B in shared memory, so that global memory is read TILE times less.
// Each multiplication still needs two reads of shared memory, which are the bottleneck.
extern "C" __global__ void gemm_tiled(const float* __restrict__ a, const float* __restrict__ b, float* __restrict__ c,
                                      int m, int n, int k) {
    __shared__ float a_tile[TILE][TILE], b_tile[TILE][TILE];
    int tx = threadIdx.x, ty = threadIdx.y;
    int row = blockIdx.y * TILE + ty, col = blockIdx.x * TILE + tx;
    float sum = 0.f;
    for (int k0 = 0; k0 < k; k0 += TILE) {
        a_tile[ty][tx] = row < m && k0 + tx < k ? a[(size_t)row * k + k0 + tx] : 0.f;
        b_tile[ty][tx] = k0 + ty < k && col < n ? b[(size_t)(k0 + ty) * n + col] : 0.f;
        __syncthreads();
        for (int i = 0; i < TILE; ++i) sum = fmaf(a_tile[ty][i], b_tile[i][tx], sum);
        __syncthreads();
    }
    if (row < m && col < n) c[(size_t)row * n + col] = sum;
}

// Step 3: a block computes 128 x 128 outputs, a warp 64 x 32 of them, a thread 8 x 8, held in registers: 16 values
// from shared memory (four 16-byte reads) feed 64 multiply-adds. While a tile is used, the next one is on its way from
// global memory to registers; with two buffers in shared memory, one barrier per tile is enough.
constexpr int BM = 128, BN = 128, BK = 16, PAD = 4;

struct TileRegisters {
    float4 a[2], b[2];
};

__device__ __forceinline__ void fetch_tile(TileRegisters& t, const float* a, const float* b, int m, int n, int k,
                                           int row0, int col0, int k0) {
    int thread = threadIdx.x;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        int row = row0 + thread / 4 + 64 * h, depth = k0 + thread / 32 + 8 * h;
        t.a[h] = load4(a + (size_t)row * k, k0 + thread % 4 * 4, row < m ? k : 0, k % 4 == 0);
        t.b[h] = load4(b + (size_t)depth * n, col0 + thread % 32 * 4, depth < k ? n : 0, n % 4 == 0);
    }
}

// A is transposed on its way in, so that a thread's 4 rows are one 16-byte read.
__device__ __forceinline__ void keep_tile(const TileRegisters& t, float (*as)[BM + PAD], float (*bs)[BN]) {
    int thread = threadIdx.x, q = thread % 4 * 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        int row = thread / 4 + 64 * h;
        as[q][row] = t.a[h].x;
        as[q + 1][row] = t.a[h].y;
        as[q + 2][row] = t.a[h].z;
        as[q + 3][row] = t.a[h].w;
        *(float4*)&bs[thread / 32 + 8 * h][thread % 32 * 4] = t.b[h];
    }
}

__device__ __forceinline__ void spread(float* to, float4 v) {
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}

__device__ __forceinline__ void store4(float* row, int col, int n, const float* v) {
    if (n % 4 == 0 && col + 4 <= n) {
        *(float4*)(row + col) = make_float4(v[0], v[1], v[2], v[3]);
        return;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j)
        if (col + j < n) row[col + j] = v[j];
}

extern "C" __global__ void __launch_bounds__(256, 2)
    gemm_blocked(const float* __restrict__ a, const float* __restrict__ b, float* __restrict__ c, int m, int n, int k) {
    __shared__ __align__(16) float as[2][BK][BM + PAD];
    __shared__ __align__(16) float bs[2][BK][BN];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int row0 = blockIdx.y * BM, col0 = blockIdx.x * BN;
    // Two groups of 4 rows and of 4 columns per thread: neighbouring lanes read neighbouring addresses.
    int my_row = warp / 4 * 64 + lane / 4 * 4, my_col = warp % 4 * 32 + lane % 4 * 4;
    float sum[8][8] = {};
    TileRegisters next;
    fetch_tile(next, a, b, m, n, k, row0, col0, 0);
    keep_tile(next, as[0], bs[0]);
    __syncthreads();
    for (int k0 = 0, buffer = 0; k0 < k; k0 += BK, buffer ^= 1) {
        bool more = k0 + BK < k;
        if (more) fetch_tile(next, a, b, m, n, k, row0, col0, k0 + BK);
#pragma unroll
        for (int i = 0; i < BK; ++i) {
            float av[8], bv[8];
            spread(av, *(const float4*)&as[buffer][i][my_row]);
            spread(av + 4, *(const float4*)&as[buffer][i][my_row + 32]);
            spread(bv, *(const float4*)&bs[buffer][i][my_col]);
            spread(bv + 4, *(const float4*)&bs[buffer][i][my_col + 16]);
#pragma unroll
            for (int r = 0; r < 8; ++r)
#pragma unroll
                for (int j = 0; j < 8; ++j) sum[r][j] = fmaf(av[r], bv[j], sum[r][j]);
        }
        if (more) keep_tile(next, as[buffer ^ 1], bs[buffer ^ 1]);
        __syncthreads();
    }
#pragma unroll
    for (int r = 0; r < 8; ++r) {
        int row = row0 + my_row + r % 4 + r / 4 * 32;
        if (row >= m) continue;
        store4(c + (size_t)row * n, col0 + my_col, n, sum[r]);
        store4(c + (size_t)row * n, col0 + my_col + 16, n, sum[r] + 4);
    }
}

// Step 4, for few columns (a fully connected layer with a small batch): nearly all bytes are those of A, so A goes
// straight from memory to registers, 16 bytes per lane, and each row is read once; the columns of B, here (n, k)
// row-major, are kept in shared memory. A lane holds 4 rows x 16 columns of sums over its share of k. Since there are
// few outputs, k is also split over blocks; the last block of a tile adds the parts in a fixed order, so results are
// bitwise reproducible.
constexpr int SK_ROWS = 4, SK_COLS = 16, SK_WARPS = 16, SK_DEPTH = 256, SK_TILE_ROWS = SK_ROWS * SK_WARPS;

__device__ __forceinline__ void stage_columns(float (*to)[SK_DEPTH], const float* b, int col0, int n, int k, int k0) {
    bool aligned = k % 4 == 0;
    for (int i = threadIdx.x; i < SK_COLS * SK_DEPTH / 4; i += SK_WARPS * 32) {
        int col = i / (SK_DEPTH / 4), depth = i % (SK_DEPTH / 4) * 4;
        const float* row = b + (size_t)(col0 + col) * k;
        bool inside = col0 + col < n;
        if (inside && aligned && k0 + depth + 4 <= k)
            copy_async16(&to[col][depth], row + k0 + depth);
        else
            *(float4*)&to[col][depth] = load4(row, k0 + depth, inside ? k : 0, false);
    }
    copy_async_commit();
}

__device__ __forceinline__ void fetch_rows(float4 (&v)[SK_ROWS], const float* const (&row)[SK_ROWS], int at, int k) {
    bool whole = k % 4 == 0 && at + 4 <= k;  // one test for all loads
#pragma unroll
    for (int r = 0; r < SK_ROWS; ++r)
        v[r] = whole ? load_once((const float4*)(row[r] + at)) : make_float4(0.f, 0.f, 0.f, 0.f);
    if (whole || at >= k) return;
#pragma unroll
    for (int r = 0; r < SK_ROWS; ++r) v[r] = load4(row[r], at, k, false);
}

// Adds 64 values over 32 lanes with 62 shuffles: each step sends half of the remaining values to the partner. Lane i
// ends with the totals of values 2i and 2i + 1 in v[0] and v[1]. (A template makes indices compile-time constants.)
template <int HALF>
__device__ __forceinline__ void warp_sum_64(float (&v)[64], int lane) {
    bool upper = lane & HALF / 2;
#pragma unroll
    for (int i = 0; i < HALF; ++i) {
        float keep = upper ? v[i + HALF] : v[i], send = upper ? v[i] : v[i + HALF];
        v[i] = keep + __shfl_xor_sync(FULL_WARP, send, HALF / 2);
    }
    if constexpr (HALF > 2) warp_sum_64<HALF / 2>(v, lane);
}

extern "C" __global__ void __launch_bounds__(SK_WARPS * 32, 1)
    gemm_split_k(const float* __restrict__ a, const float* __restrict__ b, float* __restrict__ c, float* parts,
                 int* tickets, int m, int n, int k) {
    __shared__ __align__(16) float bs[2][SK_COLS][SK_DEPTH];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int row0 = blockIdx.x * SK_TILE_ROWS, col0 = blockIdx.z * SK_COLS, splits = gridDim.y;
    int chunks = (k + SK_DEPTH - 1) / SK_DEPTH;
    int chunk = (int)((long long)chunks * blockIdx.y / splits), end = (int)((long long)chunks * (blockIdx.y + 1) / splits);
    const float* row[SK_ROWS];
    float4 now[SK_ROWS], next[SK_ROWS];
    float sum[SK_ROWS * SK_COLS] = {};
#pragma unroll
    for (int r = 0; r < SK_ROWS; ++r) row[r] = a + (size_t)min(row0 + warp * SK_ROWS + r, m - 1) * k;
    fetch_rows(next, row, chunk * SK_DEPTH + lane * 4, k);
    stage_columns(bs[0], b, col0, n, k, chunk * SK_DEPTH);
    for (int buffer = 0; chunk < end; ++chunk, buffer ^= 1) {
        copy_async_wait<0>();
        __syncthreads();
        if (chunk + 1 < end) stage_columns(bs[buffer ^ 1], b, col0, n, k, (chunk + 1) * SK_DEPTH);
#pragma unroll
        for (int depth = 0; depth < SK_DEPTH; depth += 128) {
#pragma unroll
            for (int r = 0; r < SK_ROWS; ++r) now[r] = next[r];
            fetch_rows(next, row, chunk * SK_DEPTH + depth + 128 + lane * 4, k);
#pragma unroll
            for (int j = 0; j < SK_COLS; ++j) {
                float4 bv = *(const float4*)&bs[buffer][j][depth + lane * 4];
#pragma unroll
                for (int r = 0; r < SK_ROWS; ++r) sum[r * SK_COLS + j] = dot4(now[r], bv, sum[r * SK_COLS + j]);
            }
        }
    }
    warp_sum_64<32>(sum, lane);
    int out_row = row0 + warp * SK_ROWS + 2 * lane / SK_COLS, out_col = col0 + 2 * lane % SK_COLS;
    float* out = splits == 1 ? c : parts + (size_t)blockIdx.y * m * n;
#pragma unroll
    for (int i = 0; i < 2; ++i)
        if (out_row < m && out_col + i < n) out[(size_t)out_row * n + out_col + i] = sum[i];
    __shared__ int arrived;
    if (splits == 1 || !last_block_of_tile(tickets + blockIdx.z * gridDim.x + blockIdx.x, splits, &arrived)) return;
    for (int i = threadIdx.x; i < SK_TILE_ROWS * SK_COLS; i += SK_WARPS * 32) {
        int r = row0 + i / SK_COLS, j = col0 + i % SK_COLS;
        if (r >= m || j >= n) continue;
        float total = 0.f;
        for (int s = 0; s < splits; ++s) total += __ldcg(parts + ((size_t)s * m + r) * n + j);
        c[(size_t)r * n + j] = total;
    }
}
