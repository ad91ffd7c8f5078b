// What is done number by number: copies in another type, sums of gradients, ReLU², the residual mix.
#include "numbers.h"

extern "C" __global__ void to_bf16(const float *x, bf16 *y, long long n) {
    each(n, [&](auto count, long long at) {
        float a[decltype(count)::value];
        load(x + at, a);
        store(y + at, a);
    });
}

extern "C" __global__ void to_f32(const bf16 *x, float *y, long long n) {
    each(n, [&](auto count, long long at) {
        float a[decltype(count)::value];
        load(x + at, a);
        store(y + at, a);
    });
}

extern "C" __global__ void fill(bf16 *y, float value, long long n) {
    each(n, [&](auto count, long long at) {
        constexpr int V = decltype(count)::value;
        float a[V];
#pragma unroll
        for (int i = 0; i < V; i++) a[i] = value;
        store(y + at, a);
    });
}

// sum += x
extern "C" __global__ void add(bf16 *sum, const bf16 *x, long long n) {
    each(n, [&](auto count, long long at) {
        constexpr int V = decltype(count)::value;
        float a[V], b[V];
        load(sum + at, a);
        load(x + at, b);
#pragma unroll
        for (int i = 0; i < V; i++) a[i] += b[i];
        store(sum + at, a);
    });
}

// sum += x, in f32
extern "C" __global__ void add_f32(float *sum, const float *x, long long n) {
    each(n, [&](auto count, long long at) {
        constexpr int V = decltype(count)::value;
        float a[V], b[V];
        load(sum + at, a);
        load(x + at, b);
#pragma unroll
        for (int i = 0; i < V; i++) a[i] += b[i];
        store(sum + at, a);
    });
}

// One partial sum a block; `finish` adds those up.
extern "C" __global__ void sum_bf16(const bf16 *x, float *partial, long long n) {
    float sum = 0.0f;
    each(n, [&](auto count, long long at) {
        constexpr int V = decltype(count)::value;
        float a[V];
        load(x + at, a);
#pragma unroll
        for (int i = 0; i < V; i++) sum += a[i];
    });
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

extern "C" __global__ void sum_f32(const float *x, float *partial, long long n) {
    float sum = 0.0f;
    each(n, [&](auto count, long long at) {
        constexpr int V = decltype(count)::value;
        float a[V];
        load(x + at, a);
#pragma unroll
        for (int i = 0; i < V; i++) sum += a[i];
    });
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// y = factor * sum(partial), or added to it. One block.
extern "C" __global__ void finish(const float *partial, float *y, int count, float factor, int more) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < count; i += blockDim.x) sum += partial[i];
    sum = factor * block_sum(sum);
    if (threadIdx.x == 0) *y = more ? *y + sum : sum;
}

// As a product, so that NaN stays NaN.
__device__ __forceinline__ float positive(float x) { return x > 0.0f ? x : 0.0f; }

extern "C" __global__ void relu_squared(const bf16 *x, bf16 *y, long long n) {
    each(n, [&](auto count, long long at) {
        constexpr int V = decltype(count)::value;
        float a[V];
        load(x + at, a);
#pragma unroll
        for (int i = 0; i < V; i++) a[i] *= positive(a[i]);
        store(y + at, a);
    });
}

// In place: the gradient of the result becomes that of the argument.
extern "C" __global__ void relu_squared_backward(const bf16 *x, bf16 *d, long long n) {
    each(n, [&](auto count, long long at) {
        constexpr int V = decltype(count)::value;
        float a[V], b[V];
        load(x + at, a);
        load(d + at, b);
#pragma unroll
        for (int i = 0; i < V; i++) b[i] *= 2.0f * positive(a[i]);
        store(d + at, b);
    });
}

// y = a x + b x0, with the factors at `layer` of two vectors.
extern "C" __global__ void mix(const bf16 *x, const bf16 *x0, const float *lambdas,
                               const float *x0_lambdas, int layer, bf16 *y, long long n) {
    float a = lambdas[layer], b = x0_lambdas[layer];
    each(n, [&](auto count, long long at) {
        constexpr int V = decltype(count)::value;
        float s[V], t[V];
        load(x + at, s);
        load(x0 + at, t);
#pragma unroll
        for (int i = 0; i < V; i++) s[i] = a * s[i] + b * t[i];
        store(y + at, s);
    });
}

// Of both inputs and, as a partial sum a block, of both factors. Either gradient of an input may be
// null; one that is there already is added to. `partial` is [2][gridDim.x].
extern "C" __global__ void mix_backward(const bf16 *x, const bf16 *x0, const float *lambdas,
                                        const float *x0_lambdas, int layer, const bf16 *d_y,
                                        bf16 *d_x, int more_x, bf16 *d_x0, int more_x0,
                                        float *partial, long long n) {
    float a = lambdas[layer], b = x0_lambdas[layer];
    float dot = 0.0f, dot0 = 0.0f;
    each(n, [&](auto count, long long at) {
        constexpr int V = decltype(count)::value;
        float s[V], d[V], old[V];
        load(d_y + at, d);
        load(x + at, s);
#pragma unroll
        for (int i = 0; i < V; i++) dot += s[i] * d[i];
        load(x0 + at, s);
#pragma unroll
        for (int i = 0; i < V; i++) dot0 += s[i] * d[i];
        if (d_x) {
#pragma unroll
            for (int i = 0; i < V; i++) old[i] = 0.0f;
            if (more_x) load(d_x + at, old);
#pragma unroll
            for (int i = 0; i < V; i++) old[i] += a * d[i];
            store(d_x + at, old);
        }
        if (d_x0) {
#pragma unroll
            for (int i = 0; i < V; i++) old[i] = 0.0f;
            if (more_x0) load(d_x0 + at, old);
#pragma unroll
            for (int i = 0; i < V; i++) old[i] += b * d[i];
            store(d_x0 + at, old);
        }
    });
    dot = block_sum(dot);
    dot0 = block_sum(dot0);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = dot;
        partial[gridDim.x + blockIdx.x] = dot0;
    }
}

EXPORT(to_bf16)
EXPORT(to_f32)
EXPORT(fill)
EXPORT(add)
EXPORT(add_f32)
EXPORT(sum_bf16)
EXPORT(sum_f32)
EXPORT(finish)
EXPORT(relu_squared)
EXPORT(relu_squared_backward)
EXPORT(mix)
EXPORT(mix_backward)
