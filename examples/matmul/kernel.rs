//! A product of two square matrices in plain Rust, blocked for the caches, and how fast it is.

use std::time::Instant;

// What is worth trying depends on the machine's caches.
const BLOCK_ROWS: usize = 512; // rows of a at a time     search: choice 16 32 64 128 256 512
const BLOCK_DEPTH: usize = 8; // terms of a sum at a time search: choice 8 16 32 64 128 256 512
const BLOCK_COLS: usize = 8; // columns of b at a time    search: choice 8 16 32 64 128 256 512

const N: usize = 512;

/// `c += a * b`, row by row.
fn product(a: &[f32], b: &[f32], c: &mut [f32]) {
    for rows in (0..N).step_by(BLOCK_ROWS) {
        for depth in (0..N).step_by(BLOCK_DEPTH) {
            for cols in (0..N).step_by(BLOCK_COLS) {
                for i in rows..N.min(rows + BLOCK_ROWS) {
                    let to = N.min(cols + BLOCK_COLS);
                    let sums = &mut c[i * N + cols..i * N + to];
                    for k in depth..N.min(depth + BLOCK_DEPTH) {
                        let factor = a[i * N + k];
                        let row = &b[k * N + cols..k * N + to];
                        for (sum, term) in sums.iter_mut().zip(row) {
                            *sum += factor * term;
                        }
                    }
                }
            }
        }
    }
}

fn main() {
    let a: Vec<f32> = (0..N * N).map(|i| (i % 7) as f32).collect();
    let b: Vec<f32> = (0..N * N).map(|i| (i % 5) as f32).collect();
    let mut best = f64::INFINITY;
    for _ in 0..20 {
        let mut c = vec![0.0; N * N];
        let begun = Instant::now();
        product(&a, &b, &mut c);
        best = best.min(begun.elapsed().as_secs_f64());
        // A wrong product has no speed.
        let (i, j) = (N / 3, N / 2);
        let expected: f32 = (0..N).map(|k| a[i * N + k] * b[k * N + j]).sum();
        assert!((c[i * N + j] - expected).abs() <= 1e-3 * expected, "the product is wrong");
    }
    println!("METRIC gflops={:.3}", 2.0 * (N as f64).powi(3) / best / 1e9);
}
