// Rows of logits: soft cap, cross-entropy and its gradient. One block a row.
#include "numbers.h"

// The logarithm of the total of exp(capped logit). Logits are read three times, from the cache.
__device__ __forceinline__ float log_total(const float *z, int vocab, float cap) {
    float inverse = 1.0f / cap, highest = -INFINITY, total = 0.0f;
    bool broken = false;
    for (int i = threadIdx.x; i < vocab; i += blockDim.x) {
        broken |= z[i] != z[i];
        highest = fmaxf(highest, z[i]);
    }
    highest = cap * tanh_of(block_max(highest) * inverse);
    for (int i = threadIdx.x; i < vocab; i += blockDim.x) {
        total += __expf(cap * tanh_of(z[i] * inverse) - highest);
    }
    // A maximum drops a NaN, a sum does not.
    return highest + logf(block_sum(broken ? NAN : total));
}

extern "C" __global__ void row_nats(const float *logits, const uint32_t *targets, float *nats, int vocab,
                                    float cap) {
    const float *z = logits + (long long)blockIdx.x * vocab;
    float total = log_total(z, vocab, cap);
    if (threadIdx.x == 0) nats[blockIdx.x] = total - cap * tanh_of(z[targets[blockIdx.x]] / cap);
}

// And the gradient of `slope` times the sum of all costs. Logits are read once where a thread can hold
// its part of a row, `CHUNKS` times four of them.
template <int CHUNKS>
__device__ __forceinline__ void row_loss_held(const float *z, int target, float *nats, bf16 *d, int vocab,
                                              float cap, float slope) {
    float tanh[CHUNKS][4], share[CHUNKS][4], inverse = 1.0f / cap, highest = -INFINITY, total = 0.0f;
    bool broken = false;
#pragma unroll
    for (int n = 0; n < CHUNKS; n++) {
        int at = 4 * (threadIdx.x + n * blockDim.x);
        if (at >= vocab) break;
        load(z + at, tanh[n]);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            broken |= tanh[n][i] != tanh[n][i];
            tanh[n][i] = tanh_of(tanh[n][i] * inverse);
            highest = fmaxf(highest, tanh[n][i]);
        }
    }
    highest = cap * block_max(highest);
#pragma unroll
    for (int n = 0; n < CHUNKS; n++) {
        if (4 * (int)(threadIdx.x + n * blockDim.x) >= vocab) break;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            share[n][i] = __expf(cap * tanh[n][i] - highest);
            total += share[n][i];
        }
    }
    total = block_sum(broken ? NAN : total);
    float scale = 1.0f / total;
#pragma unroll
    for (int n = 0; n < CHUNKS; n++) {
        int at = 4 * (threadIdx.x + n * blockDim.x);
        if (at >= vocab) break;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (at + i == target) *nats = highest + logf(total) - cap * tanh[n][i];
            share[n][i] = share[n][i] * scale - (at + i == target ? 1.0f : 0.0f);
            share[n][i] *= slope * (1.0f - tanh[n][i] * tanh[n][i]);
        }
        store(d + at, share[n]);
    }
}

__device__ __forceinline__ void row_loss_read_again(const float *z, int target, float *nats, bf16 *d, int vocab,
                                                    float cap, float slope) {
    float total = log_total(z, vocab, cap), inverse = 1.0f / cap;
    if (threadIdx.x == 0) *nats = total - cap * tanh_of(z[target] * inverse);
    for (int at = threadIdx.x; at < vocab; at += blockDim.x) {
        float tanh = tanh_of(z[at] * inverse);
        float share = __expf(cap * tanh - total) - (at == target ? 1.0f : 0.0f);
        d[at] = __float2bfloat16(slope * share * (1.0f - tanh * tanh));
    }
}

extern "C" __global__ void __launch_bounds__(1024)
    row_loss(const float *logits, const uint32_t *targets, float *nats, bf16 *d_logits, int vocab, float cap,
             float slope) {
    const float *z = logits + (long long)blockIdx.x * vocab;
    bf16 *d = d_logits + (long long)blockIdx.x * vocab;
    int target = targets[blockIdx.x];
    nats += blockIdx.x;
    if (vocab % 4 != 0 || vocab > 16 * (int)blockDim.x) row_loss_read_again(z, target, nats, d, vocab, cap, slope);
    else if (vocab > 8 * (int)blockDim.x) row_loss_held<4>(z, target, nats, d, vocab, cap, slope);
    else row_loss_held<2>(z, target, nats, d, vocab, cap, slope);
}

// In place.
extern "C" __global__ void soft_cap(float *logits, float cap, int count) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) logits[i] = cap * tanh_of(logits[i] / cap);
}

EXPORT(row_nats)
EXPORT(row_loss)
EXPORT(soft_cap)
