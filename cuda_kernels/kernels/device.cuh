// Shared by the kernels: guarded vector loads, warp sums, and instructions that CUDA C++ has no name for.
// With CUDA_EMULATOR, the instructions come from emulator.h as plain functions on the CPU.
#pragma once

#ifdef CUDA_EMULATOR
#include "emulator.h"
#else

// Loads of data that is used once: "evict first", so that reused data (x, the columns of B) stays in the caches.
__device__ __forceinline__ float4 load_once(const float4* p) { return __ldcs(p); }
__device__ __forceinline__ int4 load_once(const int4* p) { return __ldcs(p); }
__device__ __forceinline__ float4 load_vector(const float4* p) { return *p; }
__device__ __forceinline__ int4 load_vector(const int4* p) { return *p; }

#define DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]

// Copy 16 bytes from global to shared memory without passing through registers (sm_80 on; a plain copy before).
__device__ __forceinline__ void copy_async16(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
    unsigned address = (unsigned)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
#else
    *(int4*)shared = *(const int4*)global;
#endif
}

__device__ __forceinline__ void copy_async_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Wait until at most PENDING of this thread's committed groups are still in flight.
template <int PENDING>
__device__ __forceinline__ void copy_async_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// Four 8x8 matrices of 16-bit words (here: 8 rows of 16 bytes) from shared memory; lane i gives the address of row i.
__device__ __forceinline__ void load_matrix_x4(unsigned (&r)[4], const void* row) {
    unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

__device__ __forceinline__ void mma_8x8x16(int& c0, int& c1, unsigned a, unsigned b) {
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
                 : "+r"(c0), "+r"(c1)
                 : "r"(a), "r"(b));
}

// c (16x8, int32) += a (16x32, int8) * b (32x8, int8) on the tensor cores. sm_75 knows only the 8x8x16 form,
// whose fragments are exactly the quarters of this one.
__device__ __forceinline__ void mma_16x8x32(int (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    mma_8x8x16(c[0], c[1], a[0], b[0]);
    mma_8x8x16(c[2], c[3], a[1], b[0]);
    mma_8x8x16(c[0], c[1], a[2], b[1]);
    mma_8x8x16(c[2], c[3], a[3], b[1]);
#endif
}
#endif

constexpr unsigned FULL_WARP = 0xffffffffu;

// Four floats of a row of `size`, starting at column k; zeros past its end. `aligned`: k is a multiple of 4 and the row
// starts on a 16-byte boundary, so that one vector load is enough.
__device__ __forceinline__ float4 load4(const float* row, int k, int size, bool aligned) {
    if (aligned && k + 4 <= size) return load_vector((const float4*)(row + k));
    float4 v = make_float4(0.f, 0.f, 0.f, 0.f);
    if (k < size) v.x = row[k];
    if (k + 1 < size) v.y = row[k + 1];
    if (k + 2 < size) v.z = row[k + 2];
    if (k + 3 < size) v.w = row[k + 3];
    return v;
}

// The same for 16 signed bytes.
__device__ __forceinline__ int4 load16(const signed char* row, int k, int size, bool aligned) {
    if (aligned && k + 16 <= size) return load_vector((const int4*)(row + k));
    unsigned long long half[2] = {0, 0};
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll 1  // rarely taken: kept small for the sake of the loop around it
        for (int i = 0; i < 8; ++i)
            if (k + h * 8 + i < size) half[h] |= (unsigned long long)(unsigned char)row[k + h * 8 + i] << (i * 8);
    return make_int4((int)half[0], (int)(half[0] >> 32), (int)half[1], (int)(half[1] >> 32));
}

__device__ __forceinline__ int4 load16_once(const signed char* row, int k, int size, bool aligned) {
    if (aligned && k + 16 <= size) return load_once((const int4*)(row + k));
    return load16(row, k, size, false);
}

__device__ __forceinline__ float dot4(float4 a, float4 b, float sum) {
    return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(FULL_WARP, v, offset);
    return v;
}

// For blocks that each hold a part of the same output tile: true in every thread of the block that arrives last, which
// may then read the other blocks' parts. The ticket is left at zero for the next launch. One thread's fences serve the
// whole block: its threads' writes before the first barrier come before the ticket, and their reads after the second
// barrier come after it. arrived: in shared memory, free from the first barrier on.
__device__ __forceinline__ bool last_block_of_tile(int* ticket, int blocks, int* arrived) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        *arrived = atomicAdd(ticket, 1);
        __threadfence();
        if (*arrived == blocks - 1) *ticket = 0;
    }
    __syncthreads();
    return *arrived == blocks - 1;
}
