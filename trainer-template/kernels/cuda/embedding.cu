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

// Tokens are sorted by their ids and cut into runs of one id: run `n` is `order[starts[n]]` to
// `order[starts[n + 1] - 1]`, short enough for a warp. The sum of an id's only run is added to the row
// `targets[n]` of the table; of an id with more, it is put into the row `targets[n] - PARTIAL` of
// `partial`, and `embedding_finish` adds those up. So every sum runs in an order that the tokens settle.
static constexpr uint32_t PARTIAL = 0x80000000u;

template <int V>
__device__ __forceinline__ void add_run(const bf16 *d_y, const uint32_t *order, uint32_t from, uint32_t to,
                                        float *row, bool more, int channel, int channels) {
    if (channel >= channels) return;
    float sum[V], d[V];
#pragma unroll
    for (int i = 0; i < V; i++) sum[i] = 0.0f;
    if (more) load(row + channel, sum);
#pragma unroll 8
    for (uint32_t n = from; n < to; n++) {
        load(d_y + (long long)order[n] * channels + channel, d);
#pragma unroll
        for (int i = 0; i < V; i++) sum[i] += d[i];
    }
    store(row + channel, sum);
}

// One warp a run and 128 channels, or 32 where four do not lie well.
extern "C" __global__ void embedding_backward(const bf16 *d_y, const uint32_t *starts, const uint32_t *targets,
                                              const uint32_t *order, float *d_table, float *partial, int runs,
                                              int channels) {
    int run = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (run >= runs) return;
    uint32_t from = starts[run], to = starts[run + 1], target = targets[run];
    bool only = target < PARTIAL;
    float *row = only ? d_table + (long long)target * channels
                      : partial + (long long)(target - PARTIAL) * channels;
    if (channels % 4 == 0) {
        add_run<4>(d_y, order, from, to, row, only, (blockIdx.y * 32 + lane) * 4, channels);
    } else {
        add_run<1>(d_y, order, from, to, row, only, blockIdx.y * 32 + lane, channels);
    }
}

// One block an id: the rows `firsts[n]` to `firsts[n + 1] - 1` of `partial` are its.
extern "C" __global__ void embedding_finish(const float *partial, const uint32_t *ids, const uint32_t *firsts,
                                            float *d_table, int channels) {
    float *row = d_table + (long long)ids[blockIdx.x] * channels;
    uint32_t from = firsts[blockIdx.x], to = firsts[blockIdx.x + 1];
    for (int channel = threadIdx.x; channel < channels; channel += blockDim.x) {
        float sum = row[channel];
#pragma unroll 8
        for (uint32_t n = from; n < to; n++) sum += partial[(long long)n * channels + channel];
        row[channel] = sum;
    }
}

EXPORT(embedding)
EXPORT(embedding_backward)
EXPORT(embedding_finish)
