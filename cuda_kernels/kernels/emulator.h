// The CUDA thread model on one CPU core, for checking results where there is no GPU. Never for timing.
//
// Blocks run one after another; every thread of a block is a fiber (its own stack, switched by hand). A fiber runs
// until it meets a barrier, a shuffle or a matrix instruction; there it waits until its warp or block has arrived.
// The emulator is stricter than a GPU where it can be: vector accesses must be aligned, asynchronous copies land
// only when they are waited for, shared memory starts as NaN in every block, barriers that not all threads reach
// are an error, and fibers can run in reverse order, so that a missing barrier shows.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#define __global__ __attribute__((noinline))
#define __device__
#define __forceinline__ static inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// A named section, so that the whole of shared memory can be filled with NaN before each block.
#define __shared__ static __attribute__((section("cuda_shared")))
#define DYNAMIC_SHARED(type, name) type* name = (type*)emulator::dynamic_shared.data()

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
struct float4 {
    float x, y, z, w;
};
struct int4 {
    int x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
using std::max;
using std::min;

extern "C" char __start_cuda_shared[] __attribute__((weak));
extern "C" char __stop_cuda_shared[] __attribute__((weak));

namespace emulator {
enum State { READY, AT_WARP_BARRIER, AT_BLOCK_BARRIER, DONE };

struct Copy {
    void* to;
    const void* from;
    int group;
};

struct Warp {
    alignas(16) unsigned char slot[2][32][32];  // what each lane shows the others; two, used in turn
};

struct Thread {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    dim3 index;
    int lane, turn, groups;
    Warp* warp;
    State state;
    std::vector<Copy> copies;
};

constexpr size_t STACK = 128 << 10;
inline dim3 grid, block, block_index;
inline std::vector<std::unique_ptr<Thread>> threads;
inline std::vector<Warp> warps;
inline std::vector<double> dynamic_shared;
inline Thread* current = nullptr;
inline ucontext_t scheduler;
inline std::string error;
inline void (*body)(void*);
inline void* body_arguments;

inline void wait_as(State state) {
    current->state = state;
    swapcontext(&current->context, &scheduler);
}

inline void fail(const char* what) {
    if (error.empty()) error = what;
    wait_as(DONE);
}

inline void require_aligned(const void* p, size_t bytes) {
    if ((uintptr_t)p % bytes) fail("a vector access is not aligned to its size");
}

inline void enter() {
    body(body_arguments);
    wait_as(DONE);
}

// Shows `mine` to the warp and returns what all its lanes show, once all have arrived.
template <class T>
const T* exchange(const T& mine) {
    static_assert(sizeof(T) <= 32, "slots are 32 bytes");
    auto* slots = current->warp->slot[current->turn];
    memcpy(slots[current->lane], &mine, sizeof(T));
    current->turn ^= 1;
    wait_as(AT_WARP_BARRIER);
    static T seen[32];  // copied out at once: no fiber switch before the caller has read it
    for (int i = 0; i < 32; ++i) memcpy(&seen[i], slots[i], sizeof(T));
    return seen;
}

inline void prepare_thread(int i) {
    if ((int)threads.size() <= i) {
        threads.push_back(std::make_unique<Thread>());
        threads.back()->stack.reset(new char[STACK]);
    }
    Thread& t = *threads[i];
    t.index = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
    t.lane = i % 32, t.turn = 0, t.groups = 0, t.state = READY, t.warp = &warps[i / 32];
    t.copies.clear();
    getcontext(&t.context);
    t.context.uc_stack.ss_sp = t.stack.get();
    t.context.uc_stack.ss_size = STACK;
    t.context.uc_link = nullptr;
    makecontext(&t.context, enter, 0);
}

inline void run_ready(int count, bool reverse) {
    for (int i = 0; i < count && error.empty(); ++i) {
        current = threads[reverse ? count - 1 - i : i].get();
        if (current->state == READY) swapcontext(&scheduler, &current->context);
    }
}

// Lets every warp whose living lanes have all arrived go on; then, if all the block's have, the block.
inline bool release(int count) {
    bool released = false, all_at_block = true;
    for (int w = 0; w < count; w += 32) {
        int stop = min(count, w + 32), living = 0, arrived = 0;
        for (int i = w; i < stop; ++i) {
            living += threads[i]->state != DONE;
            arrived += threads[i]->state == AT_WARP_BARRIER;
            all_at_block &= threads[i]->state == DONE || threads[i]->state == AT_BLOCK_BARRIER;
        }
        if (!living || arrived != living) continue;
        for (int i = w; i < stop; ++i)
            if (threads[i]->state != DONE) threads[i]->state = READY;
        released = true;
    }
    if (released || !all_at_block) return released;
    for (int i = 0; i < count; ++i)
        if (threads[i]->state == AT_BLOCK_BARRIER) threads[i]->state = READY, released = true;
    return released;
}

inline void run_block(bool reverse) {
    int count = block.x * block.y * block.z;
    warps.resize((count + 31) / 32);
    if (__start_cuda_shared) memset(__start_cuda_shared, 0xff, __stop_cuda_shared - __start_cuda_shared);
    std::fill(dynamic_shared.begin(), dynamic_shared.end(), NAN);
    for (int i = 0; i < count; ++i) prepare_thread(i);
    do run_ready(count, reverse);
    while (error.empty() && release(count));
    for (int i = 0; i < count && error.empty(); ++i)
        if (threads[i]->state != DONE) error = "threads wait at a barrier that the others never reach";
}

template <class... A, size_t... I>
void call(void (*kernel)(A...), void** values, std::index_sequence<I...>) {
    kernel(*(std::remove_cv_t<A>*)values[I]...);
}

template <class... A>
struct Bound {
    void (*kernel)(A...);
    void** values;
    static void run(void* self) {
        auto* b = (Bound*)self;
        call(b->kernel, b->values, std::index_sequence_for<A...>{});
    }
};

// Runs the kernel over the whole grid; returns nullptr, or what went wrong.
template <class... A>
const char* launch(void (*kernel)(A...), const unsigned* shape, unsigned shared_bytes, bool reverse, void** values) {
    grid = {shape[0], shape[1], shape[2]}, block = {shape[3], shape[4], shape[5]};
    Bound<A...> bound{kernel, values};
    body = Bound<A...>::run, body_arguments = &bound;
    dynamic_shared.assign((shared_bytes + 7) / 8, NAN);
    error.clear();
    for (unsigned z = 0; z < grid.z && error.empty(); ++z)
        for (unsigned y = 0; y < grid.y && error.empty(); ++y)
            for (unsigned x = 0; x < grid.x && error.empty(); ++x) {
                block_index = {x, y, z};
                run_block(reverse);
            }
    return error.empty() ? nullptr : error.c_str();
}
}  // namespace emulator

#define threadIdx (emulator::current->index)
#define blockIdx emulator::block_index
#define blockDim emulator::block
#define gridDim emulator::grid

inline void __syncthreads() { emulator::wait_as(emulator::AT_BLOCK_BARRIER); }
inline void __syncwarp() { emulator::wait_as(emulator::AT_WARP_BARRIER); }
inline void __threadfence() {}

template <class T>
T __shfl_xor_sync(unsigned, T v, int mask) {
    int from = emulator::current->lane ^ mask;
    return emulator::exchange(v)[from];
}
template <class T>
T __shfl_up_sync(unsigned, T v, int delta) {
    int lane = emulator::current->lane;
    return emulator::exchange(v)[lane >= delta ? lane - delta : lane];
}
template <class T>
T __shfl_sync(unsigned, T v, int lane) {
    return emulator::exchange(v)[lane];
}

inline int atomicAdd(int* at, int v) { return std::exchange(*at, *at + v); }

template <class T>
T __ldcs(const T* p) {
    emulator::require_aligned(p, sizeof(T));
    return *p;
}
template <class T>
T __ldcg(const T* p) {
    return __ldcs(p);
}
template <class T>
T load_once(const T* p) {
    return __ldcs(p);
}
template <class T>
T load_vector(const T* p) {
    return __ldcs(p);
}

inline int __dp4a(int a, int b, int sum) {
    for (int i = 0; i < 4; ++i) sum += (int8_t)(a >> 8 * i) * (int8_t)(b >> 8 * i);
    return sum;
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned sum) {
    for (int i = 0; i < 4; ++i) sum += (a >> 8 * i & 0xff) * (b >> 8 * i & 0xff);
    return sum;
}

inline void copy_async16(void* shared, const void* global) {
    emulator::require_aligned(shared, 16);
    emulator::require_aligned(global, 16);
    emulator::current->copies.push_back({shared, global, emulator::current->groups});
}
inline void copy_async_commit() { ++emulator::current->groups; }
template <int PENDING>
void copy_async_wait() {
    auto& t = *emulator::current;
    std::vector<emulator::Copy> later;
    for (auto& c : t.copies)
        if (c.group < t.groups - PENDING)
            memcpy(c.to, c.from, 16);
        else
            later.push_back(c);
    t.copies = later;
}

inline void load_matrix_x4(unsigned (&r)[4], const void* row) {
    emulator::require_aligned(row, 16);
    int lane = emulator::current->lane;
    const void* const* rows = emulator::exchange(row);
    for (int i = 0; i < 4; ++i) memcpy(&r[i], (const char*)rows[i * 8 + lane / 4] + lane % 4 * 4, 4);
}

// Fragments as the instruction m16n8k32 lays them out: lane = 4 * row + (a fourth of k), 4 bytes of k a register.
inline void mma_16x8x32(int (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    struct Fragment {
        unsigned a[4], b[2];
    } mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    int lane = emulator::current->lane;
    const Fragment* all = emulator::exchange(mine);
    for (int q = 0; q < 4; ++q) {
        int row = lane / 4, half = q / 2, col = lane % 4 * 2 + q % 2;
        for (int part = 0; part < 4; ++part)
            for (int deep = 0; deep < 2; ++deep)
                c[q] = __dp4a((int)all[row * 4 + part].a[half + deep * 2], (int)all[col * 4 + part].b[deep], c[q]);
    }
}
