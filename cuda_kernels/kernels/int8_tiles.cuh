// The main loop of the INT8 products on the tensor cores, for tiles of any shape: a block computes BM x BN sums, a warp
// WM x WN of them. Shared memory holds STAGES tiles of 64 k; one is used while the others are being loaded. The order of
// the 16-byte pieces of a row depends on the row, so that the eight rows of an ldmatrix are in different banks.
#pragma once
#include "device.cuh"

constexpr int DEPTH = 64, PIECES = DEPTH / 16;

// The shared memory of `product`, declared in the kernel: the emulator cannot place that of a template.
#define TILE_MEMORY(BM, BN, STAGES) __shared__ __align__(16) signed char shared[STAGES * (BM + BN) * DEPTH]

__device__ __forceinline__ int swizzled(int row, int piece) { return row * DEPTH + (piece ^ (row / 2 & 3)) * 16; }

// Rows of a matrix with k contiguous; zeros past its ends. `stage` loads the tile at `at` and moves on to the next one.
template <int ROWS, int THREADS>
struct MatrixRows {
    const signed char* from;
    int row0, rows, k, at;

    __device__ void stage(signed char* to) {
        bool aligned = k % 16 == 0;
#pragma unroll
        for (int i = 0; i < (ROWS * PIECES + THREADS - 1) / THREADS; ++i) {
            int mine = i * THREADS + threadIdx.x, row = mine / PIECES, piece = mine % PIECES;
            if (ROWS * PIECES % THREADS && mine >= ROWS * PIECES) break;
            const signed char* source = from + (size_t)(row0 + row) * k;
            bool inside = row0 + row < rows;
            if (inside && aligned && at + piece * 16 + 16 <= k)
                copy_async16(to + swizzled(row, piece), source + at + piece * 16);
            else
                *(int4*)(to + swizzled(row, piece)) = load16(source, at + piece * 16, inside ? k : 0, false);
        }
        at += DEPTH;
    }
};

template <int BM, int WM, int WN>
__device__ __forceinline__ void multiply_tile(int (&sum)[WM / 16][WN / 8][4], const signed char* xs, int warp, int lane) {
    const signed char* ws = xs + BM * DEPTH;
    int row = warp % (BM / WM) * WM, col = warp / (BM / WM) * WN;
#pragma unroll
    for (int step = 0; step < DEPTH / 32; ++step) {
        unsigned a[WM / 16][4], b[WN / 8][2];
#pragma unroll
        for (int i = 0; i < WM / 16; ++i)  // rows 0-7 and 8-15 of the first 16 k, then of the second
            load_matrix_x4(a[i], xs + swizzled(row + i * 16 + lane % 16, step * 2 + lane / 16));
#pragma unroll
        for (int j = 0; j < WN / 8; j += 2) {  // both halves of k for 8 channels, then for the next 8
            unsigned r[4];
            load_matrix_x4(r, ws + swizzled(col + j * 8 + lane % 8 + lane / 16 * 8, step * 2 + lane / 8 % 2));
            b[j][0] = r[0], b[j][1] = r[1], b[j + 1][0] = r[2], b[j + 1][1] = r[3];
        }
#pragma unroll
        for (int i = 0; i < WM / 16; ++i)
#pragma unroll
            for (int j = 0; j < WN / 8; ++j) mma_16x8x32(sum[i][j], a[i], b[j]);
    }
}

// Adds the products of `tiles` tiles to sum. Both operands begin where the block's share of k begins.
template <int BM, int BN, int WM, int WN, int STAGES, class X, class W>
__device__ __forceinline__ void multiply(int (&sum)[WM / 16][WN / 8][4], signed char* shared, X& x, W& w, int tiles) {
    constexpr int STAGE = (BM + BN) * DEPTH;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int t = 0; t < STAGES - 1; ++t) {
        if (t < tiles) {
            x.stage(shared + t * STAGE);
            w.stage(shared + t * STAGE + BM * DEPTH);
        }
        copy_async_commit();
    }
    for (int t = 0, now = 0; t < tiles; ++t) {
        copy_async_wait<STAGES - 2>();
        __syncthreads();
        int ahead = t + STAGES - 1, free = now == 0 ? STAGES - 1 : now - 1;
        if (ahead < tiles) {
            x.stage(shared + free * STAGE);
            w.stage(shared + free * STAGE + BM * DEPTH);
        }
        copy_async_commit();  // also when empty, so that the count of groups in flight stays right
        multiply_tile<BM, WM, WN>(sum, shared + now * STAGE, warp, lane);
        now = now == STAGES - 1 ? 0 : now + 1;
    }
}

// Where k is split: each block stores its sums as its threads hold them, and the last one to arrive adds the others' to
// its own. True in every thread of the block that holds the whole sums. Integer sums do not depend on the order.
template <int A, int B, int THREADS>
__device__ __forceinline__ bool combine(int (&sum)[A][B][4], int* parts, int* tickets, int tile, int split, int splits,
                                        int* shared) {
    if (splits == 1) return true;
    int* first = parts + (size_t)tile * splits * (A * B * 4 * THREADS) + threadIdx.x;
#pragma unroll
    for (int i = 0; i < A * B * 4; ++i) first[((size_t)split * A * B * 4 + i) * THREADS] = sum[i / 4 / B][i / 4 % B][i % 4];
    if (!last_block_of_tile(tickets + tile, splits, shared)) return false;
    for (int s = 0; s < splits; ++s) {
        if (s == split) continue;
#pragma unroll
        for (int i = 0; i < A * B * 4; ++i)
            sum[i / 4 / B][i / 4 % B][i % 4] += __ldcg(first + ((size_t)s * A * B * 4 + i) * THREADS);
    }
    return true;
}

// A whole block: its share of k, the sum over the splits, and `finish(row, col, sum of col, sum of col + 1)` for each
// pair of outputs. Blocks: columns, rows, splits. X and W stage BM and BN rows, from k = 0 on.
template <int BM, int BN, int WM, int WN, int STAGES, class X, class W, class Finish>
__device__ __forceinline__ void product(signed char* shared, X x, W w, int k, int* parts, int* tickets, Finish finish) {
    constexpr int THREADS = BM / WM * (BN / WN) * 32;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, splits = gridDim.z, split = blockIdx.z;
    int chunks = (k + DEPTH - 1) / DEPTH;
    int begin = (int)((long long)chunks * split / splits), end = (int)((long long)chunks * (split + 1) / splits);
    x.at = w.at = begin * DEPTH;
    int sum[WM / 16][WN / 8][4] = {};
    multiply<BM, BN, WM, WN, STAGES>(sum, shared, x, w, end - begin);
    int tile = blockIdx.y * gridDim.x + blockIdx.x;
    if (!combine<WM / 16, WN / 8, THREADS>(sum, parts, tickets, tile, split, splits, (int*)shared)) return;
    int row0 = blockIdx.y * BM + warp % (BM / WM) * WM + lane / 4;
    int col0 = blockIdx.x * BN + warp / (BM / WM) * WN + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < WM / 16; ++i)
#pragma unroll
        for (int j = 0; j < WN / 8; ++j)
#pragma unroll
            for (int q = 0; q < 4; q += 2) finish(row0 + i * 16 + q / 2 * 8, col0 + j * 8, sum[i][j][q], sum[i][j][q + 1]);
}
