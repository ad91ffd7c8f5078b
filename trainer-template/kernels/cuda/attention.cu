// Causal attention over a sliding window, forward and backward: FlashAttention-2 (Dao, arXiv
// 2307.08691) on tensor cores, bf16 operands, f32 sums.
//
// q, k, v, y, dy, dq, dk, dv: bf16 [token][channels]; token = sequence * time + position; head h is
// channels [h * width, (h + 1) * width); `channels` is the distance between rows in elements.
// Query i sees keys j with j <= i and i - j <= window. log_totals, delta: f32
// [sequence * heads + head][time]. `scale` is positive. Every element of a head is written, nothing
// beside it. No atomics: the same input gives the same bits.
//
// A kernel named _D takes any width <= D (columns past it are zeros in shared memory). 16-byte
// copies need width % 8 == 0, channels % 8 == 0 and 16-byte pointers; otherwise a slow path.
//
// LAUNCH. grid.x = ceil(time / tile), grid.y = sequences * heads, dynamic shared memory as listed
// (raise the kernel's limit first: it is over 48 KB).
//
//   kernel                        D    threads   tile          steps of     shared bytes
//   attention_forward_D           32   128       128 queries   64 keys      24576
//                                 64   128       128 queries   64 keys      49152
//                                 128  128       128 queries   64 keys      98304
//   attention_backward_keys_D     32   128       64 keys       64 queries   33792
//                                 64   128       64 keys       64 queries   58368
//                                 128  128       64 keys       64 queries   107520
//   attention_backward_queries_D  32   128       128 queries   32 keys      24576
//                                 64   128       128 queries   32 keys      49152
//                                 128  128       128 queries   32 keys      98304
//   attention_delta: 256 threads, any grid.x (good: ceil(sequences * time * heads / 16)), grid.y 1,
//   no shared memory.
//
// Backward: attention_delta first, then the other two in any order.

#include "tile.h"

#include <string.h>

// The table, one place to change it. _BLOCKS is how many blocks should fit one multiprocessor.
#ifndef ATTENTION_FORWARD_128_QUERIES
#define ATTENTION_FORWARD_128_QUERIES 128
#define ATTENTION_FORWARD_128_KEYS 64
#define ATTENTION_FORWARD_128_WARPS 4
#define ATTENTION_FORWARD_128_BLOCKS 2
#endif
#ifndef ATTENTION_FORWARD_64_QUERIES
#define ATTENTION_FORWARD_64_QUERIES 128
#define ATTENTION_FORWARD_64_KEYS 64
#define ATTENTION_FORWARD_64_WARPS 4
#define ATTENTION_FORWARD_64_BLOCKS 3
#endif
#ifndef ATTENTION_FORWARD_32_QUERIES
#define ATTENTION_FORWARD_32_QUERIES 128
#define ATTENTION_FORWARD_32_KEYS 64
#define ATTENTION_FORWARD_32_WARPS 4
#define ATTENTION_FORWARD_32_BLOCKS 3
#endif
// Two warps for every 32 keys, so warps = keys / 16.
#ifndef ATTENTION_BACKWARD_KEYS_128_KEYS
#define ATTENTION_BACKWARD_KEYS_128_KEYS 64
#define ATTENTION_BACKWARD_KEYS_128_QUERIES 64
#define ATTENTION_BACKWARD_KEYS_128_BLOCKS 2
#endif
#ifndef ATTENTION_BACKWARD_KEYS_64_KEYS
#define ATTENTION_BACKWARD_KEYS_64_KEYS 64
#define ATTENTION_BACKWARD_KEYS_64_QUERIES 64
#define ATTENTION_BACKWARD_KEYS_64_BLOCKS 3
#endif
#ifndef ATTENTION_BACKWARD_KEYS_32_KEYS
#define ATTENTION_BACKWARD_KEYS_32_KEYS 64
#define ATTENTION_BACKWARD_KEYS_32_QUERIES 64
#define ATTENTION_BACKWARD_KEYS_32_BLOCKS 4
#endif
#ifndef ATTENTION_BACKWARD_QUERIES_128_QUERIES
#define ATTENTION_BACKWARD_QUERIES_128_QUERIES 128
#define ATTENTION_BACKWARD_QUERIES_128_KEYS 32
#define ATTENTION_BACKWARD_QUERIES_128_WARPS 4
#define ATTENTION_BACKWARD_QUERIES_128_BLOCKS 2
#endif
#ifndef ATTENTION_BACKWARD_QUERIES_64_QUERIES
#define ATTENTION_BACKWARD_QUERIES_64_QUERIES 128
#define ATTENTION_BACKWARD_QUERIES_64_KEYS 32
#define ATTENTION_BACKWARD_QUERIES_64_WARPS 4
#define ATTENTION_BACKWARD_QUERIES_64_BLOCKS 3
#endif
#ifndef ATTENTION_BACKWARD_QUERIES_32_QUERIES
#define ATTENTION_BACKWARD_QUERIES_32_QUERIES 128
#define ATTENTION_BACKWARD_QUERIES_32_KEYS 32
#define ATTENTION_BACKWARD_QUERIES_32_WARPS 4
#define ATTENTION_BACKWARD_QUERIES_32_BLOCKS 4
#endif
#define ATTENTION_DELTA_THREADS 256

