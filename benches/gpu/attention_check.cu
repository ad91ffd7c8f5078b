// Checks attention.cu against a plain reference in double precision, then times it.
//   nvcc -O3 -std=c++17 -arch=sm_90 -I trainer-template/kernels/cuda -cudart static -o check \
//       benches/gpu/attention_check.cu
// "check quick" leaves the timing out.
#include "attention.cu"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

typedef __nv_bfloat16 Half;

#ifdef __CUDACC__
#include <cuda_runtime.h>
static void must(cudaError_t error, const char *what) {
    if (error == cudaSuccess) return;
    printf("%s: %s\n", what, cudaGetErrorString(error));
    exit(2);
}
static void *take(size_t bytes) {
    void *p = nullptr;
    must(cudaMalloc(&p, bytes), "cudaMalloc");
    return p;
}
static void give(void *p) { must(cudaFree(p), "cudaFree"); }
static void up(void *to, const void *from, size_t bytes) {
    must(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "copy up");
}
static void down(void *to, const void *from, size_t bytes) {
    must(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "copy down");
}
static void finish() { must(cudaDeviceSynchronize(), "run"); }
template <class... Wants, class... Gets>
static void launch(void (*kernel)(Wants...), int x, int y, int threads, int shared, Gets... gets) {
    if (shared > 0)
        must(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), "shared memory");
    kernel<<<dim3(x, y), threads, shared>>>(gets...);
    must(cudaGetLastError(), "launch");
}
#else
static void *take(size_t bytes) { return aligned_alloc(256, (bytes + 255) / 256 * 256); }
static void give(void *p) { free(p); }
static void up(void *to, const void *from, size_t bytes) { memcpy(to, from, bytes); }
static void down(void *to, const void *from, size_t bytes) { memcpy(to, from, bytes); }
static void finish() {}
template <class... Wants, class... Gets>
static void launch(void (*kernel)(Wants...), int x, int y, int threads, int shared, Gets... gets) {
    emulate(x, y, threads, shared, [=] { kernel(gets...); });
}
#endif

struct Shape {
    int sequences, time, heads, width, channels, window;
    float scale() const { return 1.0f / std::sqrt(static_cast<float>(width)); }
};

typedef void (*Forward)(const Half *, const Half *, const Half *, Half *, float *, int, int, int, int, int, int, float);
typedef void (*Keys)(const Half *, const Half *, const Half *, const Half *, const float *, const float *, Half *,
                     Half *, int, int, int, int, int, int, float);
typedef void (*Queries)(const Half *, const Half *, const Half *, const Half *, const float *, const float *, Half *,
                        int, int, int, int, int, int, float);

