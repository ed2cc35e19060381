// Step 6: Hopper's own path (sm_90a). W lies in memory as the tensor cores read it (see dense.pack_tiles), so that one bulk
// copy by the copy engine brings a tile, and completes on a barrier; X comes by asynchronous copies of 16 bytes, to the
// same layout. A warpgroup of 4 warps multiplies 64 x 128 outputs straight from shared memory; four stages.
//
// This kernel was compiled and emulated, but never run on a GPU. It is used only after a check against gemm_int8_mma on
// the machine itself (hopper.py), and a wait that does not end is given up, which leaves a wrong result, not a hang.
#include "epilogue.cuh"

constexpr int HP_THREADS = 256;

#if defined(CUDA_EMULATOR) || defined(__CUDA_ARCH_FEAT_SM90_ALL)  // elsewhere the kernel is empty
#define HOPPER
constexpr int HP_TILE = 128, HP_DEPTH = 128, HP_STAGES = 4, HP_BYTES = HP_TILE * HP_DEPTH;
constexpr int CORE = 128, ALONG_K = HP_TILE / 8 * CORE, ALONG_ROWS = CORE;  // a core matrix, and from one to the next
#endif

#if defined(HOPPER) && !defined(CUDA_EMULATOR)
__device__ __forceinline__ unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

__device__ __forceinline__ void barrier_init(unsigned long long* barrier) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Tells the barrier how many bytes will arrive, and starts to copy them.
__device__ __forceinline__ void copy_bulk(void* to, const void* from, int bytes, unsigned long long* barrier) {
    unsigned at = shared_address(barrier);
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(to)),
                 "l"(from), "r"(bytes), "r"(at)
                 : "memory");
}

// Waits for the barrier's phase of this parity; false if it does not end.
__device__ __forceinline__ bool barrier_wait(unsigned long long* barrier, int parity) {
    for (int tries = 0; tries < 1 << 16; ++tries) {
        unsigned done;
        asm volatile(
            "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
            : "=r"(done)
            : "r"(shared_address(barrier)), "r"(parity)
            : "memory");
        if (done) return true;
    }
    return false;
}

__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }

// A matrix in shared memory without swizzling: address, and distances of core matrices along k and along the rows.
__device__ __forceinline__ unsigned long long matrix_descriptor(const void* p) {
    return (unsigned long long)(shared_address(p) >> 4 & 0x3fff) | (unsigned long long)(ALONG_K >> 4) << 16 |
           (unsigned long long)(ALONG_ROWS >> 4) << 32;
}

// c (64 x 128, int32) += a (64 x 32, int8) * b (32 x 128, int8), for the 128 threads of a warpgroup.
__device__ __forceinline__ void wgmma_64x128x32(int (&c)[16][4], const signed char* a, const signed char* b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "%64, %65, 1;"
        : "+r"(c[0][0]), "+r"(c[0][1]), "+r"(c[0][2]), "+r"(c[0][3]), "+r"(c[1][0]), "+r"(c[1][1]), "+r"(c[1][2]), "+r"(c[1][3]),
          "+r"(c[2][0]), "+r"(c[2][1]), "+r"(c[2][2]), "+r"(c[2][3]), "+r"(c[3][0]), "+r"(c[3][1]), "+r"(c[3][2]), "+r"(c[3][3]),
          "+r"(c[4][0]), "+r"(c[4][1]), "+r"(c[4][2]), "+r"(c[4][3]), "+r"(c[5][0]), "+r"(c[5][1]), "+r"(c[5][2]), "+r"(c[5][3]),
          "+r"(c[6][0]), "+r"(c[6][1]), "+r"(c[6][2]), "+r"(c[6][3]), "+r"(c[7][0]), "+r"(c[7][1]), "+r"(c[7][2]), "+r"(c[7][3]),
          "+r"(c[8][0]), "+r"(c[8][1]), "+r"(c[8][2]), "+r"(c[8][3]), "+r"(c[9][0]), "+r"(c[9][1]), "+r"(c[9][2]), "+r"(c[9][3]),
          "+r"(c[10][0]), "+r"(c[10][1]), "+r"(c[10][2]), "+r"(c[10][3]), "+r"(c[11][0]), "+r"(c[11][1]), "+r"(c[11][2]), "+r"(c[11][3]),
          "+r"(c[12][0]), "+r"(c[12][1]), "+r"(c[12][2]), "+r"(c[12][3]), "+r"(c[13][0]), "+r"(c[13][1]), "+r"(c[13][2]), "+r"(c[13][3]),
          "+r"(c[14][0]), "+r"(c[14][1]), "+r"(c[14][2]), "+r"(c[14][3]), "+r"(c[15][0]), "+r"(c[15][1]), "+r"(c[15][2]), "+r"(c[15][3])
        : "l"(matrix_descriptor(a)), "l"(matrix_descriptor(b)));
}
#endif