// Dynamic shared memory in bytes.
constexpr int attention_forward_shared(int d, int queries, int keys) { return 2 * d * (queries + 4 * keys); }
constexpr int attention_backward_keys_shared(int d, int keys, int queries) {
    return 2 * d * (2 * keys + 4 * queries) + 2 * keys * queries + 16 * queries;
}
constexpr int attention_backward_queries_shared(int d, int queries, int keys) {
    return 2 * d * (2 * queries + 4 * keys);
}

#define ATTENTION_LOG2E 1.4426950408889634f
#define ATTENTION_INFINITY __builtin_huge_valf()

// 16 and 8 bytes moved in one instruction.
struct alignas(16) AttentionSixteen {
    uint32_t word[4];
};
struct alignas(8) AttentionPair {
    float x, y;
};

static __device__ __forceinline__ float attention_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// Where 8 channels (a chunk of 16 bytes) of a row lie in a tile of D channels. The turn of the
// chunks makes any 8 rows of one chunk fall on 32 different banks, which is what one step of
// ldmatrix reads. It repeats every 8 rows, so moving by 16 rows adds a constant, and moving by 2m
// chunks from chunk 0 or 1 is an exclusive or with 32m.
template <int D> static __device__ __forceinline__ uint32_t attention_place(int row, int chunk) {
    int turn = D >= 64 ? row & 7 : (row >> 1) & 3;
    return static_cast<uint32_t>(row * (2 * D) + ((chunk ^ turn) << 4));
}

static __device__ __forceinline__ bool attention_aligned(const void *pointer) {
    return (reinterpret_cast<uintptr_t>(pointer) & 15) == 0;
}

// Rows first .. first + ROWS of a head into a tile; zeros past `time` and past `width`.
template <int D, int ROWS, int THREADS>
static __device__ __forceinline__ void attention_load(unsigned char *tile, const __nv_bfloat16 *from, int first,
                                                      int time, int width, int channels, bool wide) {
    constexpr int CHUNKS = D / 8;
    static_assert(ROWS * CHUNKS % THREADS == 0 && THREADS % (8 * CHUNKS) == 0, "a thread keeps its chunk and turn");
    const int chunk = threadIdx.x % CHUNKS;
    const int start = threadIdx.x / CHUNKS;
    if (wide) {
        // Additions only from row to row: this runs between the products of every tile.
        unsigned char *to = tile + attention_place<D>(start, chunk);
        const __nv_bfloat16 *source = from + static_cast<long long>(first + start) * channels + chunk * 8;
        const long long step = static_cast<long long>(THREADS / CHUNKS) * channels;
        const int rows = chunk * 8 < width ? time - first - start : 0;
#pragma unroll
        for (int i = 0; i < ROWS * CHUNKS / THREADS; ++i) {
            tile_copy16(to + i * (THREADS / CHUNKS) * 2 * D, source, i * (THREADS / CHUNKS) < rows);
            source += step;
        }
    } else {
#pragma unroll 1
        for (int i = 0; i < ROWS * CHUNKS / THREADS; ++i) {
            const int row = start + i * (THREADS / CHUNKS);
            __nv_bfloat16 *to = reinterpret_cast<__nv_bfloat16 *>(tile + attention_place<D>(row, chunk));
            const __nv_bfloat16 *source = from + static_cast<long long>(first + row) * channels;
#pragma unroll 1
            for (int e = 0; e < 8; ++e) {
                const int c = chunk * 8 + e;
                to[e] = first + row < time && c < width ? source[c] : __float2bfloat16(0.0f);
            }
        }
    }
}

// A tile back to rows first .. first + ROWS of a head.
template <int D, int ROWS, int THREADS>
static __device__ __forceinline__ void attention_store(__nv_bfloat16 *to, const unsigned char *tile, int first,
                                                       int time, int width, int channels, bool wide) {
    constexpr int CHUNKS = D / 8;
    const int chunk = threadIdx.x % CHUNKS;
    const int start = threadIdx.x / CHUNKS;
#pragma unroll 1
    for (int row = start; row < ROWS; row += THREADS / CHUNKS) {
        if (first + row >= time) break;
        const unsigned char *source = tile + attention_place<D>(row, chunk);
        __nv_bfloat16 *target = to + static_cast<long long>(first + row) * channels + chunk * 8;
        if (wide) {
            if (chunk * 8 < width)
                *reinterpret_cast<AttentionSixteen *>(target) = *reinterpret_cast<const AttentionSixteen *>(source);
        } else {
#pragma unroll 1
            for (int e = 0; e < 8 && chunk * 8 + e < width; ++e)
                target[e] = reinterpret_cast<const __nv_bfloat16 *>(source)[e];
        }
    }
}

// out (16M x 8N) += left right^T, both tiles of rows of D channels in shared memory. `left` and
// `right` point at the first row; a_place and b_place are this lane's place in 16 rows.
template <int D, int M, int N>
static __device__ __forceinline__ void attention_scores(float (&out)[M][N][4], const unsigned char *left,
                                                        const unsigned char *right, uint32_t a_place,
                                                        uint32_t b_place) {
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
        uint32_t a[M][4];
#pragma unroll
        for (int m = 0; m < M; ++m) tile_load4(a[m], left + m * 32 * D + (a_place ^ (k * 32)));
#pragma unroll
        for (int n = 0; n < N / 2; ++n) {
            uint32_t b[4];
            tile_load4(b, right + n * 32 * D + (b_place ^ (k * 32)));
#pragma unroll
            for (int m = 0; m < M; ++m) {
                tile_mma(out[m][2 * n], a[m], b);
                tile_mma(out[m][2 * n + 1], a[m], b + 2);
            }
        }
    }
}

