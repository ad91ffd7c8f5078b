// Compiles CUDA C kernels as C++ for the CPU and runs them, for tests without a card.
// The blocks of a grid run one after another. The threads of a block are fibers that switch only
// where CUDA threads meet (barrier, shuffle, tensor-core tile), in an order the caller chooses, so a
// missing barrier gives a wrong result; with -DHOST_THREADS they are OS threads, for ThreadSanitizer.
// Compile with -std=c++17 -fno-strict-aliasing -fvisibility=hidden -pthread, each file to a library
// of its own: in one library, same-named device functions of two files would be merged silently.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <math.h>
#include <memory>
#include <mutex>
#include <thread>
#include <tuple>
#include <vector>
#include <sys/mman.h>
#if !defined(__x86_64__) && !defined(HOST_UCONTEXT)
#define HOST_UCONTEXT
#endif
#ifdef HOST_UCONTEXT
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif
#ifdef __SANITIZE_THREAD__
extern "C" void AnnotateIgnoreSyncBegin(const char *, int), AnnotateIgnoreSyncEnd(const char *, int);
extern "C" void AnnotateIgnoreReadsBegin(const char *, int), AnnotateIgnoreReadsEnd(const char *, int);
extern "C" void AnnotateIgnoreWritesBegin(const char *, int), AnnotateIgnoreWritesEnd(const char *, int);
extern "C" void __tsan_acquire(void *), __tsan_release(void *);
#endif

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define alignas(n) __attribute__((aligned(n))) // g++ refuses the keyword behind __shared__, nvcc takes it
// Static shared arrays go to a section of their own, so that all of them can be filled before each
// block; "used" keeps the compiler from reasoning that nobody else writes them.
#define __shared__ static __attribute__((section("host_shared"), used))
#define SHARED_MEMORY(name) unsigned char *name = host::dynamic_shared

// Vector types: same sizes and alignments as CUDA's.
#define HOST_VECTOR(name, T, align2, align4)                                                          \
    struct alignas(align2) name##2 { T x, y; };                                                       \
    struct name##3 { T x, y, z; };                                                                    \
    struct alignas(align4) name##4 { T x, y, z, w; };                                                 \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                        \
    inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                                \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
HOST_VECTOR(float, float, 8, 16)
HOST_VECTOR(int, int, 8, 16)
HOST_VECTOR(uint, unsigned, 8, 16)
HOST_VECTOR(ushort, unsigned short, 4, 8)
HOST_VECTOR(uchar, unsigned char, 2, 4)
struct dim3 { unsigned x = 1, y = 1, z = 1; };

inline uint3 blockIdx;
inline dim3 blockDim, gridDim;
#ifdef HOST_THREADS
inline thread_local uint3 threadIdx;
#else
inline uint3 threadIdx;
#endif
constexpr int warpSize = 32;

extern "C" __attribute__((weak, visibility("hidden"))) unsigned char __start_host_shared[], __stop_host_shared[];

