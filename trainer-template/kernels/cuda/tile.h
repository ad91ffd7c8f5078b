// The only seam between the kernels and the hardware. A kernel file includes this and nothing
// else; with nvcc the names below are the tensor-core instructions of sm_80 and later, with a
// plain C++ compiler host.h gives the same names on the CPU.
//
// Every `tile_` function that touches a matrix is a whole warp's: all 32 lanes must reach it.
#pragma once

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <stdint.h>

// Dynamic shared memory. The alignment is what the bank arithmetic of the tiles wants; 16 bytes
// are all that correctness needs.
#define SHARED_MEMORY(name)                                        \
    extern __shared__ __align__(128) unsigned char shared_memory[]; \
    unsigned char *name = shared_memory

// c (16x8, f32) += a (16x16, bf16) b (16x8, bf16). With g = lane / 4 and t = lane % 4 a lane holds
//   a[0] (g, 2t..)  a[1] (g+8, 2t..)  a[2] (g, 2t+8..)  a[3] (g+8, 2t+8..)   two columns in each
//   b[0] (2t.., g)  b[1] (2t+8.., g)                                         two rows in each
//   c[0] (g, 2t)    c[1] (g, 2t+1)    c[2] (g+8, 2t)    c[3] (g+8, 2t+1)
// volatile keeps the compiler from sinking a warp's instruction into a branch of some lanes.
static __device__ __forceinline__ void tile_mma(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8x8 matrices of 16-bit values. Lane l points at row l % 8 of matrix l / 8 (16 bytes, in
// shared memory); r[i] becomes columns 2t and 2t+1 of row g of matrix i.
static __device__ __forceinline__ void tile_load4(uint32_t r[4], const void *row) {
    uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}

// The same with each matrix transposed: r[i] becomes rows 2t and 2t+1 of column g.
static __device__ __forceinline__ void tile_load4_transposed(uint32_t r[4], const void *row) {
    uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}

// Starts a copy of 16 bytes, both ends aligned to 16; zeros where not valid, and then `global` is
// not read (but must be some address).
static __device__ __forceinline__ void tile_copy16(void *shared, const void *global, bool valid) {
    uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(bytes) : "memory");
}

// Closes a group of this thread's copies.
static __device__ __forceinline__ void tile_copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most N of this thread's groups are under way.
template <int N> static __device__ __forceinline__ void tile_copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// 2^x; of minus infinity, 0.
static __device__ __forceinline__ float tile_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Two bf16 rounded to nearest even, `lo` in the low half.
static __device__ __forceinline__ uint32_t tile_pack(float lo, float hi) {
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

// For host.h, which makes kernels callable; here they are.
#define EXPORT(kernel)

#else
#include "host.h"
#endif