// out (16M x D) += weights (16M x 8N, rounded to bf16) right, `right` a tile of 8N rows. The sums
// of one product lie in a lane just as the left operand of the next wants them, so the weights
// never leave the registers.
template <int D, int M, int N>
static __device__ __forceinline__ void attention_mix(float (&out)[M][D / 8][4], const float (&weights)[M][N][4],
                                                     const unsigned char *right, uint32_t a_place) {
#pragma unroll
    for (int k = 0; k < N / 2; ++k) {
        uint32_t a[M][4];
#pragma unroll
        for (int m = 0; m < M; ++m) {
            a[m][0] = tile_pack(weights[m][2 * k][0], weights[m][2 * k][1]);
            a[m][1] = tile_pack(weights[m][2 * k][2], weights[m][2 * k][3]);
            a[m][2] = tile_pack(weights[m][2 * k + 1][0], weights[m][2 * k + 1][1]);
            a[m][3] = tile_pack(weights[m][2 * k + 1][2], weights[m][2 * k + 1][3]);
        }
#pragma unroll
        for (int c = 0; c < D / 16; ++c) {
            uint32_t b[4];
            tile_load4_transposed(b, right + k * 32 * D + (a_place ^ (c * 32)));
#pragma unroll
            for (int m = 0; m < M; ++m) {
                tile_mma(out[m][2 * c], a[m], b);
                tile_mma(out[m][2 * c + 1], a[m], b + 2);
            }
        }
    }
}

template <int M, int N> static __device__ __forceinline__ void attention_zero(float (&x)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) x[m][n][e] = 0.0f;
}

// A warp's sums, rounded to bf16, into rows first .. of a tile; rows g and g + 8 of each 16 are
// multiplied by factor[m][0] and factor[m][1].
template <int D, int M>
static __device__ __forceinline__ void attention_put(unsigned char *tile, int first, const float (&x)[M][D / 8][4],
                                                     const float (&factor)[M][2]) {
    const int g = (threadIdx.x % 32) / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int n = 0; n < D / 8; ++n)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int row = first + m * 16 + h * 8 + g;
                *reinterpret_cast<uint32_t *>(tile + attention_place<D>(row, n) + t * 4) =
                    tile_pack(x[m][n][2 * h] * factor[m][h], x[m][n][2 * h + 1] * factor[m][h]);
            }
}

// Whether element e of sums (m, n) is a pair that sees each other; `apart` is the i - j of the lane's
// first element, and i runs along the rows. i - j as an unsigned number is large where j > i, so
// one comparison does both ends of the band.
static __device__ __forceinline__ bool attention_sees(int apart, int window, int m, int n, int e) {
    return static_cast<uint32_t>(apart + m * 16 + (e / 2) * 8 - n * 8 - (e & 1)) <= static_cast<uint32_t>(window);
}

// The highest score of each of this lane's rows, its pairs outside the band made minus infinity if
// EDGE. Two copies of the code, as most tiles lie inside the band and need no mask.
template <bool EDGE, int M, int N>
static __device__ __forceinline__ void attention_highest(float (&s)[M][N][4], float (&high)[M][2], int apart,
                                                         int window) {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            high[m][h] = -ATTENTION_INFINITY;
#pragma unroll
            for (int n = 0; n < N; ++n)
#pragma unroll
                for (int e = 2 * h; e < 2 * h + 2; ++e) {
                    if (EDGE && !attention_sees(apart, window, m, n, e)) s[m][n][e] = -ATTENTION_INFINITY;
                    high[m][h] = fmaxf(high[m][h], s[m][n][e]);
                }
        }
}

// Scores of some keys to weights, in place, moving the sums so far to the new top where needed.
template <int D, int M, int N>
static __device__ __forceinline__ void attention_soften(float (&s)[M][N][4], float (&out)[M][D / 8][4],
                                                        float (&top)[M][2], float (&total)[M][2],
                                                        float (&high)[M][2], float factor) {
    // Any shift is right as long as nothing overflows, so the sums are only moved to a new one when
    // the top has risen by more than 2^8. A row that has seen nothing yet stays at minus infinity.
    bool risen = false;
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            high[m][h] = fmaxf(high[m][h], __shfl_xor_sync(0xffffffffu, high[m][h], 1));
            high[m][h] = fmaxf(high[m][h], __shfl_xor_sync(0xffffffffu, high[m][h], 2));
            risen = risen || high[m][h] * factor > top[m][h] * factor + 8.0f;
        }
    if (risen) {
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const bool moves = high[m][h] * factor > top[m][h] * factor + 8.0f;
                const float shrink = moves ? tile_exp2((top[m][h] - high[m][h]) * factor) : 1.0f;
                top[m][h] = moves ? high[m][h] : top[m][h];
                total[m][h] *= shrink;
#pragma unroll
                for (int n = 0; n < D / 8; ++n) out[m][n][2 * h] *= shrink, out[m][n][2 * h + 1] *= shrink;
            }
    }
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const float shift = top[m][h] == -ATTENTION_INFINITY ? 0.0f : top[m][h] * factor;
            float sum = 0.0f;