namespace __attribute__((visibility("hidden"))) host {

enum Kind { RUNS, RETURNED, BLOCK_BARRIER, WARP_BARRIER, SHUFFLE, MMA, LOAD, LOAD_TRANSPOSED, KINDS };
inline const char *const kind_text[KINDS] = {"run", "have returned", "wait at __syncthreads", "wait at __syncwarp",
    "wait at a shuffle", "wait at tile_mma", "wait at tile_load4", "wait at tile_load4_transposed"};

struct Copy { uint4 *to; const uint4 *from; bool valid; unsigned group; };
struct Thread {
    unsigned id = 0;
    Kind kind = RUNS;
    uint32_t mask = 0;          // lanes this thread means to meet
    uint32_t in[10], out[4];    // what it brings to the meeting, what it takes home
    std::vector<Copy> copies;   // asynchronous copies not yet waited for, oldest first
    unsigned group = 0;         // number of the open copy group
    std::condition_variable woken;
    void *stack = nullptr, *sp = nullptr, *fake = nullptr;
#ifdef HOST_UCONTEXT
    ucontext_t context;
#endif
};
struct Warp { uint32_t lanes, ready, at[KINDS]; unsigned meetings; char tag[2]; };

constexpr size_t STACK = 256 << 10, GUARD = 64 << 10;
inline std::mutex one_launch, meeting;
inline std::unique_ptr<Thread> threads[1024];
inline Warp warps[33]; // the last is never ready: no warp
inline unsigned char *dynamic_shared;
inline size_t dynamic_bytes;
inline unsigned threads_in_block, running, alive, at_block_barrier, block_meetings, warp_of_last;
inline int order;
inline uint64_t random_state;
inline const char *kernel_name;
inline std::function<void()> entry; // the kernel with its arguments
inline char block_tag[2];
#ifdef HOST_THREADS
inline thread_local Thread *self;
#else
inline Thread *self;
inline Thread outside; // the launching thread, while fibers run
inline const void *outside_stack;
inline size_t outside_size;
#endif

inline void say_where() {
    fflush(stdout);
    fprintf(stderr, "host: kernel %s, block (%u,%u,%u)", kernel_name, blockIdx.x, blockIdx.y, blockIdx.z);
}
template <class... A> [[noreturn]] void fail(const char *format, A... values) {
    say_where();
    fprintf(stderr, self ? ", thread %u: " : ": ", self ? self->id : 0);
    fprintf(stderr, format, values...);
    fprintf(stderr, "\n");
    abort();
}
[[noreturn]] inline void deadlock() {
    say_where();
    fprintf(stderr, ": deadlock:");
    for (unsigned i = 0, j; i < threads_in_block; i = j) {
        Thread &t = *threads[i];
        for (j = i; j < threads_in_block && threads[j]->kind == t.kind && threads[j]->mask == t.mask;) j++;
        fprintf(stderr, " threads %u..%u %s", i, j - 1, kind_text[t.kind]);
        if (t.kind > BLOCK_BARRIER) fprintf(stderr, " (mask %08x)", t.mask);
        fprintf(stderr, j < threads_in_block ? ";" : "\n");
    }
    abort();
}

// What ThreadSanitizer shall not see: our own bookkeeping. A shuffle or a tile orders no memory
// on the card, so it must not look like synchronisation here; only the barriers do (tags below).
struct Unseen {
#ifdef __SANITIZE_THREAD__
    static void begin() { AnnotateIgnoreSyncBegin("", 0); AnnotateIgnoreReadsBegin("", 0); AnnotateIgnoreWritesBegin("", 0); }
    static void end() { AnnotateIgnoreWritesEnd("", 0); AnnotateIgnoreReadsEnd("", 0); AnnotateIgnoreSyncEnd("", 0); }
    static void release(char *tag) { end(); __tsan_release(tag); begin(); }
    static void acquire(char *tag) { __tsan_acquire(tag); }
#else
    static void begin() {}
    static void end() {}
    static void release(char *) {}
    static void acquire(char *) {}
#endif
};

#ifndef HOST_THREADS
#ifndef HOST_UCONTEXT
// host_switch(&save, load): saves the callee-saved registers and the stack pointer, loads another's.
extern "C" __attribute__((visibility("hidden"))) void host_switch(void **save, void *load);
asm(".text\n.type host_switch, @function\nhost_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n.size host_switch, .-host_switch\n");
#endif

inline __attribute__((noipa)) void switch_to(Thread *to) {
    Thread *from = self;
    self = to;
    threadIdx = {to->id, 0, 0};
#ifdef __SANITIZE_ADDRESS__
    const bool out = to == &outside;
    __sanitizer_start_switch_fiber(from->kind == RETURNED ? nullptr : &from->fake,
                                   out ? outside_stack : to->stack, out ? outside_size : STACK);
#endif
#ifdef HOST_UCONTEXT
    swapcontext(&from->context, &to->context);
#else
    host_switch(&from->sp, to->sp);
#endif
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(from->fake, nullptr, nullptr);
#endif
}
inline unsigned random_bits() {
    random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
    return unsigned(random_state >> 20);
}
inline unsigned choose(uint32_t set) { // a member of a non-empty set, by the order
    if (order == 0) return __builtin_ctz(set);
    if (order == 1) return 31 - __builtin_clz(set);
    const unsigned turn = random_bits() & 31;
    return (__builtin_ctz(set >> turn | set << (-turn & 31)) + turn) & 31;
}
// A warp is run as far as it gets before another one is, so that warps drift far apart.
inline Thread *next() {
    unsigned w = warp_of_last;
    if (!warps[w].ready || (order > 1 && random_bits() % 16 == 0)) {
        uint32_t set = 0;
        for (unsigned i = 0; i * 32 < threads_in_block; i++) set |= uint32_t(warps[i].ready != 0) << i;
        if (!set) deadlock();
        w = choose(set);
    }
    const unsigned lane = choose(warps[w].ready);
    warps[w].ready &= ~(1u << lane);
    warp_of_last = w;
    return threads[w * 32 + lane].get();
}
inline void park(Thread *, std::unique_lock<std::mutex> &) { switch_to(next()); }
// The one that completes a meeting goes on in the order's turn, too.
inline void yield(Thread *me) {
    Thread *first = next();
    if (first != me) switch_to(first);
}
inline void wake(Thread *t) { warps[t->id / 32].ready |= 1u << t->id % 32; }
inline std::unique_lock<std::mutex> lock() { return {}; }
#else
inline void park(Thread *me, std::unique_lock<std::mutex> &held) {
    if (!running) deadlock();
    me->woken.wait(held, [&] { return me->kind == RUNS; });
}
inline void yield(Thread *) {}
inline void wake(Thread *t) { t->woken.notify_one(); }
inline std::unique_lock<std::mutex> lock() { return std::unique_lock<std::mutex>(meeting); }
#endif

inline float bf16_bits_to_float(uint32_t bits) {
    bits <<= 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
// What a warp's meeting does, done once for all its lanes by the last to arrive.
inline void exchange(Kind kind, std::unique_ptr<Thread> *lane, uint32_t present) {
    if (kind == SHUFFLE) {
        for (int l = 0; l < 32; l++)
            if (present >> l & 1) {
                const uint32_t source = lane[l]->in[2];
                const bool there = source < 32 && present >> source & 1; // else undefined on the card
                for (int i = 0; i < 2; i++) lane[l]->out[i] = there ? lane[source]->in[i] : ~0u;
            }
    } else if (kind == MMA) { // fragments of m16n8k16: in[] is c[4], a[4], b[2]
        typedef float Row __attribute__((vector_size(16)));
        float a[16][16], c[16][8];
        Row b[16][2];
        for (int l = 0; l < 32; l++) {
            const int g = l / 4, t = l % 4 * 2;
            const uint32_t *in = lane[l]->in;
            for (int i = 0; i < 4; i++) {
                memcpy(&c[g + i / 2 * 8][t + i % 2], in + i, 4);
                for (int half = 0; half < 2; half++) {
                    a[g + i % 2 * 8][t + i / 2 * 8 + half] = bf16_bits_to_float(in[4 + i] >> 16 * half & 0xffff);
                    if (i < 2) b[t + i * 8 + half][g / 4][g % 4] = bf16_bits_to_float(in[8 + i] >> 16 * half & 0xffff);
                }
            }
        }
        for (int row = 0; row < 16; row++) {
            Row sum[2];
            memcpy(sum, c[row], 32);
            for (int k = 0; k < 16; k++) sum[0] += a[row][k] * b[k][0], sum[1] += a[row][k] * b[k][1];
            memcpy(c[row], sum, 32);
        }
        for (int l = 0; l < 32; l++)
            for (int i = 0; i < 4; i++) memcpy(lane[l]->out + i, &c[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2], 4);
    } else if (kind == LOAD || kind == LOAD_TRANSPOSED) { // in[] is the lane's row of eight 16-bit elements
        for (int l = 0; l < 32; l++)
            for (int matrix = 0; matrix < 4; matrix++) {
                uint16_t pair[2];
                for (int i = 0; i < 2; i++) {
                    const int row = kind == LOAD ? l / 4 : l % 4 * 2 + i, column = kind == LOAD ? l % 4 * 2 + i : l / 4;
                    memcpy(pair + i, reinterpret_cast<char *>(lane[matrix * 8 + row]->in) + 2 * column, 2);
                }
                memcpy(lane[l]->out + matrix, pair, 4);
            }
    }
}
inline void resume(Thread *t) {
    t->kind = RUNS, running++;
    wake(t);
}

// Waits until all threads concerned are at the same kind of meeting. noipa: to the compiler this is
// a call that may change any memory, as it must be.
inline __attribute__((noipa)) char *meet(Kind kind, uint32_t mask) {
    Thread *me = self;
    Warp &warp = warps[me->id / 32];
    const uint32_t want = mask & warp.lanes;
    char *tag = nullptr;
    auto held = lock();
    me->kind = kind, me->mask = mask;
    running--;
    if (kind == BLOCK_BARRIER) {
        Unseen::release(tag = &block_tag[block_meetings & 1]);
        if (++at_block_barrier < threads_in_block) park(me, held);
        else {
            at_block_barrier = 0, block_meetings++;
            for (unsigned i = 0; i < threads_in_block; i++) resume(threads[i].get());
            warp_of_last = 32; // start again from the order's first warp
            yield(me);
        }
    } else {
        if (!(mask >> me->id % 32 & 1)) fail("not in its own mask %08x", mask);
        if (kind >= MMA && want != ~0u) fail("%s", "a tile needs a whole warp");
        if (kind == WARP_BARRIER) Unseen::release(tag = &warp.tag[warp.meetings & 1]);
        if (((warp.at[kind] |= 1u << me->id % 32) & want) != want) park(me, held);
        else {
            std::unique_ptr<Thread> *lane = threads + (me->id & ~31u);
            for (int l = 0; l < 32; l++)
                if (want >> l & 1 && lane[l]->mask != mask)
                    fail("%s: lane %d names the mask %08x, not %08x", kind_text[kind], l, lane[l]->mask, mask);
            exchange(kind, lane, want);
            warp.at[kind] &= ~want, warp.meetings += kind == WARP_BARRIER;
            for (int l = 0; l < 32; l++)
                if (want >> l & 1) resume(lane[l].get());
            yield(me);
        }
    }
    return tag;
}
inline void barrier(Kind kind, uint32_t mask) {
    Unseen::begin();
    char *tag = meet(kind, mask);
    Unseen::end();
    Unseen::acquire(tag);
}
// Brings `in`, meets the warp, takes `out`.
template <class Out, class In> Out swap(Kind kind, uint32_t mask, const In &in) {
    static_assert(sizeof(In) <= sizeof self->in && sizeof(Out) <= sizeof self->out, "too large");
    Out out;
    Unseen::begin();
    memcpy(self->in, &in, sizeof in);
    meet(kind, mask);
    memcpy(&out, self->out, sizeof out);
    Unseen::end();
    return out;
}
template <class T> T shuffle(uint32_t mask, T value, int source) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
    uint32_t in[3] = {0, 0, uint32_t(source)};
    memcpy(in, &value, sizeof value);
    return swap<T>(SHUFFLE, mask, in);
}
inline bool in_shared(const void *p) {
    const auto *at = static_cast<const unsigned char *>(p);
    return (at >= dynamic_shared && at + 16 <= dynamic_shared + dynamic_bytes) || (at >= __start_host_shared && at + 16 <= __stop_host_shared);
}
inline void check_shared(const char *what, const void *p) {
    if (uintptr_t(p) % 16) fail("%s: shared address %p is not a multiple of 16", what, p);
    if (!in_shared(p)) fail("%s: 16 bytes at %p are not in shared memory", what, p);
}

// All ones is a NaN as float and as bf16. The writes are volatile and unchecked, because under
// AddressSanitizer the section holds red zones between the arrays.
__attribute__((no_sanitize("address", "thread"))) inline void fill(unsigned char *from, unsigned char *to) {
    for (; from < to && uintptr_t(from) % 8; from++) *static_cast<volatile unsigned char *>(from) = 0xff;
    for (; to - from >= 8; from += 8) *reinterpret_cast<volatile uint64_t *>(from) = ~uint64_t(0);
    for (; from < to; from++) *static_cast<volatile unsigned char *>(from) = 0xff;
}
inline void run_thread() {
    entry();
    Unseen::begin();
    {
        auto held = lock();
        self->kind = RETURNED, self->mask = ~0u;
        running--, alive--;
#ifdef HOST_THREADS
        if (!running && alive) deadlock();
#endif
    }
    Unseen::end();
}
#ifndef HOST_THREADS
inline void fiber_main() {
#ifdef __SANITIZE_ADDRESS__
    const void *bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
    if (!outside_stack) outside_stack = bottom, outside_size = size; // the first fiber comes from outside
#endif
    run_thread();
    switch_to(alive ? next() : &outside);
    abort();
}
#endif
inline void run_block() {
    fill(__start_host_shared, __stop_host_shared);
    fill(dynamic_shared, dynamic_shared + dynamic_bytes);
    running = alive = threads_in_block;
    at_block_barrier = 0, warp_of_last = 32;
    for (unsigned w = 0; w * 32 < threads_in_block; w++) {
        const unsigned rest = threads_in_block - w * 32;
        warps[w] = {};
        warps[w].lanes = warps[w].ready = rest < 32 ? (1u << rest) - 1 : ~0u;
    }
    for (unsigned i = 0; i < threads_in_block; i++) {
        if (!threads[i]) threads[i].reset(new Thread);
        Thread &t = *threads[i];
        t.id = i, t.kind = RUNS, t.mask = 0, t.group = 0;
        t.copies.clear();
#ifndef HOST_THREADS
        if (!t.stack) {
            void *p = mmap(nullptr, STACK + GUARD, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (p == MAP_FAILED || mprotect(p, GUARD, PROT_NONE)) fail("%s", "no memory for a stack");
            t.stack = static_cast<char *>(p) + GUARD;
        }
#ifdef __SANITIZE_ADDRESS__
        __asan_unpoison_memory_region(t.stack, STACK); // the last fiber here left fiber_main unreturned
#endif
#ifdef HOST_UCONTEXT
        getcontext(&t.context);
        t.context.uc_stack.ss_sp = t.stack, t.context.uc_stack.ss_size = STACK, t.context.uc_link = nullptr;
        makecontext(&t.context, fiber_main, 0);
#else // what host_switch pops: six registers, then its return address; a zero ends backtraces
        void **top = reinterpret_cast<void **>(static_cast<char *>(t.stack) + STACK) - 8;
        memset(top, 0, 64);
        top[6] = reinterpret_cast<void *>(fiber_main);
        t.sp = top;
#endif
#endif
    }
#ifdef HOST_THREADS
    std::vector<std::thread> all;
    for (unsigned n = 0; n < threads_in_block; n++) {
        const unsigned i = order == 1 ? threads_in_block - 1 - n : n;
        all.emplace_back([i] { self = threads[i].get(), threadIdx = {i, 0, 0}, run_thread(); });
    }
    for (auto &t : all) t.join();
#else
    self = &outside;
#ifdef __SANITIZE_ADDRESS__
    outside_stack = nullptr;
#endif
    switch_to(next());
    self = nullptr;
#endif
}
template <class... A>
void launch(const char *name, void (*kernel)(A...), const unsigned *grid, unsigned block, size_t shared, void **args, int in_order) {
    std::lock_guard<std::mutex> only(one_launch);
    [[maybe_unused]] auto next_argument = [&] { return *args++; };
    std::tuple<A...> values{*static_cast<A *>(next_argument())...}; // braces: from left to right
    kernel_name = name, order = in_order, entry = [&] { std::apply(kernel, values); };
    gridDim = {grid[0], grid[1], grid[2]}, blockDim = {block, 1, 1}, blockIdx = {0, 0, 0};
    if (!block || block > 1024 || !grid[0] || !grid[1] || !grid[2] || grid[1] > 65535 || grid[2] > 65535 || shared > 227 << 10)
        fail("the card refuses grid %u,%u,%u, block %u, %zu bytes of shared memory", grid[0], grid[1], grid[2], block, shared);
    void *memory = nullptr; // exactly as large as asked for, so that AddressSanitizer sees its end
    if (posix_memalign(&memory, 16, shared)) fail("%s", "no memory");
    dynamic_shared = static_cast<unsigned char *>(memory), dynamic_bytes = shared, threads_in_block = block;
    for (unsigned z = 0, number = 0; z < grid[2]; z++)
        for (unsigned y = 0; y < grid[1]; y++)
            for (unsigned x = 0; x < grid[0]; x++) {
                blockIdx = {x, y, z};
                random_state = (uint64_t(order) << 32 | ++number) * 0x9e3779b97f4a7c15u; // odd factor: never zero
                run_block();
            }
    free(memory);
}
} // namespace host

// EXPORT(kernel) makes host_launch_kernel; args as cuLaunchKernel takes them. The order in which the
// threads run between meetings: 0 forward, 1 reverse, 2 and more random, each number its own way.
#define EXPORT(name)                                                                                          \
    extern "C" __attribute__((visibility("default"))) void host_launch_##name(                                \
        const unsigned grid[3], unsigned block, size_t shared_bytes, void **args, int order) {                \
        host::launch(#name, name, grid, block, shared_bytes, args, order);                \
    }

inline void __syncthreads() { host::barrier(host::BLOCK_BARRIER, ~0u); }
inline void __syncwarp(unsigned mask = ~0u) { host::barrier(host::WARP_BARRIER, mask); }
template <class T> T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    return host::shuffle(mask, value, int(threadIdx.x & 31 & -width) | (source & (width - 1)));
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
    const int lane = threadIdx.x & 31, source = lane ^ bits;
    return host::shuffle(mask, value, source < (lane & -width) + width ? source : lane);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const int lane = threadIdx.x & 31;
    return host::shuffle(mask, value, (lane & (width - 1)) + delta < unsigned(width) ? lane + delta : lane);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const int lane = threadIdx.x & 31;
    return host::shuffle(mask, value, unsigned(lane & (width - 1)) >= delta ? lane - delta : lane);
}

