// The CUDA thread model on one CPU core, for checking results where there is no GPU. Never for timing.
//
// Blocks run one after another; every thread of a block is a fiber (with its own stack, switched explicitly). A fiber
// runs until it meets a barrier, a shuffle or a matrix instruction, where it waits until its warp or block has arrived.
// The emulator is stricter than a GPU: vector accesses must be aligned, shared memory starts as NaN in every block, and
// barriers that not all threads reach, and shuffles that not all lanes reach, are errors. A missing barrier is found
// because a warp runs up to its next block barrier before another warp starts, in either order of warps and lanes;
// asynchronous copies complete as late as possible in one order, and as early as possible in the other.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#define __global__ __attribute__((noinline))
#define __device__
#define __forceinline__ static inline
#define __launch_bounds__(...)  // checked by the launcher
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
enum State { READY, AT_WARP_BARRIER, AT_EXCHANGE, AT_BLOCK_BARRIER, DONE, STATES };

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

// A barrier in shared memory on which a bulk copy completes; the emulator keeps its state outside.
struct Barrier {
    int phase = 0;
    bool copying = false;
    void* to;
    const void* from;
    int bytes;

    void finish() {
        memcpy(to, from, bytes);
        copying = false, ++phase;
    }
};

constexpr size_t STACK = 128 << 10;
inline dim3 grid, block, block_index;
inline std::vector<std::unique_ptr<Thread>> threads;
inline std::vector<Warp> warps;
inline std::vector<double> dynamic_shared;
inline std::map<void*, Barrier> barriers;
inline Thread* current = nullptr;
inline ucontext_t scheduler;
inline std::string error;
inline bool reverse;  // the last block, warp and lane first
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

