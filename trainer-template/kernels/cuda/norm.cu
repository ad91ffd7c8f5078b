// RMS norm without gains, alone and after rotary embeddings. One warp a token, or a head of one.
#include "numbers.h"

static constexpr float EPS = 1.1920929e-7f;

__device__ __forceinline__ int warp_of_grid() {
    return blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
}

template <int V>
__device__ __forceinline__ void norm_row(const bf16 *x, bf16 *y, int width) {
    int lane = threadIdx.x % 32;
    float a[V], squares = 0.0f;
    for (int at = lane * V; at < width; at += 32 * V) {
        load(x + at, a);
#pragma unroll
        for (int i = 0; i < V; i++) squares += a[i] * a[i];
    }
    float scale = rsqrtf(warp_sum(squares) / width + EPS);
    for (int at = lane * V; at < width; at += 32 * V) {
        load(x + at, a);
#pragma unroll
        for (int i = 0; i < V; i++) a[i] *= scale;
        store(y + at, a);
    }
}

extern "C" __global__ void rms_norm(const bf16 *x, bf16 *y, int tokens, int width) {
    int token = warp_of_grid();
    if (token >= tokens) return;
    x += (long long)token * width;
    y += (long long)token * width;
    if (width % 8 == 0) norm_row<8>(x, y, width);
    else norm_row<1>(x, y, width);
}

// d_x = r d_y - x r³ mean(x d_y), r = 1 / rms(x)
template <int V>
__device__ __forceinline__ void norm_row_backward(const bf16 *x, const bf16 *d_y, bf16 *d_x, int more,
                                                  int width) {
    int lane = threadIdx.x % 32;
    float a[V], d[V], old[V], squares = 0.0f, dot = 0.0f;
    for (int at = lane * V; at < width; at += 32 * V) {
        load(x + at, a);
        load(d_y + at, d);
#pragma unroll
        for (int i = 0; i < V; i++) {
            squares += a[i] * a[i];
            dot += a[i] * d[i];
        }
    }
    float scale = rsqrtf(warp_sum(squares) / width + EPS);
    float pull = scale * scale * scale * warp_sum(dot) / width;
    for (int at = lane * V; at < width; at += 32 * V) {
        load(x + at, a);
        load(d_y + at, d);
#pragma unroll
        for (int i = 0; i < V; i++) old[i] = 0.0f;
        if (more) load(d_x + at, old);
#pragma unroll
        for (int i = 0; i < V; i++) old[i] += scale * d[i] - pull * a[i];
        store(d_x + at, old);
    }
}

extern "C" __global__ void rms_norm_backward(const bf16 *x, const bf16 *d_y, bf16 *d_x, int more, int tokens,
                                         int width) {
    int token = warp_of_grid();
    if (token >= tokens) return;
    long long at = (long long)token * width;
    if (width % 8 == 0) norm_row_backward<8>(x + at, d_y + at, d_x + at, more, width);
    else norm_row_backward<1>(x + at, d_y + at, d_x + at, more, width);
}

// Rotary embeddings of a head's two halves, then the norm. Whoever has a part of the head holds `V`
// channels of each half; a row is a head of a token, `cos` and `sin` are [position][half].
template <int V>
struct Rotary {
    float a[V], b[V], c[V], s[V];

    __device__ __forceinline__ void take(const bf16 *x, const float *cos, const float *sin, int half) {
        load(x, a);
        load(x + half, b);
        load(cos, c);
        load(sin, s);
    }

    __device__ __forceinline__ float squares() const {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < V; i++) sum += a[i] * a[i] + b[i] * b[i];
        return sum;
    }

    __device__ __forceinline__ void put(bf16 *y, float scale, int half) {
#pragma unroll
        for (int i = 0; i < V; i++) {
            float first = scale * (a[i] * c[i] + b[i] * s[i]);
            b[i] = scale * (b[i] * c[i] - a[i] * s[i]);
            a[i] = first;
        }
        store(y, a);
        store(y + half, b);
    }

    // `d` and `e`, gradients of the halves, turned back; their product with what was turned.
    __device__ __forceinline__ float turn_back(const bf16 *d_y, float (&d)[V], float (&e)[V], int half) const {
        load(d_y, d);
        load(d_y + half, e);
        float dot = 0.0f;
#pragma unroll
        for (int i = 0; i < V; i++) {
            float first = d[i] * c[i] - e[i] * s[i];
            e[i] = d[i] * s[i] + e[i] * c[i];
            d[i] = first;
            dot += a[i] * d[i] + b[i] * e[i];
        }
        return dot;
    }

    __device__ __forceinline__ void put_gradient(bf16 *d_x, float (&d)[V], float (&e)[V], float scale,
                                                 float pull, int half) const {
#pragma unroll
        for (int i = 0; i < V; i++) {
            d[i] = scale * d[i] - pull * a[i];
            e[i] = scale * e[i] - pull * b[i];
        }
        store(d_x, d);
        store(d_x + half, e);
    }
};