#pragma unroll
            for (int n = 0; n < N; ++n)
#pragma unroll
                for (int e = 2 * h; e < 2 * h + 2; ++e) {
                    const float p = tile_exp2(s[m][n][e] * factor - shift);
                    s[m][n][e] = p;
                    sum += p;
                }
            total[m][h] += sum;
        }
}

// One block: QUERIES queries of one head against all the keys they see, KEYS at a time, the next
// keys and values on their way while these are worked on. A warp owns QUERIES / WARPS queries; with
// 32 of them every operand read from shared memory serves two products, without which shared
// memory, not the tensor cores, would set the pace.
template <int D, int QUERIES, int KEYS, int WARPS>
static __device__ __forceinline__ void
attention_forward(const __nv_bfloat16 *q, const __nv_bfloat16 *k, const __nv_bfloat16 *v, __nv_bfloat16 *y,
                  float *log_totals, int time, int heads, int width, int channels, int window, float scale) {
    constexpr int THREADS = WARPS * 32, MINE = QUERIES / WARPS, M = MINE / 16, N = KEYS / 8, ROW = 2 * D;
    static_assert(QUERIES % (WARPS * 16) == 0 && KEYS % 16 == 0, "whole tiles");
    SHARED_MEMORY(shared);
    unsigned char *const q_tile = shared;
    unsigned char *const kv_tiles = shared + QUERIES * ROW;

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int sequence = blockIdx.y / heads, head = blockIdx.y % heads;
    // The last queries see most keys: they start first, so that no long block is left for the end.
    const int q0 = (gridDim.x - 1 - blockIdx.x) * QUERIES;
    const size_t base = static_cast<size_t>(sequence) * time * channels + static_cast<size_t>(head) * width;
    q += base, k += base, v += base, y += base;
    log_totals += static_cast<size_t>(blockIdx.y) * time;
    if (window > time) window = time;
    const bool wide = width % 8 == 0 && channels % 8 == 0 && attention_aligned(q) && attention_aligned(k) &&
                      attention_aligned(v) && attention_aligned(y);

    const int first_tile = (q0 > window ? q0 - window : 0) / KEYS;
    const int last_tile = ((q0 + QUERIES < time ? q0 + QUERIES : time) - 1) / KEYS;
    attention_load<D, QUERIES, THREADS>(q_tile, q, q0, time, width, channels, wide);
    attention_load<D, KEYS, THREADS>(kv_tiles, k, first_tile * KEYS, time, width, channels, wide);
    attention_load<D, KEYS, THREADS>(kv_tiles + KEYS * ROW, v, first_tile * KEYS, time, width, channels, wide);
    tile_copy_commit();

    const uint32_t a_place = attention_place<D>(lane & 15, lane >> 4);
    const uint32_t b_place = attention_place<D>((lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1);
    const int row_low = q0 + warp * MINE, row_high = row_low + MINE - 1;
    // Powers of two: exp(scale s) = 2^(factor s).
    const float factor = scale * ATTENTION_LOG2E;

    float out[M][D / 8][4];
    attention_zero(out);
    float top[M][2], total[M][2];
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) top[m][h] = -ATTENTION_INFINITY, total[m][h] = 0.0f;

    for (int tile = first_tile; tile <= last_tile; ++tile) {
        // These keys are here, and all warps are done with the ones before, whose place is free.
        tile_copy_wait<0>();
        __syncthreads();
        const int stage = (tile - first_tile) & 1;
        const unsigned char *k_tile = kv_tiles + stage * (2 * KEYS * ROW), *v_tile = k_tile + KEYS * ROW;
        if (tile < last_tile) {
            unsigned char *next = kv_tiles + (stage ^ 1) * (2 * KEYS * ROW);
            attention_load<D, KEYS, THREADS>(next, k, (tile + 1) * KEYS, time, width, channels, wide);
            attention_load<D, KEYS, THREADS>(next + KEYS * ROW, v, (tile + 1) * KEYS, time, width, channels, wide);
            tile_copy_commit();
        }
        const int k0 = tile * KEYS;
        // A warp whose own queries see none of these keys has nothing to do.
        if (k0 > row_high || row_low - (k0 + KEYS - 1) > window || row_low >= time) continue;

        float s[M][N][4];
        attention_zero(s);
        attention_scores<D, M, N>(s, q_tile + warp * MINE * ROW, k_tile, a_place, b_place);

        const int apart = row_low + g - k0 - t * 2; // i - j of the lane's first element
        float high[M][2];
        if (k0 + KEYS - 1 > row_low || row_high - k0 > window)
            attention_highest<true, M, N>(s, high, apart, window);
        else
            attention_highest<false, M, N>(s, high, apart, window);
        attention_soften<D, M, N>(s, out, top, total, high, factor);
        attention_mix<D, M, N>(out, s, v_tile, a_place);
    }

    // The tile of queries has done its work; the result goes out through it, in whole rows.
    __syncthreads();
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float sum = total[m][h];
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            const int i = row_low + m * 16 + h * 8 + g;
            if (t == 0 && i < time) log_totals[i] = top[m][h] * scale + logf(sum);
            total[m][h] = sum > 0.0f ? 1.0f / sum : 0.0f;
        }
    attention_put<D, M>(q_tile, warp * MINE, out, total);
    __syncthreads();
    attention_store<D, QUERIES, THREADS>(y, q_tile, q0, time, width, channels, wide);
}