// Shows `mine` to the warp and returns the values of all lanes, once all have arrived.
template <class T>
const T* exchange(const T& mine) {
    static_assert(sizeof(T) <= 32, "slots are 32 bytes");
    auto* slots = current->warp->slot[current->turn];
    memcpy(slots[current->lane], &mine, sizeof(T));
    current->turn ^= 1;
    wait_as(AT_EXCHANGE);
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

// Lets the warp continue if all its live lanes wait at a warp barrier, or all 32 at an exchange.
inline bool release_warp(int begin, int end) {
    int waiting[STATES] = {};
    for (int i = begin; i < end; ++i) ++waiting[threads[i]->state];
    int living = end - begin - waiting[DONE];
    if (waiting[AT_EXCHANGE] % 32) error = "not all 32 lanes of a warp reach a shuffle or matrix instruction";
    if (!living || (waiting[AT_WARP_BARRIER] != living && waiting[AT_EXCHANGE] != 32)) return false;
    for (int i = begin; i < end; ++i)
        if (threads[i]->state != DONE) threads[i]->state = READY;
    return true;
}

// Runs one warp until all its lanes have ended or wait for the block.
inline void run_warp(int begin, int end) {
    do
        for (int i = begin; i < end && error.empty(); ++i) {
            current = threads[reverse ? begin + end - 1 - i : i].get();
            if (current->state == READY) swapcontext(&scheduler, &current->context);
        }
    while (error.empty() && release_warp(begin, end));
}

// Lets the block continue if all its live threads wait at a block barrier.
inline bool release_block(int count) {
    int arrived = 0;
    for (int i = 0; i < count; ++i) {
        if (threads[i]->state != DONE && threads[i]->state != AT_BLOCK_BARRIER)
            error = "threads wait at a barrier that the others never reach";
        arrived += threads[i]->state == AT_BLOCK_BARRIER;
    }
    for (int i = 0; i < count; ++i)
        if (threads[i]->state == AT_BLOCK_BARRIER) threads[i]->state = READY;
    return arrived && error.empty();
}

inline void run_block() {
    int count = block.x * block.y * block.z, warp_count = (count + 31) / 32;
    warps.resize(warp_count);
    if (__start_cuda_shared) memset(__start_cuda_shared, 0xff, __stop_cuda_shared - __start_cuda_shared);
    std::fill(dynamic_shared.begin(), dynamic_shared.end(), NAN);
    barriers.clear();
    for (int i = 0; i < count; ++i) prepare_thread(i);
    do
        for (int i = 0; i < warp_count && error.empty(); ++i) {
            int begin = 32 * (reverse ? warp_count - 1 - i : i);
            run_warp(begin, min(count, begin + 32));
        }
    while (error.empty() && release_block(count));
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

// Runs the kernel over the whole grid; returns nullptr, or what went wrong. most_threads: its launch bound.
template <class... A>
const char* launch(void (*kernel)(A...), unsigned most_threads, const unsigned* shape, unsigned shared_bytes,
                   bool backwards, void** values) {
    grid = {shape[0], shape[1], shape[2]}, block = {shape[3], shape[4], shape[5]}, reverse = backwards;
    if (block.x * block.y * block.z > most_threads) return "the block has more threads than the launch bounds allow";
    Bound<A...> bound{kernel, values};
    body = Bound<A...>::run, body_arguments = &bound;
    dynamic_shared.assign((shared_bytes + 7) / 8, NAN);
    error.clear();
    size_t blocks = (size_t)grid.x * grid.y * grid.z;
    for (size_t i = 0; i < blocks && error.empty(); ++i) {
        size_t at = reverse ? blocks - 1 - i : i;
        block_index = {unsigned(at % grid.x), unsigned(at / grid.x % grid.y), unsigned(at / grid.x / grid.y)};
        run_block();
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
    if (emulator::reverse)
        memcpy(shared, global, 16);
    else
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

// Fragments as the instruction m16n8k32 lays them out: lane = 4 * row + (a quarter of k), 4 bytes of k per register.
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

// Hopper's bulk copies complete on a barrier, as late as possible in one order of threads and at once in the other. A
// wait on a barrier that is not initialized, or for a phase that no copy will end, is an error.
inline void barrier_init(unsigned long long* barrier) { emulator::barriers[barrier] = {}; }
inline void copy_bulk(void* to, const void* from, int bytes, unsigned long long* barrier) {
    emulator::require_aligned(to, 16);
    emulator::require_aligned(from, 16);
    auto& b = emulator::barriers[barrier];
    if (b.copying) emulator::fail("a bulk copy starts before the one before it was waited for");
    b.copying = true, b.to = to, b.from = from, b.bytes = bytes;
    if (emulator::reverse) b.finish();
}
inline bool barrier_wait(unsigned long long* barrier, int parity) {
    if (!emulator::barriers.count(barrier)) emulator::fail("a wait on a barrier that is not initialized");
    auto& b = emulator::barriers[barrier];
    if (b.phase % 2 == parity && b.copying) b.finish();
    if (b.phase % 2 == parity) emulator::fail("a wait for a bulk copy that was not started");
    return true;
}
inline void fence_async_proxy() {}
inline void wgmma_fence() {}
inline void wgmma_commit() {}
inline void wgmma_wait() {}

// Each thread computes its own outputs of the warpgroup's 64 x 128, from core matrices (8 rows of 16 bytes) that lie
// 2048 bytes apart along k and 128 along the rows, as the kernel's descriptors say.
inline void wgmma_64x128x32(int (&c)[16][4], const signed char* a, const signed char* b) {
    int lane = emulator::current->lane, warp = emulator::current->index.x / 32 % 4;
    auto value = [](const signed char* p, int row, int k) { return p[k / 16 * 2048 + row / 8 * 128 + row % 8 * 16 + k % 16]; };
    for (int j = 0; j < 16; ++j)
        for (int q = 0; q < 4; ++q) {
            int row = warp * 16 + lane / 4 + q / 2 * 8, col = j * 8 + lane % 4 * 2 + q % 2;
            for (int k = 0; k < 32; ++k) c[j][q] += value(a, row, k) * value(b, col, k);
        }
}