// Over `lanes` neighbours, a power of two.
__device__ __forceinline__ float lanes_sum(float x, int lanes) {
    for (int step = lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

// A rotation leaves the length as it is.
__device__ __forceinline__ float scale_of(float squares, int half) {
    return rsqrtf(squares / (2 * half) + EPS);
}

// `lanes` threads have a row, eight channels of each half in each; or, if that is zero, a warp.
extern "C" __global__ void rotary(const bf16 *x, const float *cos, const float *sin, bf16 *y, int rows,
                                  int time, int heads, int half, int lanes) {
    int thread = blockIdx.x * blockDim.x + threadIdx.x;
    if (lanes > 0) {
        // Who is past the end still takes part in the sums.
        Rotary<8> held;
        int row = thread / lanes, channel = thread % lanes * 8;
        long long at = (long long)row * 2 * half + channel;
        long long angle = (long long)(row / heads % time) * half + channel;
        float squares = 0.0f;
        if (row < rows) {
            held.take(x + at, cos + angle, sin + angle, half);
            squares = held.squares();
        }
        float scale = scale_of(lanes_sum(squares, lanes), half);
        if (row < rows) held.put(y + at, scale, half);
        return;
    }
    int row = thread / 32;
    if (row >= rows) return;
    Rotary<1> held;
    long long at = (long long)row * 2 * half, angle = (long long)(row / heads % time) * half;
    float squares = 0.0f;
    for (int i = threadIdx.x % 32; i < half; i += 32) {
        held.take(x + at + i, cos + angle + i, sin + angle + i, half);
        squares += held.squares();
    }
    float scale = scale_of(warp_sum(squares), half);
    for (int i = threadIdx.x % 32; i < half; i += 32) {
        held.take(x + at + i, cos + angle + i, sin + angle + i, half);
        held.put(y + at + i, scale, half);
    }
}

// `d_x` may be `d_y`.
extern "C" __global__ void rotary_backward(const bf16 *x, const float *cos, const float *sin,
                                           const bf16 *d_y, bf16 *d_x, int rows, int time, int heads,
                                           int half, int lanes) {
    int thread = blockIdx.x * blockDim.x + threadIdx.x;
    if (lanes > 0) {
        Rotary<8> held;
        float d[8], e[8], squares = 0.0f, dot = 0.0f;
        int row = thread / lanes, channel = thread % lanes * 8;
        long long at = (long long)row * 2 * half + channel;
        long long angle = (long long)(row / heads % time) * half + channel;
        if (row < rows) {
            held.take(x + at, cos + angle, sin + angle, half);
            dot = held.turn_back(d_y + at, d, e, half);
            squares = held.squares();
        }
        float scale = scale_of(lanes_sum(squares, lanes), half);
        float pull = scale * scale * scale * lanes_sum(dot, lanes) / (2 * half);
        if (row < rows) held.put_gradient(d_x + at, d, e, scale, pull, half);
        return;
    }
    int row = thread / 32;
    if (row >= rows) return;
    Rotary<1> held;
    float d[1], e[1], squares = 0.0f, dot = 0.0f;
    long long at = (long long)row * 2 * half, angle = (long long)(row / heads % time) * half;
    for (int i = threadIdx.x % 32; i < half; i += 32) {
        held.take(x + at + i, cos + angle + i, sin + angle + i, half);
        dot += held.turn_back(d_y + at + i, d, e, half);
        squares += held.squares();
    }
    float scale = scale_of(warp_sum(squares), half);
    float pull = scale * scale * scale * warp_sum(dot) / (2 * half);
    for (int i = threadIdx.x % 32; i < half; i += 32) {
        held.take(x + at + i, cos + angle + i, sin + angle + i, half);
        held.turn_back(d_y + at + i, d, e, half);
        held.put_gradient(d_x + at + i, d, e, scale, pull, half);
    }
}

EXPORT(rms_norm)
EXPORT(rms_norm_backward)
EXPORT(rotary)
EXPORT(rotary_backward)