// Scores to weights where a row is a key: the totals, of this lane's queries, run along the columns.
template <bool EDGE, int M, int N>
static __device__ __forceinline__ void attention_weigh(float (&s)[M][N][4], const float *totals, int apart,
                                                       int window, float factor) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
        const AttentionPair total = *reinterpret_cast<const AttentionPair *>(totals + n * 8);
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const float p = tile_exp2(s[m][n][e] * factor - (e & 1 ? total.y : total.x));
                const int distance = apart + n * 8 + (e & 1) - m * 16 - (e / 2) * 8;
                s[m][n][e] = !EDGE || static_cast<uint32_t>(distance) <= static_cast<uint32_t>(window) ? p : 0.0f;
            }
    }
}

// One block: KEYS keys of one head and every query that sees them, QUERIES at a time; dk and dv.
//
// Everything is turned round: a row of the scores is a key. Then the weights and their gradients
// are left operands of the second products as they lie in the registers. dk and dv of 32 keys would
// be too many registers for one warp, and with 16 keys shared memory would set the pace, so two
// warps share 32 keys:
//   the first   s = k q^T, p = exp(s), dv += p dy
//   the second  dp = v dy^T, ds = p (dp - delta), dk += ds q
// p passes from the first to the second, lane to lane, through shared memory as bf16.
template <int D, int KEYS, int QUERIES>
static __device__ __forceinline__ void
attention_backward_keys(const __nv_bfloat16 *q, const __nv_bfloat16 *k, const __nv_bfloat16 *v,
                        const __nv_bfloat16 *dy, const float *log_totals, const float *delta, __nv_bfloat16 *dk,
                        __nv_bfloat16 *dv, int time, int heads, int width, int channels, int window, float scale) {
    constexpr int PAIRS = KEYS / 32, THREADS = PAIRS * 64, M = 2, N = QUERIES / 8, ROW = 2 * D;
    static_assert(KEYS % 32 == 0 && QUERIES % 16 == 0 && KEYS >= QUERIES, "whole tiles");
    SHARED_MEMORY(shared);
    unsigned char *const k_tile = shared;
    unsigned char *const v_tile = shared + KEYS * ROW;
    unsigned char *const q_tiles = shared + 2 * KEYS * ROW; // two stages, each queries then dy
    AttentionSixteen *const passed = reinterpret_cast<AttentionSixteen *>(q_tiles + 4 * QUERIES * ROW);
    float *const numbers = reinterpret_cast<float *>(q_tiles + 4 * QUERIES * ROW + 2 * KEYS * QUERIES);

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int pair = warp % PAIRS;
    const bool second = warp >= PAIRS;
    const int sequence = blockIdx.y / heads, head = blockIdx.y % heads;
    const int k0 = blockIdx.x * KEYS; // the first keys see most queries, and start first
    const size_t base = static_cast<size_t>(sequence) * time * channels + static_cast<size_t>(head) * width;
    q += base, k += base, v += base, dy += base, dk += base, dv += base;
    if (window > time) window = time;
    const bool wide = width % 8 == 0 && channels % 8 == 0 && attention_aligned(q) && attention_aligned(k) &&
                      attention_aligned(v) && attention_aligned(dy) && attention_aligned(dk) &&
                      attention_aligned(dv);

    const int first_tile = k0 / QUERIES;
    const int end = k0 + KEYS + window < time ? k0 + KEYS + window : time;
    const int last_tile = (end - 1) / QUERIES;

    // Of each tile of queries: QUERIES logarithms to base 2, fetched by the first warps, then QUERIES
    // deltas, by the second ones. A query past the end has weight 2^-infinity = 0.
    const int fetched = threadIdx.x % KEYS;
    const bool fetches = fetched < QUERIES;
    auto fetch = [&](int tile) {
        const int i = tile * QUERIES + fetched;
        const bool valid = fetches && i < time;
        if (second) return valid ? delta[static_cast<size_t>(blockIdx.y) * time + i] : 0.0f;
        return valid ? log_totals[static_cast<size_t>(blockIdx.y) * time + i] * ATTENTION_LOG2E : ATTENTION_INFINITY;
    };

    attention_load<D, KEYS, THREADS>(k_tile, k, k0, time, width, channels, wide);
    attention_load<D, KEYS, THREADS>(v_tile, v, k0, time, width, channels, wide);
    attention_load<D, QUERIES, THREADS>(q_tiles, q, first_tile * QUERIES, time, width, channels, wide);
    attention_load<D, QUERIES, THREADS>(q_tiles + QUERIES * ROW, dy, first_tile * QUERIES, time, width, channels,
                                        wide);
    tile_copy_commit();
    if (fetches) numbers[(second ? QUERIES : 0) + fetched] = fetch(first_tile);

    const uint32_t a_place = attention_place<D>(lane & 15, lane >> 4);
    const uint32_t b_place = attention_place<D>((lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1);
    const int row_low = k0 + pair * 32, row_high = row_low + 31;
    const float factor = scale * ATTENTION_LOG2E;
    const unsigned char *const left = shared + (second ? KEYS * ROW : 0) + pair * 32 * ROW;
    AttentionSixteen *const slots = passed + pair * (4 * QUERIES) + lane;

    float sums[M][D / 8][4];
    attention_zero(sums);

    for (int tile = first_tile; tile <= last_tile; ++tile) {
        tile_copy_wait<0>();
        __syncthreads();
        const int stage = (tile - first_tile) & 1;
        float next_number = 0.0f;
        if (tile < last_tile) {
            unsigned char *next = q_tiles + (stage ^ 1) * (2 * QUERIES * ROW);
            attention_load<D, QUERIES, THREADS>(next, q, (tile + 1) * QUERIES, time, width, channels, wide);
            attention_load<D, QUERIES, THREADS>(next + QUERIES * ROW, dy, (tile + 1) * QUERIES, time, width,
                                                channels, wide);
            tile_copy_commit();
            next_number = fetch(tile + 1);
        }
        const unsigned char *const here = q_tiles + stage * (2 * QUERIES * ROW);
        const float *const mine = numbers + stage * (2 * QUERIES) + (second ? QUERIES : 0) + t * 2;
        const int q0 = tile * QUERIES;
        // The same for both warps of a pair.
        const bool sees = q0 + QUERIES - 1 >= row_low && q0 - row_high <= window && row_low < time;

        float s[M][N][4];
        attention_zero(s);
        if (sees) {
            attention_scores<D, M, N>(s, left, here + (second ? QUERIES * ROW : 0), a_place, b_place);
            if (!second) {
                const int apart = q0 + t * 2 - row_low - g; // i - j of the lane's first element
                if (q0 < row_high || q0 + QUERIES - 1 - row_low > window)
                    attention_weigh<true, M, N>(s, mine, apart, window, factor);
                else
                    attention_weigh<false, M, N>(s, mine, apart, window, factor);
#pragma unroll
                for (int m = 0; m < M; ++m)
#pragma unroll
                    for (int n = 0; n < N / 2; ++n) {
                        AttentionSixteen word;
                        word.word[0] = tile_pack(s[m][2 * n][0], s[m][2 * n][1]);
                        word.word[1] = tile_pack(s[m][2 * n][2], s[m][2 * n][3]);
                        word.word[2] = tile_pack(s[m][2 * n + 1][0], s[m][2 * n + 1][1]);
                        word.word[3] = tile_pack(s[m][2 * n + 1][2], s[m][2 * n + 1][3]);
                        slots[(m * (N / 2) + n) * 32] = word;
                    }
            }
        }
        if (tile < last_tile && fetches)
            numbers[(stage ^ 1) * (2 * QUERIES) + (second ? QUERIES : 0) + fetched] = next_number;
        __syncthreads();
        if (sees) {
            if (second) {
#pragma unroll
                for (int n = 0; n < N / 2; ++n) {
                    const AttentionPair low = *reinterpret_cast<const AttentionPair *>(mine + n * 16);
                    const AttentionPair high = *reinterpret_cast<const AttentionPair *>(mine + n * 16 + 8);
#pragma unroll
                    for (int m = 0; m < M; ++m) {
                        const AttentionSixteen word = slots[(m * (N / 2) + n) * 32];
#pragma unroll
                        for (int w = 0; w < 4; ++w) {
                            float *const pair_of = &s[m][2 * n + w / 2][(w & 1) * 2];
                            const AttentionPair number = w < 2 ? low : high;
                            pair_of[0] = attention_bits(word.word[w] << 16) * (pair_of[0] - number.x);
                            pair_of[1] = attention_bits(word.word[w] & 0xffff0000u) * (pair_of[1] - number.y);
                        }
                    }
                }
            }
            attention_mix<D, M, N>(sums, s, here + (second ? 0 : QUERIES * ROW), a_place);
        }
    }

    // Out through the tiles of keys and values, once nobody reads them.
    __syncthreads();
    const float last = second ? scale : 1.0f;
    const float factors[M][2] = {{last, last}, {last, last}};
    attention_put<D, M>(shared + (second ? 0 : KEYS * ROW), pair * 32, sums, factors);
    __syncthreads();
    attention_store<D, KEYS, THREADS>(dk, k_tile, k0, time, width, channels, wide);
    attention_store<D, KEYS, THREADS>(dv, v_tile, k0, time, width, channels, wide);
}

// Gradients of the weights to gradients of the scores, in place.
template <bool EDGE, int M, int N>
static __device__ __forceinline__ void attention_turn(const float (&s)[M][N][4], float (&ds)[M][N][4],
                                                      const float (&shift)[M][2], const float (&mean)[M][2], int apart,
                                                      int window, float factor) {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const float p = tile_exp2(s[m][n][e] * factor - shift[m][e / 2]);
                const float turned = p * (ds[m][n][e] - mean[m][e / 2]);
                ds[m][n][e] = !EDGE || attention_sees(apart, window, m, n, e) ? turned : 0.0f;
            }
}

