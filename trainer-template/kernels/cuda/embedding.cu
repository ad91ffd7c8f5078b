// Rows of a table, and the sums of the gradients of those that were looked up.
#include "numbers.h"

extern "C" __global__ void embedding(const float *table, const uint32_t *ids, bf16 *y, int tokens,
                                     int channels) {
    each((long long)tokens * channels, [&](auto count, long long at) {
        constexpr int V = decltype(count)::value;
        float a[V];
        // A chunk may end in the next row, where the width is not a multiple of eight.
        if (V == 1 || channels % 8 == 0) {
            load(table + (long long)ids[at / channels] * channels + at % channels, a);
        } else {
#pragma unroll
            for (int i = 0; i < V; i++) {
                long long here = at + i;
                a[i] = table[(long long)ids[here / channels] * channels + here % channels];
            }
        }
        store(y + at, a);
    });
}

// Tokens are sorted by their ids: those of `ids[n]` stand at `order[starts[n]]` to
// `order[starts[n + 1] - 1]`. One block an id and 32 * V channels: each of its warps adds up every
// so-manieth of the tokens, then the warps' sums are added, always in the same order.
template <int V>
__device__ __forceinline__ void add_rows(const bf16 *d_y, const uint32_t *order, uint32_t from, uint32_t to,
                                         float *d_row, int channels) {
    __shared__ float parts[8][32 * V + 1];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    int channel = (blockIdx.y * 32 + lane) * V;
    float sum[V], d[V];
#pragma unroll
    for (int i = 0; i < V; i++) sum[i] = 0.0f;
    if (channel < channels) {
#pragma unroll 4
        for (uint32_t n = from + warp; n < to; n += warps) {
            load(d_y + (long long)order[n] * channels + channel, d);
#pragma unroll
            for (int i = 0; i < V; i++) sum[i] += d[i];
        }
    }
#pragma unroll
    for (int i = 0; i < V; i++) parts[warp][lane * V + i] = sum[i];
    __syncthreads();
    int most = to - from < (uint32_t)warps ? (int)(to - from) : warps;
    for (int i = threadIdx.x; i < 32 * V; i += blockDim.x) {
        if (blockIdx.y * 32 * V + i >= channels) break;
        float total = d_row[blockIdx.y * 32 * V + i];
        for (int w = 0; w < most; w++) total += parts[w][i];
        d_row[blockIdx.y * 32 * V + i] = total;
    }
}

extern "C" __global__ void __launch_bounds__(256)
    embedding_backward(const bf16 *d_y, const uint32_t *ids, const uint32_t *starts, const uint32_t *order,
                       float *d_table, int channels) {
    uint32_t from = starts[blockIdx.x], to = starts[blockIdx.x + 1];
    float *d_row = d_table + (long long)ids[blockIdx.x] * channels;
    if (channels % 4 == 0) add_rows<4>(d_y, order, from, to, d_row, channels);
    else add_rows<1>(d_y, order, from, to, d_row, channels);
}

EXPORT(embedding)
EXPORT(embedding_backward)
