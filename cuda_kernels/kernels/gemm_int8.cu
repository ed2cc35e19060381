// An INT8 layer: out = epilogue(X W^T), summed exactly in int32. X is (m, k), one row per image or pixel; W is (n, k),
// one row per output channel; out is (m, n). Both have k contiguous: the instructions take 4 or 32 k at once.
#include "epilogue.cuh"
#include "int8_tiles.cuh"

#ifndef TILE
#define TILE 16
#endif

// Step 1, as published: the tiled FP32 kernel with bytes. It reads a quarter of the bytes, but each product is still
// one instruction, after two conversions from bytes: hence a speedup of 1.36x although 4x is the limit.
extern "C" __global__ void gemm_int8_tiled(const signed char* __restrict__ x, const signed char* __restrict__ w,
                                           EPILOGUE_ARGUMENTS, int m, int n, int k) {
    __shared__ signed char x_tile[TILE][TILE], w_tile[TILE][TILE + 1];
    int tx = threadIdx.x, ty = threadIdx.y;
    int row = blockIdx.y * TILE + ty, col = blockIdx.x * TILE + tx, w_row = blockIdx.x * TILE + ty;
    int sum = 0;
    for (int k0 = 0; k0 < k; k0 += TILE) {
        x_tile[ty][tx] = row < m && k0 + tx < k ? x[(size_t)row * k + k0 + tx] : 0;
        w_tile[ty][tx] = w_row < n && k0 + tx < k ? w[(size_t)w_row * k + k0 + tx] : 0;
        __syncthreads();
        for (int i = 0; i < TILE; ++i) sum += x_tile[ty][i] * w_tile[tx][i];
        __syncthreads();
    }
    if (row < m && col < n) finish(EPILOGUE, row, col, n, sum);
}

// Step 2: dp4a multiplies four pairs of bytes and adds them up in one instruction. 64 x 64 outputs per block, 4 x 4 per
// thread; tiles are stored as words of 4 k, transposed, so that a thread's 4 rows are one 16-byte read.
constexpr int DP_TILE = 64, DP_WORDS = 8;

