// The first channels of a token, and values that enter through a gate of each head.
#include "numbers.h"

extern "C" __global__ void first_channels(const bf16 *x, bf16 *y, int tokens, int channels, int count) {
    long long n = (long long)tokens * count, stride = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) {
        y[i] = x[i / count * channels + i % count];
    }
}

// d_x, which is there already, gets the gradient added.
extern "C" __global__ void first_channels_backward(const bf16 *d_y, bf16 *d_x, int tokens, int channels,
                                                   int count) {
    long long n = (long long)tokens * count, stride = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) {
        bf16 *to = d_x + i / count * channels + i % count;
        *to = __float2bfloat16(__bfloat162float(*to) + __bfloat162float(d_y[i]));
    }
}

template <int V>
__device__ __forceinline__ void gate_row(const bf16 *v, const bf16 *values, float gate, bf16 *y,
                                         int width) {
    float a[V], b[V];
    for (int at = threadIdx.x % 32 * V; at < width; at += 32 * V) {
        load(v + at, a);
        load(values + at, b);
#pragma unroll
        for (int i = 0; i < V; i++) a[i] += gate * b[i];
        store(y + at, a);
    }
}

// y = v + 2 sigmoid(gate) values; one warp a head of a token, `rows` of them.
extern "C" __global__ void gated_add(const bf16 *v, const bf16 *values, const bf16 *gates, bf16 *y,
                                     int rows, int width) {
    int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= rows) return;
    // 2 sigmoid(z) = 1 + tanh(z / 2)
    float gate = 1.0f + tanh_of(0.5f * __bfloat162float(gates[row]));
    long long at = (long long)row * width;
    if (width % 4 == 0) gate_row<4>(v + at, values + at, gate, y + at, width);
    else gate_row<1>(v + at, values + at, gate, y + at, width);
}

template <int V>
__device__ __forceinline__ float gate_row_backward(const bf16 *values, float gate, const bf16 *d_y,
                                                   bf16 *d_values, int width) {
    float a[V], d[V], dot = 0.0f;
    for (int at = threadIdx.x % 32 * V; at < width; at += 32 * V) {
        load(values + at, a);
        load(d_y + at, d);
#pragma unroll
        for (int i = 0; i < V; i++) {
            dot += a[i] * d[i];
            d[i] *= gate;
        }
        store(d_values + at, d);
    }
    return warp_sum(dot);
}

extern "C" __global__ void gated_add_backward(const bf16 *values, const bf16 *gates, const bf16 *d_y,
                                              bf16 *d_values, bf16 *d_gates, int rows, int width) {
    int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= rows) return;
    float tanh = tanh_of(0.5f * __bfloat162float(gates[row]));
    long long at = (long long)row * width;
    float dot = width % 4 == 0
                    ? gate_row_backward<4>(values + at, 1.0f + tanh, d_y + at, d_values + at, width)
                    : gate_row_backward<1>(values + at, 1.0f + tanh, d_y + at, d_values + at, width);
    if (threadIdx.x % 32 == 0) d_gates[row] = __float2bfloat16(0.5f * (1.0f - tanh * tanh) * dot);
}

EXPORT(first_channels)
EXPORT(first_channels_backward)
EXPORT(gated_add)
EXPORT(gated_add_backward)