template <class T, class F> T host_atomic(T *at, F change) { // relaxed, as the card's are
    T old, value;
    __atomic_load(at, &old, __ATOMIC_RELAXED);
    do value = change(old);
    while (!__atomic_compare_exchange(at, &old, &value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}
template <class T> T atomicAdd(T *at, std::common_type_t<T> v) { return host_atomic(at, [=](T old) { return T(old + v); }); }
template <class T> T atomicMax(T *at, std::common_type_t<T> v) { return host_atomic(at, [=](T old) { return old < v ? v : old; }); }
template <class T> T __ldg(const T *p) { return *p; }

template <class A, class B> std::common_type_t<A, B> min(A a, B b) {
    if constexpr (std::is_floating_point_v<std::common_type_t<A, B>>) return fmin(a, b); // a NaN loses
    else return std::common_type_t<A, B>(b) < std::common_type_t<A, B>(a) ? b : a;
}
template <class A, class B> std::common_type_t<A, B> max(A a, B b) {
    if constexpr (std::is_floating_point_v<std::common_type_t<A, B>>) return fmax(a, b);
    else return std::common_type_t<A, B>(a) < std::common_type_t<A, B>(b) ? b : a;
}
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
#define __expf(x) expf(x) // macros, because glibc declares these names for itself
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __powf(x, y) powf(x, y)

// bf16: the bits of NVIDIA's header, without its arithmetic operators, so nothing rounds by surprise.
struct __nv_bfloat16 {
    unsigned short bits;
    __nv_bfloat16() = default;
    explicit __nv_bfloat16(float f) {
        uint32_t u;
        memcpy(&u, &f, 4);
        bits = f != f ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16; // to nearest, ties to even
    }
    explicit operator float() const { return host::bf16_bits_to_float(bits); }
};
struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;
template <class To, class From> To host_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "sizes differ");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline __nv_bfloat16 __float2bfloat16(float f) { return __nv_bfloat16(f); }
inline __nv_bfloat16 __float2bfloat16_rn(float f) { return __nv_bfloat16(f); }
inline float __bfloat162float(__nv_bfloat16 b) { return float(b); }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__nv_bfloat16(x), __nv_bfloat16(y)}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 b) { return {float(b.x), float(b.y)}; }
inline float __low2float(__nv_bfloat162 b) { return float(b.x); }
inline float __high2float(__nv_bfloat162 b) { return float(b.y); }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 b) { return b.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short u) { return host_bits<__nv_bfloat16>(u); }
inline unsigned __float_as_uint(float f) { return host_bits<unsigned>(f); }
inline int __float_as_int(float f) { return host_bits<int>(f); }
inline float __uint_as_float(unsigned u) { return host_bits<float>(u); }
inline float __int_as_float(int i) { return host_bits<float>(i); }