// One block: QUERIES queries of one head against all the keys they see; dq.
template <int D, int QUERIES, int KEYS, int WARPS>
static __device__ __forceinline__ void
attention_backward_queries(const __nv_bfloat16 *q, const __nv_bfloat16 *k, const __nv_bfloat16 *v,
                           const __nv_bfloat16 *dy, const float *log_totals, const float *delta, __nv_bfloat16 *dq,
                           int time, int heads, int width, int channels, int window, float scale) {
    constexpr int THREADS = WARPS * 32, MINE = QUERIES / WARPS, M = MINE / 16, N = KEYS / 8, ROW = 2 * D;
    static_assert(QUERIES % (WARPS * 16) == 0 && KEYS % 16 == 0, "whole tiles");
    SHARED_MEMORY(shared);
    unsigned char *const q_tile = shared;
    unsigned char *const dy_tile = shared + QUERIES * ROW;
    unsigned char *const kv_tiles = shared + 2 * QUERIES * ROW;

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int sequence = blockIdx.y / heads, head = blockIdx.y % heads;
    const int q0 = (gridDim.x - 1 - blockIdx.x) * QUERIES;
    const size_t base = static_cast<size_t>(sequence) * time * channels + static_cast<size_t>(head) * width;
    q += base, k += base, v += base, dy += base, dq += base;
    log_totals += static_cast<size_t>(blockIdx.y) * time;
    delta += static_cast<size_t>(blockIdx.y) * time;
    if (window > time) window = time;
    const bool wide = width % 8 == 0 && channels % 8 == 0 && attention_aligned(q) && attention_aligned(k) &&
                      attention_aligned(v) && attention_aligned(dy) && attention_aligned(dq);

    const int first_tile = (q0 > window ? q0 - window : 0) / KEYS;
    const int last_tile = ((q0 + QUERIES < time ? q0 + QUERIES : time) - 1) / KEYS;
    attention_load<D, QUERIES, THREADS>(q_tile, q, q0, time, width, channels, wide);
    attention_load<D, QUERIES, THREADS>(dy_tile, dy, q0, time, width, channels, wide);
    attention_load<D, KEYS, THREADS>(kv_tiles, k, first_tile * KEYS, time, width, channels, wide);
    attention_load<D, KEYS, THREADS>(kv_tiles + KEYS * ROW, v, first_tile * KEYS, time, width, channels, wide);
    tile_copy_commit();

    const uint32_t a_place = attention_place<D>(lane & 15, lane >> 4);
    const uint32_t b_place = attention_place<D>((lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1);
    const int row_low = q0 + warp * MINE, row_high = row_low + MINE - 1;
    const float factor = scale * ATTENTION_LOG2E;

    // A query past the end has weight 2^-infinity = 0.
    float shift[M][2], mean[M][2];
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int i = row_low + m * 16 + h * 8 + g;
            shift[m][h] = i < time ? log_totals[i] * ATTENTION_LOG2E : ATTENTION_INFINITY;
            mean[m][h] = i < time ? delta[i] : 0.0f;
        }

    float sums[M][D / 8][4];
    attention_zero(sums);

    for (int tile = first_tile; tile <= last_tile; ++tile) {
        tile_copy_wait<0>();
        __syncthreads();
        const int stage = (tile - first_tile) & 1;
        const unsigned char *k_tile = kv_tiles + stage * (2 * KEYS * ROW), *v_tile = k_tile + KEYS * ROW;
        if (tile < last_tile) {
            unsigned char *next = kv_tiles + (stage ^ 1) * (2 * KEYS * ROW);
            attention_load<D, KEYS, THREADS>(next, k, (tile + 1) * KEYS, time, width, channels, wide);
            attention_load<D, KEYS, THREADS>(next + KEYS * ROW, v, (tile + 1) * KEYS, time, width, channels, wide);
            tile_copy_commit();
        }
        const int k0 = tile * KEYS;
        if (k0 > row_high || row_low - (k0 + KEYS - 1) > window || row_low >= time) continue;

        float s[M][N][4], ds[M][N][4];
        attention_zero(s);
        attention_zero(ds);
        attention_scores<D, M, N>(s, q_tile + warp * MINE * ROW, k_tile, a_place, b_place);
        attention_scores<D, M, N>(ds, dy_tile + warp * MINE * ROW, v_tile, a_place, b_place);
        const int apart = row_low + g - k0 - t * 2; // i - j of the lane's first element
        // The last product stands in both branches so that it can overlap with the exponentials.
        if (k0 + KEYS - 1 > row_low || row_high - k0 > window) {
            attention_turn<true, M, N>(s, ds, shift, mean, apart, window, factor);
            attention_mix<D, M, N>(sums, ds, k_tile, a_place);
        } else {
            attention_turn<false, M, N>(s, ds, shift, mean, apart, window, factor);
            attention_mix<D, M, N>(sums, ds, k_tile, a_place);
        }
    }

    __syncthreads();
#pragma unroll
    for (int m = 0; m < M; ++m) shift[m][0] = shift[m][1] = scale;
    attention_put<D, M>(q_tile, warp * MINE, sums, shift);
    __syncthreads();
    attention_store<D, QUERIES, THREADS>(dq, q_tile, q0, time, width, channels, wide);
}