struct Plan {
    int d;
    Forward forward;
    int forward_tile, forward_threads, forward_shared;
    Keys keys;
    int keys_tile, keys_threads, keys_shared;
    Queries queries;
    int queries_tile, queries_threads, queries_shared;
};
#define PLAN(D)                                                                                                   \
    {D, attention_forward_##D, ATTENTION_FORWARD_##D##_QUERIES, ATTENTION_FORWARD_##D##_WARPS * 32,               \
     attention_forward_shared(D, ATTENTION_FORWARD_##D##_QUERIES, ATTENTION_FORWARD_##D##_KEYS),                  \
     attention_backward_keys_##D, ATTENTION_BACKWARD_KEYS_##D##_KEYS, ATTENTION_BACKWARD_KEYS_##D##_KEYS * 2,     \
     attention_backward_keys_shared(D, ATTENTION_BACKWARD_KEYS_##D##_KEYS, ATTENTION_BACKWARD_KEYS_##D##_QUERIES), \
     attention_backward_queries_##D, ATTENTION_BACKWARD_QUERIES_##D##_QUERIES,                                    \
     ATTENTION_BACKWARD_QUERIES_##D##_WARPS * 32,                                                                 \
     attention_backward_queries_shared(D, ATTENTION_BACKWARD_QUERIES_##D##_QUERIES,                               \
                                       ATTENTION_BACKWARD_QUERIES_##D##_KEYS)}
static const Plan plans[] = {PLAN(32), PLAN(64), PLAN(128)};

static int over(long long a, int b) { return static_cast<int>((a + b - 1) / b); }

static void run_forward(const Plan &p, const Shape &s, const Half *q, const Half *k, const Half *v, Half *y, float *l) {
    launch(p.forward, over(s.time, p.forward_tile), s.sequences * s.heads, p.forward_threads, p.forward_shared, q, k, v,
           y, l, s.sequences, s.time, s.heads, s.width, s.channels, s.window, s.scale());
}
static void run_delta(const Shape &s, const Half *y, const Half *dy, float *delta) {
    launch(attention_delta, over(static_cast<long long>(s.sequences) * s.time * s.heads, 16), 1,
           ATTENTION_DELTA_THREADS, 0, y, dy, delta, s.sequences, s.time, s.heads, s.width, s.channels);
}
static void run_keys(const Plan &p, const Shape &s, const Half *q, const Half *k, const Half *v, const Half *dy,
                     const float *l, const float *delta, Half *dk, Half *dv) {
    launch(p.keys, over(s.time, p.keys_tile), s.sequences * s.heads, p.keys_threads, p.keys_shared, q, k, v, dy, l,
           delta, dk, dv, s.sequences, s.time, s.heads, s.width, s.channels, s.window, s.scale());
}
static void run_queries(const Plan &p, const Shape &s, const Half *q, const Half *k, const Half *v, const Half *dy,
                        const float *l, const float *delta, Half *dq) {
    launch(p.queries, over(s.time, p.queries_tile), s.sequences * s.heads, p.queries_threads, p.queries_shared, q, k, v,
           dy, l, delta, dq, s.sequences, s.time, s.heads, s.width, s.channels, s.window, s.scale());
}

static uint16_t narrow(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    return static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
static float widen(uint16_t x) {
    uint32_t u = static_cast<uint32_t>(x) << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static const uint16_t UNTOUCHED = 0x7fab; // a NaN that no kernel writes
static int failures = 0;

struct Worst {
    double error = 0, against = 0; // greatest error and greatest reference
    bool hole = false;
};

// An array of bf16 here and on the device, starting `offset` elements into its memory.
struct Array {
    std::vector<uint16_t> here;
    void *memory;
    Half *there;
    Array(size_t n, int offset) : here(n), memory(take((n + offset) * 2)), there(static_cast<Half *>(memory) + offset) {}
    ~Array() { give(memory); }
    void send() { up(there, here.data(), here.size() * 2); }
    void fetch() { down(here.data(), there, here.size() * 2); }
};

static void check(const Plan &p, const Shape &s, int offset, float spread, unsigned seed) {
    const size_t tokens = static_cast<size_t>(s.sequences) * s.time, n = tokens * s.channels;
    const size_t rows = tokens * s.heads;
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    Array q(n, offset), k(n, offset), v(n, offset), dy(n, offset), y(n, offset), dq(n, offset), dk(n, offset),
        dv(n, offset);
    for (Array *a : {&q, &k, &v, &dy}) {
        for (uint16_t &x : a->here) x = narrow(normal(random) * (a == &q || a == &k ? spread : 1.0f));
        // Beside the heads: nothing may be read from there.
        for (size_t token = 0; token < tokens; ++token)
            for (int c = s.heads * s.width; c < s.channels; ++c) a->here[token * s.channels + c] = UNTOUCHED;
        a->send();
    }
    for (Array *a : {&y, &dq, &dk, &dv}) {
        std::fill(a->here.begin(), a->here.end(), UNTOUCHED);
        a->send();
    }
    std::vector<float> l(rows, NAN), delta(rows, NAN);
    float *l_there = static_cast<float *>(take(rows * 4)), *delta_there = static_cast<float *>(take(rows * 4));
    up(l_there, l.data(), rows * 4);
    up(delta_there, delta.data(), rows * 4);

    run_forward(p, s, q.there, k.there, v.there, y.there, l_there);
    run_delta(s, y.there, dy.there, delta_there);
    run_keys(p, s, q.there, k.there, v.there, dy.there, l_there, delta_there, dk.there, dv.there);
    run_queries(p, s, q.there, k.there, v.there, dy.there, l_there, delta_there, dq.there);
    finish();
    for (Array *a : {&y, &dq, &dk, &dv}) a->fetch();
    down(l.data(), l_there, rows * 4);
    down(delta.data(), delta_there, rows * 4);

    // Again: the same bits.
    bool same = true;
    {
        std::vector<uint16_t> first[4] = {y.here, dq.here, dk.here, dv.here};
        run_forward(p, s, q.there, k.there, v.there, y.there, l_there);
        run_delta(s, y.there, dy.there, delta_there);
        run_queries(p, s, q.there, k.there, v.there, dy.there, l_there, delta_there, dq.there);
        run_keys(p, s, q.there, k.there, v.there, dy.there, l_there, delta_there, dk.there, dv.there);
        finish();
        int at = 0;
        for (Array *a : {&y, &dq, &dk, &dv}) {
            a->fetch();
            same = same && a->here == first[at++];
        }
    }

    Worst of_y, of_l, of_delta, of_dq, of_dk, of_dv;
    auto note = [](Worst &w, double got, double wanted) {
        if (!(std::fabs(got - wanted) < 1e30)) w.hole = true;
        else w.error = std::max(w.error, std::fabs(got - wanted));
        w.against = std::max(w.against, std::fabs(wanted));
    };
    const double scale = s.scale();
    const int T = s.time, W = s.width;
    for (int sequence = 0; sequence < s.sequences; ++sequence)
        for (int head = 0; head < s.heads; ++head) {
            auto at = [&](int i) { return (static_cast<size_t>(sequence) * T + i) * s.channels + head * W; };
            std::vector<double> Q(T * W), K(T * W), V(T * W), G(T * W), wq(T * W), wk(T * W), wv(T * W);
            for (int i = 0; i < T; ++i)
                for (int c = 0; c < W; ++c) {
                    Q[i * W + c] = widen(q.here[at(i) + c]), K[i * W + c] = widen(k.here[at(i) + c]);
                    V[i * W + c] = widen(v.here[at(i) + c]), G[i * W + c] = widen(dy.here[at(i) + c]);
                }
            std::vector<double> pr(T), o(W);
            for (int i = 0; i < T; ++i) {
                const int from = std::max(0, i - s.window);
                double high = -1e300, total = 0;
                for (int j = from; j <= i; ++j) {
                    double dot = 0;
                    for (int c = 0; c < W; ++c) dot += Q[i * W + c] * K[j * W + c];
                    pr[j] = dot * scale;
                    high = std::max(high, pr[j]);
                }
                for (int j = from; j <= i; ++j) total += pr[j] = std::exp(pr[j] - high);
                std::fill(o.begin(), o.end(), 0.0);
                for (int j = from; j <= i; ++j) {
                    pr[j] /= total;
                    for (int c = 0; c < W; ++c) o[c] += pr[j] * V[j * W + c];
                }
                double d = 0;
                for (int c = 0; c < W; ++c) {
                    d += o[c] * G[i * W + c];
                    note(of_y, widen(y.here[at(i) + c]), o[c]);
                }
                const size_t row = (static_cast<size_t>(sequence) * s.heads + head) * T + i;
                note(of_l, l[row], high + std::log(total));
                note(of_delta, delta[row], d);
                for (int j = from; j <= i; ++j) {
                    double dp = 0;
                    for (int c = 0; c < W; ++c) dp += G[i * W + c] * V[j * W + c];
                    const double ds = pr[j] * (dp - d) * scale;
                    for (int c = 0; c < W; ++c) {
                        wv[j * W + c] += pr[j] * G[i * W + c];
                        wk[j * W + c] += ds * Q[i * W + c];
                        wq[i * W + c] += ds * K[j * W + c];
                    }
                }
            }
            for (int i = 0; i < T; ++i)
                for (int c = 0; c < W; ++c) {
                    note(of_dq, widen(dq.here[at(i) + c]), wq[i * W + c]);
                    note(of_dk, widen(dk.here[at(i) + c]), wk[i * W + c]);
                    note(of_dv, widen(dv.here[at(i) + c]), wv[i * W + c]);
                }
        }
    bool clean = true;
    for (Array *a : {&y, &dq, &dk, &dv})
        for (size_t token = 0; token < tokens; ++token)
            for (int c = s.heads * s.width; c < s.channels; ++c)
                clean = clean && a->here[token * s.channels + c] == UNTOUCHED;

    // bf16 has 8 bits: the rounding of P, dS and of the result, on the scale of the greatest value.
    auto bad = [](const Worst &w, double relative, double absolute) {
        return w.hole || w.error > relative * w.against + absolute;
    };
    const bool fails = bad(of_y, 0.01, 0.002) || bad(of_l, 1e-5, 1e-4) || bad(of_delta, 0.01, 0.02) ||
                       bad(of_dq, 0.015, 0.005) || bad(of_dk, 0.015, 0.005) || bad(of_dv, 0.01, 0.005) || !clean ||
                       !same;
    printf("D %3d width %3d time %4d window %4d x%dx%d +%d spread %.0f: errors y %.4f (of %.1f) log %.1e delta %.3f "
           "dq %.4f (of %.1f) dk %.4f (of %.1f) dv %.4f (of %.1f)%s%s%s\n",
           p.d, W, T, s.window, s.sequences, s.heads, offset, spread, of_y.error, of_y.against, of_l.error,
           of_delta.error, of_dq.error, of_dq.against, of_dk.error, of_dk.against, of_dv.error, of_dv.against,
           clean ? "" : " WROTE BESIDE", same ? "" : " NOT THE SAME TWICE", fails ? "  FAILS" : "");
    fflush(stdout);
    failures += fails;
    give(l_there);
    give(delta_there);
}

#ifdef __CUDACC__
__global__ void fill(Half *x, size_t n, uint32_t seed) {
    for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i < n;
         i += static_cast<size_t>(gridDim.x) * blockDim.x) {
        // Four uniform bytes summed: nearly normal, of variance 1.
        uint32_t h = static_cast<uint32_t>(i) * 2654435761u + seed;
        h ^= h >> 16, h *= 0x85ebca6bu, h ^= h >> 13, h *= 0xc2b2ae35u, h ^= h >> 16;
        const float sum = static_cast<float>((h & 255) + (h >> 8 & 255) + (h >> 16 & 255) + (h >> 24));
        x[i] = __float2bfloat16((sum - 510.0f) / 147.8f);
    }
}

template <class F> static double milliseconds(F f) {
    cudaEvent_t from, to;
    must(cudaEventCreate(&from), "event"), must(cudaEventCreate(&to), "event");
    for (int i = 0; i < 3; ++i) f();
    finish();
    std::vector<float> took;
    for (int i = 0; i < 15; ++i) {
        must(cudaEventRecord(from), "event");
        f();
        must(cudaEventRecord(to), "event");
        must(cudaEventSynchronize(to), "event");
        float ms;
        must(cudaEventElapsedTime(&ms, from, to), "event");
        took.push_back(ms);
    }
    must(cudaEventDestroy(from), "event"), must(cudaEventDestroy(to), "event");
    std::sort(took.begin(), took.end());
    return took[took.size() / 2];
}

static void measure(const Plan &p, const Shape &s) {
    const size_t tokens = static_cast<size_t>(s.sequences) * s.time, n = tokens * s.channels, rows = tokens * s.heads;
    Half *x[8];
    for (int i = 0; i < 8; ++i) {
        x[i] = static_cast<Half *>(take(n * 2));
        fill<<<1024, 256>>>(x[i], n, 12345u * (i + 1));
    }
    Half *q = x[0], *k = x[1], *v = x[2], *dy = x[3], *y = x[4], *dq = x[5], *dk = x[6], *dv = x[7];
    float *l = static_cast<float *>(take(rows * 4)), *delta = static_cast<float *>(take(rows * 4));
    const double forward = milliseconds([&] { run_forward(p, s, q, k, v, y, l); });
    const double sums = milliseconds([&] { run_delta(s, y, dy, delta); });
    const double keys = milliseconds([&] { run_keys(p, s, q, k, v, dy, l, delta, dk, dv); });
    const double queries = milliseconds([&] { run_queries(p, s, q, k, v, dy, l, delta, dq); });
    const double backward = milliseconds([&] {
        run_delta(s, y, dy, delta);
        run_keys(p, s, q, k, v, dy, l, delta, dk, dv);
        run_queries(p, s, q, k, v, dy, l, delta, dq);
    });
    double pairs = 0;
    for (int i = 0; i < s.time; ++i) pairs += std::min(i, s.window) + 1;
    pairs *= static_cast<double>(s.sequences) * s.heads;
    const double unit = pairs * s.width * 1e-9;
    printf("%3d x %4d x %2d x %3d window %4d: forward %.3f ms %.0f TFLOP/s, backward %.3f ms %.0f TFLOP/s "
           "(delta %.3f ms, keys %.3f ms doing %.0f TFLOP/s, queries %.3f ms doing %.0f TFLOP/s)\n",
           s.sequences, s.time, s.heads, s.width, s.window, forward, 4 * unit / forward, backward, 10 * unit / backward,
           sums, keys, 8 * unit / keys, queries, 6 * unit / queries);
    fflush(stdout);
    for (Half *a : x) give(a);
    give(l);
    give(delta);
}

template <class Kernel> static void describe(const char *name, int d, Kernel kernel, int threads, int shared) {
    cudaFuncAttributes a;
    int blocks = 0;
    must(cudaFuncGetAttributes(&a, kernel), "attributes");
    must(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), "shared memory");
    must(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared), "occupancy");
    printf("%-28s %3d: %d threads, %d bytes shared, %d registers, %d bytes local, %d blocks a multiprocessor\n", name, d,
           threads, shared, a.numRegs, static_cast<int>(a.localSizeBytes), blocks);
}
#endif

int main(int count, char **words) {
    const bool quick = count > 1 && !strcmp(words[1], "quick");
#ifdef __CUDACC__
    for (const Plan &p : plans) {
        describe("attention_forward", p.d, p.forward, p.forward_threads, p.forward_shared);
        describe("attention_backward_keys", p.d, p.keys, p.keys_threads, p.keys_shared);
        describe("attention_backward_queries", p.d, p.queries, p.queries_threads, p.queries_shared);
    }
    const std::vector<int> times = {1, 7, 64, 97, 300}, windows = {0, 17, 1000};
    const std::vector<int> widths = {16, 20, 32, 33, 64, 80, 100, 128};
#else
    const std::vector<int> times = {1, 97, 150}, windows = {0, 17, 1000};
    const std::vector<int> widths = {20, 32, 64, 128};
#endif
    unsigned seed = 1;
    for (int width : widths)
        for (int time : times)
            for (int window : windows) {
                const int heads = 2, channels = heads * width + (width % 8 == 0 ? 8 : 3);
                const Plan *p = plans;
                while (p->d < width) ++p;
                check(*p, {2, time, heads, width, channels, window}, 0, 1.0f, seed++);
            }
    // Narrow heads on wide kernels, unaligned memory, windows that end inside a tile, large scores.
    check(plans[2], {1, 130, 1, 40, 40, 70}, 0, 1.0f, seed++);
    check(plans[2], {1, 100, 3, 24, 72, 63}, 0, 1.0f, seed++);
    check(plans[1], {1, 131, 1, 64, 64, 64}, 1, 1.0f, seed++);
    check(plans[0], {3, 65, 5, 8, 40, 31}, 0, 1.0f, seed++);
    check(plans[0], {1, 200, 1, 1, 1, 100}, 0, 1.0f, seed++);
    check(plans[2], {1, 200, 1, 128, 128, 127}, 0, 4.0f, seed++);
    check(plans[1], {1, 260, 1, 64, 64, 2147483647}, 0, 4.0f, seed++);
    printf(failures ? "%d cases FAIL\n" : "all cases pass\n", failures);
#ifdef __CUDACC__
    if (!quick) {
        measure(plans[2], {32, 2048, 4, 128, 512, 1024});
        measure(plans[2], {32, 2048, 4, 128, 512, 2048});
        measure(plans[2], {64, 1024, 6, 128, 768, 1024});
        measure(plans[1], {32, 2048, 8, 64, 512, 1024});
        measure(plans[1], {32, 2048, 8, 64, 512, 2048});
        measure(plans[0], {32, 2048, 16, 32, 512, 1024});
    }
#endif
    (void)quick;
    return failures ? 1 : 0;
}