// The seam.
inline void tile_mma(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    struct { float c[4]; uint32_t a[4], b[2]; } in;
    memcpy(in.c, c, 16), memcpy(in.a, a, 16), memcpy(in.b, b, 8);
    const float4 out = host::swap<float4>(host::MMA, ~0u, in);
    memcpy(c, &out, 16);
}
// Each lane reads the row it names itself, before the meeting: that makes the sanitizers' reports right.
inline void host_load4(host::Kind kind, uint32_t r[4], const void *row) {
    host::check_shared("tile_load4", row);
    const uint4 in = *static_cast<const uint4 *>(row); // here, where ThreadSanitizer sees the read
    const uint4 out = host::swap<uint4>(kind, ~0u, in);
    memcpy(r, &out, 16);
}
inline void tile_load4(uint32_t r[4], const void *row) { host_load4(host::LOAD, r, row); }
inline void tile_load4_transposed(uint32_t r[4], const void *row) { host_load4(host::LOAD_TRANSPOSED, r, row); }
// The bytes arrive at the wait. Until then the target holds NaNs: that shows both a missing wait and
// a copy begun while others still read the target.
inline void tile_copy16(void *shared, const void *global, bool valid) {
    host::check_shared("tile_copy16", shared);
    if (uintptr_t(global) % 16) host::fail("tile_copy16: global address %p is not a multiple of 16", global);
    if (valid && host::in_shared(global)) host::fail("%s", "tile_copy16: the source is shared memory");
    if (valid) (void)static_cast<const volatile uint4 *>(global)->x; // a bad address is reported here, not at the wait
    *static_cast<uint4 *>(shared) = {~0u, ~0u, ~0u, ~0u};
    host::self->copies.push_back({static_cast<uint4 *>(shared), static_cast<const uint4 *>(global), valid, host::self->group});
}
inline void tile_copy_commit() { host::self->group++; }
template <int N> void tile_copy_wait() {
    auto &copies = host::self->copies;
    size_t done = 0;
    for (; done < copies.size() && copies[done].group + N < host::self->group; done++) {
        const host::Copy &c = copies[done]; // assigned, as g++ shows ThreadSanitizer no small memcpy
        *c.to = c.valid ? *c.from : uint4{0, 0, 0, 0};
    }
    copies.erase(copies.begin(), copies.begin() + done);
}
inline float tile_exp2(float x) {
    const float y = exp2f(x);
    return y < 1.17549435e-38f ? 0 : y; // ex2.approx.ftz gives no subnormals
}
inline uint32_t tile_pack(float lo, float hi) { return __nv_bfloat16(lo).bits | uint32_t(__nv_bfloat16(hi).bits) << 16; }