#define ATTENTION_KERNELS(D)                                                                                          \
    extern "C" __global__ void __launch_bounds__(ATTENTION_FORWARD_##D##_WARPS * 32, ATTENTION_FORWARD_##D##_BLOCKS)   \
        attention_forward_##D(const __nv_bfloat16 *q, const __nv_bfloat16 *k, const __nv_bfloat16 *v,                  \
                              __nv_bfloat16 *y, float *log_totals, int sequences, int time, int heads, int width,      \
                              int channels, int window, float scale) {                                                 \
        (void)sequences;                                                                                               \
        attention_forward<D, ATTENTION_FORWARD_##D##_QUERIES, ATTENTION_FORWARD_##D##_KEYS,                            \
                          ATTENTION_FORWARD_##D##_WARPS>(q, k, v, y, log_totals, time, heads, width, channels, window, \
                                                         scale);                                                       \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(ATTENTION_BACKWARD_KEYS_##D##_KEYS * 2,                               \
                                                 ATTENTION_BACKWARD_KEYS_##D##_BLOCKS)                                 \
        attention_backward_keys_##D(const __nv_bfloat16 *q, const __nv_bfloat16 *k, const __nv_bfloat16 *v,            \
                                    const __nv_bfloat16 *dy, const float *log_totals, const float *delta,              \
                                    __nv_bfloat16 *dk, __nv_bfloat16 *dv, int sequences, int time, int heads,          \
                                    int width, int channels, int window, float scale) {                                \
        (void)sequences;                                                                                               \
        attention_backward_keys<D, ATTENTION_BACKWARD_KEYS_##D##_KEYS, ATTENTION_BACKWARD_KEYS_##D##_QUERIES>(         \
            q, k, v, dy, log_totals, delta, dk, dv, time, heads, width, channels, window, scale);                      \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(ATTENTION_BACKWARD_QUERIES_##D##_WARPS * 32,                          \
                                                 ATTENTION_BACKWARD_QUERIES_##D##_BLOCKS)                              \
        attention_backward_queries_##D(const __nv_bfloat16 *q, const __nv_bfloat16 *k, const __nv_bfloat16 *v,         \
                                       const __nv_bfloat16 *dy, const float *log_totals, const float *delta,           \
                                       __nv_bfloat16 *dq, int sequences, int time, int heads, int width, int channels, \
                                       int window, float scale) {                                                      \
        (void)sequences;                                                                                               \
        attention_backward_queries<D, ATTENTION_BACKWARD_QUERIES_##D##_QUERIES, ATTENTION_BACKWARD_QUERIES_##D##_KEYS, \
                                   ATTENTION_BACKWARD_QUERIES_##D##_WARPS>(                                            \
            q, k, v, dy, log_totals, delta, dq, time, heads, width, channels, window, scale);                          \
    }