#ifdef HOPPER
// 128 rows of X and 128 bytes of k, as core matrices. Eight neighbouring lanes fill one, four of them a warp's 64 bytes.
__device__ __forceinline__ void stage_x(signed char* to, const signed char* x, int row0, int m, int k, int k0) {
#pragma unroll
    for (int i = 0; i < HP_BYTES / 16 / HP_THREADS; ++i) {
        int at = i * HP_THREADS + threadIdx.x, group = at / 8 / 8, piece = at / 8 % 8, row = group * 8 + at % 8;
        signed char* target = to + piece * ALONG_K + group * ALONG_ROWS + at % 8 * 16;
        const signed char* source = x + (size_t)(row0 + row) * k;
        bool inside = row0 + row < m;
        if (inside && k % 16 == 0 && k0 + piece * 16 + 16 <= k)
            copy_async16(target, source + k0 + piece * 16);
        else
            *(int4*)target = load16(source, k0 + piece * 16, inside ? k : 0, false);
    }
}
#endif

extern "C" __global__ void __launch_bounds__(HP_THREADS, 1)
    gemm_int8_wgmma(const signed char* __restrict__ x, const signed char* __restrict__ packed, EPILOGUE_ARGUMENTS, int m,
                    int n, int k) {
#ifdef HOPPER
    DYNAMIC_SHARED(signed char, shared);
    signed char *xs = shared, *ws = shared + HP_STAGES * HP_BYTES;
    unsigned long long* arrived = (unsigned long long*)(shared + 2 * HP_STAGES * HP_BYTES);
    int row0 = blockIdx.y * HP_TILE, tiles = (k + HP_DEPTH - 1) / HP_DEPTH;
    const signed char* w = packed + (size_t)blockIdx.x * tiles * HP_BYTES;
    if (threadIdx.x == 0)
        for (int s = 0; s < HP_STAGES; ++s) barrier_init(arrived + s);  // the only thread that starts copies
    for (int t = 0; t < HP_STAGES - 1; ++t) {
        if (t < tiles) {
            if (threadIdx.x == 0) copy_bulk(ws + t * HP_BYTES, w + (size_t)t * HP_BYTES, HP_BYTES, arrived + t);
            stage_x(xs + t * HP_BYTES, x, row0, m, k, t * HP_DEPTH);
        }
        copy_async_commit();
    }
    __syncthreads();
    int sum[16][4] = {};
    int half = threadIdx.x / 128 * 8 * ALONG_ROWS;  // the warpgroup's 64 rows
    for (int t = 0; t < tiles; ++t) {
        int now = t % HP_STAGES;
        copy_async_wait<HP_STAGES - 2>();
        fence_async_proxy();  // X was written as ordinary memory; the tensor cores read by another way
        bool is_there = barrier_wait(arrived + now, t / HP_STAGES & 1);
        __syncthreads();
        int ahead = t + HP_STAGES - 1, free = ahead % HP_STAGES;
        if (ahead < tiles) {
            if (threadIdx.x == 0)
                copy_bulk(ws + free * HP_BYTES, w + (size_t)ahead * HP_BYTES, HP_BYTES, arrived + free);
            stage_x(xs + free * HP_BYTES, x, row0, m, k, ahead * HP_DEPTH);
        }
        copy_async_commit();
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < HP_DEPTH / 32; ++step)
            wgmma_64x128x32(sum, xs + now * HP_BYTES + half + step * 2 * ALONG_K, ws + now * HP_BYTES + step * 2 * ALONG_K);
        wgmma_commit();
        wgmma_wait();
        if (!is_there) sum[0][0] ^= 1 << 30;  // a wrong result, which the check sees
    }
    int lane = threadIdx.x % 32, row = row0 + threadIdx.x / 32 * 16 + lane / 4, col = blockIdx.x * HP_TILE + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < 16; ++j)
#pragma unroll
        for (int q = 0; q < 4; ++q)
            if (row + q / 2 * 8 < m && col + j * 8 + q % 2 < n)
                finish(EPILOGUE, row + q / 2 * 8, col + j * 8 + q % 2, n, sum[j][q]);
#endif
}