extern "C" __global__ void __launch_bounds__(256)
    gemm_int8_dp4a(const signed char* __restrict__ x, const signed char* __restrict__ w, EPILOGUE_ARGUMENTS, int m,
                   int n, int k) {
    __shared__ __align__(16) int tile[2][DP_WORDS][DP_TILE + 4];
    int thread = threadIdx.x, row0 = blockIdx.y * DP_TILE, col0 = blockIdx.x * DP_TILE;
    // The first 128 threads fetch X, the others W: 64 rows of 32 bytes each, 16 bytes per thread.
    int which = thread / 128, mine = thread % 128 / 2, word = thread % 2 * 4;
    int source_row = (which ? col0 : row0) + mine;
    const signed char* source = (which ? w : x) + (size_t)source_row * k;
    int source_size = source_row < (which ? n : m) ? k : 0;
    int my_row = thread / 16 * 4, my_col = thread % 16 * 4;
    int sum[4][4] = {};
    for (int k0 = 0; k0 < k; k0 += DP_WORDS * 4) {
        int4 v = load16(source, k0 + word * 4, source_size, k % 16 == 0);
        tile[which][word][mine] = v.x;
        tile[which][word + 1][mine] = v.y;
        tile[which][word + 2][mine] = v.z;
        tile[which][word + 3][mine] = v.w;
        __syncthreads();
#pragma unroll
        for (int i = 0; i < DP_WORDS; ++i) {
            int4 xv = *(const int4*)&tile[0][i][my_row], wv = *(const int4*)&tile[1][i][my_col];
            int xs[4] = {xv.x, xv.y, xv.z, xv.w}, ws[4] = {wv.x, wv.y, wv.z, wv.w};
#pragma unroll
            for (int r = 0; r < 4; ++r)
#pragma unroll
                for (int j = 0; j < 4; ++j) sum[r][j] = __dp4a(xs[r], ws[j], sum[r][j]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (row0 + my_row + r < m && col0 + my_col + j < n)
                finish(EPILOGUE, row0 + my_row + r, col0 + my_col + j, n, sum[r][j]);
}

// Step 3: the tensor cores. A block computes 128 x 128 outputs with 4 warps of 64 x 64: for one step of 32 k, a warp
// reads 4 KB of shared memory for 32 matrix instructions.
constexpr int MM_THREADS = 128;

template <int BM, int BN, int WM, int WN, int STAGES>
__device__ __forceinline__ void tiles(signed char* shared, const signed char* x, const signed char* w, Epilogue epilogue,
                                      int* parts, int* tickets, int m, int n, int k) {
    MatrixRows<BM, MM_THREADS> xs{x, (int)blockIdx.y * BM, m, k, 0};
    MatrixRows<BN, MM_THREADS> ws{w, (int)blockIdx.x * BN, n, k, 0};
    product<BM, BN, WM, WN, STAGES>(shared, xs, ws, k, parts, tickets, [&](int row, int col, int first, int second) {
        if (row < m && col < n) finish(epilogue, row, col, n, first);
        if (row < m && col + 1 < n) finish(epilogue, row, col + 1, n, second);
    });
}

extern "C" __global__ void __launch_bounds__(MM_THREADS, 2)
    gemm_int8_mma(const signed char* __restrict__ x, const signed char* __restrict__ w, EPILOGUE_ARGUMENTS, int m,
                  int n, int k) {
    TILE_MEMORY(128, 128, 3);
    tiles<128, 128, 64, 64, 3>(shared, x, w, EPILOGUE, nullptr, nullptr, m, n, k);
}

// Step 4, for at most 16 rows of X at a time: bound by the bytes of W. A warp takes 16 channels; W goes from memory to
// registers in 16-byte loads, eight per thread ahead of use, and straight into the matrix instruction. A sum does not
// depend on the order of k, so each lane's 16 bytes serve as four of its 4-byte pieces, as long as X, which is kept in
// shared memory, is cut the same way. k is split over blocks; integer sums do not depend on the order.
constexpr int SN_WARPS = 8, SN_DEPTH = 256, SN_ROWS = 16, SN_PITCH = SN_DEPTH + 64, SN_STEPS = SN_DEPTH / 64;

__device__ __forceinline__ void stage_inputs(signed char (*to)[SN_PITCH], const signed char* x, int row0, int m, int k,
                                             int k0) {
    int row = threadIdx.x / 16, at = threadIdx.x % 16 * 16;
    const signed char* source = x + (size_t)(row0 + row) * k;
    bool inside = row0 + row < m;
    if (inside && k % 16 == 0 && k0 + at + 16 <= k)
        copy_async16(&to[row][at], source + k0 + at);
    else
        *(int4*)&to[row][at] = load16(source, k0 + at, inside ? k : 0, false);
    copy_async_commit();
}

__device__ __forceinline__ void fetch_weights(int4 (&v)[SN_STEPS][2], const signed char* low, const signed char* high,
                                              int k, int at) {
    if (k % 16 == 0 && at + SN_DEPTH - 48 <= k) {  // one test for all eight loads
#pragma unroll
        for (int s = 0; s < SN_STEPS; ++s) {
            v[s][0] = load_once((const int4*)(low + at + s * 64));
            v[s][1] = load_once((const int4*)(high + at + s * 64));
        }
        return;
    }
#pragma unroll
    for (int s = 0; s < SN_STEPS; ++s) {
        v[s][0] = load16_once(low, at + s * 64, k, k % 16 == 0);
        v[s][1] = load16_once(high, at + s * 64, k, k % 16 == 0);
    }
}

__device__ __forceinline__ void multiply_step(int (&sum)[4], int4 low, int4 high, int4 xv) {
    unsigned a0[4] = {(unsigned)low.x, (unsigned)high.x, (unsigned)low.y, (unsigned)high.y};
    unsigned a1[4] = {(unsigned)low.z, (unsigned)high.z, (unsigned)low.w, (unsigned)high.w};
    unsigned b0[2] = {(unsigned)xv.x, (unsigned)xv.y}, b1[2] = {(unsigned)xv.z, (unsigned)xv.w};
    mma_16x8x32(sum, a0, b0);
    mma_16x8x32(sum, a1, b1);
}

extern "C" __global__ void __launch_bounds__(SN_WARPS * 32, 2)
    gemm_int8_skinny(const signed char* __restrict__ x, const signed char* __restrict__ w, EPILOGUE_ARGUMENTS,
                     int* parts, int* tickets, int m, int n, int k) {
    __shared__ __align__(16) signed char xs[2][SN_ROWS][SN_PITCH];
    int lane = threadIdx.x % 32, group = lane / 4, piece = lane % 4 * 16;
    int col0 = blockIdx.x * SN_WARPS * 16, row0 = blockIdx.z * SN_ROWS, splits = gridDim.y;
    int channel = col0 + threadIdx.x / 32 * 16 + group;
    const signed char* low = w + (size_t)min(channel, n - 1) * k;
    const signed char* high = w + (size_t)min(channel + 8, n - 1) * k;
    int chunks = (k + SN_DEPTH - 1) / SN_DEPTH;
    int chunk = (int)((long long)chunks * blockIdx.y / splits), end = (int)((long long)chunks * (blockIdx.y + 1) / splits);
    int sum[2][4] = {};
    int4 now[SN_STEPS][2], next[SN_STEPS][2];
    fetch_weights(next, low, high, k, chunk * SN_DEPTH + piece);
    stage_inputs(xs[0], x, row0, m, k, chunk * SN_DEPTH);
    for (int buffer = 0; chunk < end; ++chunk, buffer ^= 1) {
#pragma unroll
        for (int s = 0; s < SN_STEPS; ++s) now[s][0] = next[s][0], now[s][1] = next[s][1];
        if (chunk + 1 < end) fetch_weights(next, low, high, k, (chunk + 1) * SN_DEPTH + piece);
        copy_async_wait<0>();
        __syncthreads();
        if (chunk + 1 < end) stage_inputs(xs[buffer ^ 1], x, row0, m, k, (chunk + 1) * SN_DEPTH);
#pragma unroll
        for (int s = 0; s < SN_STEPS; ++s)
#pragma unroll
            for (int j = 0; j < 2; ++j)
                multiply_step(sum[j], now[s][0], now[s][1], *(const int4*)&xs[buffer][j * 8 + group][s * 64 + piece]);
    }
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int q = 0; q < 4; ++q) {
            int row = row0 + j * 8 + lane % 4 * 2 + q % 2, col = channel + q / 2 * 8;
            if (row >= m || col >= n) continue;
            if (splits == 1)
                finish(EPILOGUE, row, col, n, sum[j][q]);
            else
                parts[((size_t)blockIdx.y * m + row) * n + col] = sum[j][q];
        }
    int* arrived = (int*)xs;
    if (splits == 1 || !last_block_of_tile(tickets + blockIdx.z * gridDim.x + blockIdx.x, splits, arrived)) return;
    for (int i = threadIdx.x; i < SN_ROWS * SN_WARPS * 16; i += SN_WARPS * 32) {
        int row = row0 + i / (SN_WARPS * 16), col = col0 + i % (SN_WARPS * 16);
        if (row >= m || col >= n) continue;
        int total = 0;
        for (int s = 0; s < splits; ++s) total += __ldcg(parts + ((size_t)s * m + row) * n + col);
        finish(EPILOGUE, row, col, n, total);
    }
}

// Step 5: tiles as small as the output asks for, and k split over blocks where there are fewer tiles than
// multiprocessors: a layer of 16 pixels has work for 8 of 132 of them otherwise.
#define TILE_ARGUMENTS                                                                                          \
    const signed char *__restrict__ x, const signed char *__restrict__ w, EPILOGUE_ARGUMENTS, int *parts,      \
        int *tickets, int m, int n, int k
#define TILES(BM, BN, WM, WN, STAGES)                                                                           \
    TILE_MEMORY(BM, BN, STAGES);                                                                               \
    tiles<BM, BN, WM, WN, STAGES>(shared, x, w, EPILOGUE, parts, tickets, m, n, k)

extern "C" __global__ void __launch_bounds__(MM_THREADS) gemm_int8_tiles_128x128(TILE_ARGUMENTS) {
    TILES(128, 128, 64, 64, 3);
}

extern "C" __global__ void __launch_bounds__(MM_THREADS) gemm_int8_tiles_128x32(TILE_ARGUMENTS) {
    TILES(128, 32, 32, 32, 4);
}

extern "C" __global__ void __launch_bounds__(MM_THREADS) gemm_int8_tiles_64x64(TILE_ARGUMENTS) {
    TILES(64, 64, 32, 32, 4);
}

extern "C" __global__ void __launch_bounds__(MM_THREADS) gemm_int8_tiles_64x16(TILE_ARGUMENTS) {
    TILES(64, 16, 16, 16, 4);
}

extern "C" __global__ void __launch_bounds__(MM_THREADS) gemm_int8_tiles_16x64(TILE_ARGUMENTS) {
    TILES(16, 64, 16, 16, 4);
}