ATTENTION_KERNELS(32)
ATTENTION_KERNELS(64)
ATTENTION_KERNELS(128)

// delta = sum over a head's channels of dy y. A row of a head takes as many lanes as it has
// eights, rounded up to a power of two (width up to 256).
extern "C" __global__ void __launch_bounds__(ATTENTION_DELTA_THREADS)
    attention_delta(const __nv_bfloat16 *y, const __nv_bfloat16 *dy, float *delta, int sequences, int time, int heads,
                    int width, int channels) {
    int lanes = 1;
    while (lanes * 8 < width) lanes *= 2;
    // 32 bits: 2^32 rows of heads would not fit any card, and long divisions would take longer than
    // the reading.
    const uint32_t rows = ATTENTION_DELTA_THREADS / lanes;
    const uint32_t all = static_cast<uint32_t>(sequences) * time * heads;
    const int start = threadIdx.x % lanes * 8;
    const bool wide = width % 8 == 0 && channels % 8 == 0 && attention_aligned(y) && attention_aligned(dy);
    for (uint32_t from = blockIdx.x * rows; from < all; from += gridDim.x * rows) {
        const uint32_t row = from + threadIdx.x / lanes;
        const uint32_t token = row / heads, head = row % heads;
        float sum = 0.0f;
        if (row < all) {
            const long long place = static_cast<long long>(token) * channels + head * width + start;
            if (wide) {
                if (start < width) {
                    const AttentionSixteen a = *reinterpret_cast<const AttentionSixteen *>(y + place);
                    const AttentionSixteen b = *reinterpret_cast<const AttentionSixteen *>(dy + place);
#pragma unroll
                    for (int w = 0; w < 4; ++w) {
                        sum += attention_bits(a.word[w] << 16) * attention_bits(b.word[w] << 16);
                        sum += attention_bits(a.word[w] & 0xffff0000u) * attention_bits(b.word[w] & 0xffff0000u);
                    }
                }
            } else {
#pragma unroll 1
                for (int e = 0; e < 8 && start + e < width; ++e)
                    sum += __bfloat162float(y[place + e]) * __bfloat162float(dy[place + e]);
            }
        }
        for (int d = 1; d < lanes; d *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
        if (row < all && start == 0)
            delta[static_cast<size_t>(token / time * heads + head) * time + token % time] = sum;
    }
}

EXPORT(attention_forward_32)
EXPORT(attention_forward_64)
EXPORT(attention_forward_128)
EXPORT(attention_backward_keys_32)
EXPORT(attention_backward_keys_64)
EXPORT(attention_backward_keys_128)
EXPORT(attention_backward_queries_32)
EXPORT(attention_backward_queries_64)
EXPORT(attention_backward_queries_128)
EXPORT(attention_delta)
