// Numbers in memory, and sums over the threads of a warp or a block.
//
// Activations are bf16, all arithmetic is f32. Sums run in an order that follows from the shapes alone,
// never by atomic additions: the same step gives the same bits.
#pragma once

#include "tile.h"

typedef __nv_bfloat16 bf16;

template <class T, int V>
struct alignas(sizeof(T) * V) Chunk {
    T at[V];
};

// `V` numbers from an address that is a multiple of their size: one access of up to 16 bytes.
template <int V>
__device__ __forceinline__ void load(const bf16 *from, float (&x)[V]) {
    Chunk<bf16, V> chunk = *reinterpret_cast<const Chunk<bf16, V> *>(from);
#pragma unroll
    for (int i = 0; i < V; i++) x[i] = __bfloat162float(chunk.at[i]);
}

template <int V>
__device__ __forceinline__ void store(bf16 *to, const float (&x)[V]) {
    Chunk<bf16, V> chunk;
#pragma unroll
    for (int i = 0; i < V; i++) chunk.at[i] = __float2bfloat16(x[i]);
    *reinterpret_cast<Chunk<bf16, V> *>(to) = chunk;
}

template <int V>
__device__ __forceinline__ void load(const float *from, float (&x)[V]) {
    constexpr int W = V < 4 ? V : 4;
#pragma unroll
    for (int i = 0; i < V; i += W) {
        Chunk<float, W> chunk = *reinterpret_cast<const Chunk<float, W> *>(from + i);
#pragma unroll
        for (int j = 0; j < W; j++) x[i + j] = chunk.at[j];
    }
}

template <int V>
__device__ __forceinline__ void store(float *to, const float (&x)[V]) {
    constexpr int W = V < 4 ? V : 4;
#pragma unroll
    for (int i = 0; i < V; i += W) {
        Chunk<float, W> chunk;
#pragma unroll
        for (int j = 0; j < W; j++) chunk.at[j] = x[i + j];
        *reinterpret_cast<Chunk<float, W> *>(to + i) = chunk;
    }
}

template <int N>
struct Count {
    static constexpr int value = N;
};

// Calls `f(Count<V>(), at)` for all of `n` numbers, eight at a time and the last few one by one, over
// all threads of the grid.
template <class F>
__device__ __forceinline__ void each(long long n, F f) {
    long long first = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    long long stride = (long long)gridDim.x * blockDim.x;
    for (long long i = first; i < n / 8; i += stride) f(Count<8>(), i * 8);
    for (long long i = n / 8 * 8 + first; i < n; i += stride) f(Count<1>(), i);
}

// The same for one of a stack of matrices: where their size is no multiple of eight, only the first of
// them starts where eight numbers may be read at once.
template <class F>
__device__ __forceinline__ void each_stacked(long long n, F f) {
    if (n % 8 == 0) return each(n, f);
    long long first = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    long long stride = (long long)gridDim.x * blockDim.x;
    for (long long i = first; i < n; i += stride) f(Count<1>(), i);
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

// Every thread of the block gets the sum. All of them have to call.
__device__ __forceinline__ float block_sum(float x) {
    __shared__ float parts[32];
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    int lane = threadIdx.x % 32;
    return warp_sum(lane < (int)(blockDim.x / 32) ? parts[lane] : 0.0f);
}

__device__ __forceinline__ float block_max(float x) {
    __shared__ float parts[32];
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    int lane = threadIdx.x % 32;
    return warp_max(parts[lane < (int)(blockDim.x / 32) ? lane : 0]);
}

// tanh by one exponential, good to some roundings of f32 where the argument is not tiny.
__device__ __forceinline__ float tanh_of(float x) {
    float e = __expf(2.0f * fminf(fabsf(x), 15.0f));
    float y = __fdividef(e - 1.0f, e + 1.0f);
    // A NaN stays one: fminf has dropped it.
    return x != x ? x : copysignf(y, x);
}
