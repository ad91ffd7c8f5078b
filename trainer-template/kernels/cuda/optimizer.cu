// AdamW and Muon, in place and in f32; Muon's polar iteration works on bf16.
#include "numbers.h"

extern "C" __global__ void adamw(float *param, const float *grad, float *mean, float *mean_square,
                                 float fresh, float fresh_square, float square, float lr, float eps,
                                 long long n) {
    each(n, [&](auto count, long long at) {
        constexpr int V = decltype(count)::value;
        float p[V], g[V], m[V], s[V];
        load(param + at, p);
        load(grad + at, g);
        load(mean + at, m);
        load(mean_square + at, s);
#pragma unroll
        for (int i = 0; i < V; i++) {
            m[i] += fresh * (g[i] - m[i]);
            s[i] += fresh_square * (g[i] * g[i] - s[i]);
            p[i] -= lr * m[i] / (sqrtf(s[i] * square) + eps);
        }
        store(param + at, p);
        store(mean + at, m);
        store(mean_square + at, s);
    });
}

// Nesterov momentum of one matrix, and a partial sum a block of the squares of the result.
extern "C" __global__ void nesterov(const float *grad, float *mean, float *update, float *partial,
                                    float momentum, long long n) {
    float squares = 0.0f;
    each_stacked(n, [&](auto count, long long at) {
        constexpr int V = decltype(count)::value;
        float g[V], m[V];
        load(grad + at, g);
        load(mean + at, m);
#pragma unroll
        for (int i = 0; i < V; i++) {
            m[i] += (1.0f - momentum) * (g[i] - m[i]);
            g[i] += momentum * (m[i] - g[i]);
            squares += g[i] * g[i];
        }
        store(mean + at, m);
        store(update + at, g);
    });
    squares = block_sum(squares);
    if (threadIdx.x == 0) partial[blockIdx.x] = squares;
}

// x = update / (1.02 |update| + 1e-6), one matrix a row of the grid; `partial` is [matrix][parts].
extern "C" __global__ void normalise(const float *update, const float *partial, int parts, bf16 *x,
                                     long long n) {
    float squares = 0.0f;
    for (int i = threadIdx.x; i < parts; i += blockDim.x) squares += partial[blockIdx.y * parts + i];
    float scale = 1.0f / (1.02f * sqrtf(block_sum(squares)) + 1e-6f);
    update += blockIdx.y * n;
    x += blockIdx.y * n;
    each_stacked(n, [&](auto count, long long at) {
        constexpr int V = decltype(count)::value;
        float a[V];
        load(update + at, a);
#pragma unroll
        for (int i = 0; i < V; i++) a[i] *= scale;
        store(x + at, a);
    });
}

// square = b gram + c square
extern "C" __global__ void polynomial(const bf16 *gram, bf16 *square, float b, float c, long long n) {
    each(n, [&](auto count, long long at) {
        constexpr int V = decltype(count)::value;
        float g[V], s[V];
        load(gram + at, g);
        load(square + at, s);
#pragma unroll
        for (int i = 0; i < V; i++) s[i] = b * g[i] + c * s[i];
        store(square + at, s);
    });
}

// The sum of squares of every neuron of a stack of matrices, [matrix][row][column]: a row if `by_rows`
// (one warp each), else a column (one thread each). Grid: (blocks, matrices).
extern "C" __global__ void neuron_squares(const bf16 *x, float *squares, int rows, int columns,
                                          int by_rows) {
    x += (long long)blockIdx.y * rows * columns;
    squares += (long long)blockIdx.y * (by_rows ? rows : columns);
    if (by_rows) {
        int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
        if (row >= rows) return;
        float sum = 0.0f;
        for (int i = threadIdx.x % 32; i < columns; i += 32) {
            float a = __bfloat162float(x[(long long)row * columns + i]);
            sum += a * a;
        }
        sum = warp_sum(sum);
        if (threadIdx.x % 32 == 0) squares[row] = sum;
    } else {
        int column = blockIdx.x * blockDim.x + threadIdx.x;
        if (column >= columns) return;
        float sum = 0.0f;
        for (int i = 0; i < rows; i++) {
            float a = __bfloat162float(x[(long long)i * columns + column]);
            sum += a * a;
        }
        squares[column] = sum;
    }
}

// What each neuron's update is multiplied by (NorMuon): `squares` becomes it, `memory` is the mean
// square that is remembered. One block a matrix.
extern "C" __global__ void neuron_scales(float *squares, float *memory, int neurons, float per_neuron,
                                         float fresh) {
    squares += (long long)blockIdx.x * neurons;
    memory += (long long)blockIdx.x * neurons;
    float before = 0.0f, after = 0.0f;
    for (int i = threadIdx.x; i < neurons; i += blockDim.x) {
        float square = squares[i];
        memory[i] += fresh * (square / per_neuron - memory[i]);
        float scale = rsqrtf(fmaxf(memory[i], 1e-10f));
        before += square;
        after += square * scale * scale;
        squares[i] = scale;
    }
    before = block_sum(before);
    after = block_sum(after);
    float restore = sqrtf(before) / fmaxf(sqrtf(after), 1e-10f);
    for (int i = threadIdx.x; i < neurons; i += blockDim.x) squares[i] *= restore;
}

// One matrix moves. Cautious decay: only where it pulls the same way as the update.
extern "C" __global__ void descend(float *param, const bf16 *update, const float *scales, int columns,
                                   int by_rows, float lr, float decay, long long n) {
    long long first = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    long long stride = (long long)gridDim.x * blockDim.x;
    for (long long i = first; i < n; i += stride) {
        float scale = scales[by_rows ? i / columns : i % columns];
        float u = scale * __bfloat162float(update[i]), p = param[i];
        float pull = u * p >= 0.0f ? decay * p : 0.0f;
        param[i] = p - lr * (u + pull);
    }
}

EXPORT(adamw)
EXPORT(nesterov)
EXPORT(normalise)
EXPORT(polynomial)
EXPORT(neuron_squares)
EXPORT(neuron_scales)
EXPORT(descend)
