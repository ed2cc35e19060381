// y = A x in FP32. A is (m, k), row-major. Two operations per 4 bytes of A: the time is that of reading A once.
#include "device.cuh"

// Step 1: one thread per row. Neighbouring threads read addresses a whole row apart: of each 32-byte sector that memory
// delivers, 4 bytes are used before it is evicted.
extern "C" __global__ void gemv_thread_per_row(const float* __restrict__ a, const float* __restrict__ x,
                                               float* __restrict__ y, int m, int k) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= m) return;
    float sum = 0.f;
    for (int i = 0; i < k; ++i) sum = fmaf(a[(size_t)row * k + i], x[i], sum);
    y[row] = sum;
}

// Step 2: one warp per row. A load takes 32 neighbouring floats, so every byte delivered is used; the lanes' sums are
// added by shuffles. Each thread still has only one 4-byte load in flight.
extern "C" __global__ void gemv_warp_per_row(const float* __restrict__ a, const float* __restrict__ x,
                                             float* __restrict__ y, int m, int k) {
    int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= m) return;
    float sum = 0.f;
    for (int i = lane; i < k; i += 32) sum = fmaf(a[(size_t)row * k + i], x[i], sum);
    sum = warp_sum(sum);
    if (lane == 0) y[row] = sum;
}

// Step 3: one block per group of 4 rows. 16-byte loads, eight of them in flight in each thread before the first is used
// (memory latency is ~700 ns: bandwidth x latency is 25 KB per multiprocessor), and each x is fetched from the cache
// once for 4 rows instead of once per row.
constexpr int ROWS = 4, UNROLL = 2, THREADS = 128;

extern "C" __global__ void __launch_bounds__(THREADS)
    gemv_vector4(const float* __restrict__ a, const float* __restrict__ x, float* __restrict__ y, int m, int k) {
    __shared__ float partial[ROWS][THREADS / 32];
    int first = blockIdx.x * ROWS, thread = threadIdx.x;
    const float* row[ROWS];
    float sum[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        row[r] = a + (size_t)min(first + r, m - 1) * k;
        sum[r] = 0.f;
    }
    bool aligned = k % 4 == 0;
    int quads = (k + 3) / 4, q = thread;
    for (; aligned && q + (UNROLL - 1) * THREADS < quads; q += UNROLL * THREADS) {
        float4 v[UNROLL][ROWS], xs[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
#pragma unroll
            for (int r = 0; r < ROWS; ++r) v[u][r] = load_once((const float4*)row[r] + q + u * THREADS);
            xs[u] = load_vector((const float4*)x + q + u * THREADS);
        }
#pragma unroll
        for (int u = 0; u < UNROLL; ++u)
#pragma unroll
            for (int r = 0; r < ROWS; ++r) sum[r] = dot4(v[u][r], xs[u], sum[r]);
    }
    for (; q < quads; q += THREADS) {
        float4 xs = load4(x, q * 4, k, aligned);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) sum[r] = dot4(load4(row[r], q * 4, k, aligned), xs, sum[r]);
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        float total = warp_sum(sum[r]);
        if (thread % 32 == 0) partial[r][thread / 32] = total;
    }
    __syncthreads();
    if (thread < ROWS && first + thread < m) {
        float total = 0.f;
        for (int w = 0; w < THREADS / 32; ++w) total += partial[thread][w];
        y[first + thread] = total;
    }
}
