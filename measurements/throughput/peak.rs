//! How many operations a second the machine can do at best: fused multiply-adds between registers,
//! on every thread at once.

use std::{
    sync::Barrier,
    time::{Duration, Instant},
};

/// Operations a second, a multiplication and an addition counted as two.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct Peak {
    /// `None` where there is no measuring loop for the processor.
    pub f32: Option<f64>,
    /// `None` where the processor has no dot product of `bf16`.
    pub bf16: Option<f64>,
}

/// Stretches of which the fastest counts: a peak is what is possible, not what is usual.
const STRETCHES: usize = 8;
const STRETCH: Duration = Duration::from_millis(100);

impl Peak {
    pub fn measure(threads: usize) -> Self {
        let best = |kernel: Option<Kernel>| {
            let speeds = (0..STRETCHES).map(|_| speed(kernel.as_ref()?, threads));
            speeds.max_by(|a, b| a.partial_cmp(b).expect("speeds are numbers"))?
        };
        Self { f32: best(kernels::f32()), bf16: best(kernels::bf16()) }
    }
}

/// A loop over registers, and the operations of one round of it.
struct Kernel {
    run: fn(u64),
    operations: u64,
}

const ROUNDS: u64 = 10_000;

fn speed(kernel: &Kernel, threads: usize) -> Option<f64> {
    let barrier = Barrier::new(threads);
    let work = || {
        barrier.wait();
        let (begun, mut rounds) = (Instant::now(), 0);
        while begun.elapsed() < STRETCH {
            (kernel.run)(ROUNDS);
            rounds += ROUNDS;
        }
        (rounds * kernel.operations) as f64 / begun.elapsed().as_secs_f64()
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().ok()).sum()
    })
}

#[cfg(target_arch = "x86_64")]
mod kernels {
    use super::Kernel;
    use std::{arch::x86_64::*, hint::black_box};

    /// Independent sums: enough to hide the latency of an addition to one of them.
    const CHAINS: usize = 12;

    pub fn f32() -> Option<Kernel> {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has the instructions, as was just asked.
            let run = |rounds| unsafe { f32_of_512_bits(rounds) };
            return Some(Kernel { run, operations: 2 * 16 * CHAINS as u64 });
        }
        if is_x86_feature_detected!("avx") && is_x86_feature_detected!("fma") {
            // SAFETY: as above.
            let run = |rounds| unsafe { f32_of_256_bits(rounds) };
            return Some(Kernel { run, operations: 2 * 8 * CHAINS as u64 });
        }
        None
    }

    pub fn bf16() -> Option<Kernel> {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16") {
            // SAFETY: as above.
            let run = |rounds| unsafe { bf16_of_512_bits(rounds) };
            return Some(Kernel { run, operations: 4 * 16 * CHAINS as u64 });
        }
        None
    }

    #[target_feature(enable = "avx512f")]
    fn f32_of_512_bits(rounds: u64) {
        let (x, y) = (_mm512_set1_ps(black_box(1e-3)), _mm512_set1_ps(black_box(2e-3)));
        let mut sums = [_mm512_setzero_ps(); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(x, y, *sum);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx,fma")]
    fn f32_of_256_bits(rounds: u64) {
        let (x, y) = (_mm256_set1_ps(black_box(1e-3)), _mm256_set1_ps(black_box(2e-3)));
        let mut sums = [_mm256_setzero_ps(); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(x, y, *sum);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn bf16_of_512_bits(rounds: u64) {
        let x = everywhere(black_box(1e-3));
        let y = everywhere(black_box(2e-3));
        let mut sums = [_mm512_setzero_ps(); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, x, y);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn everywhere(value: f32) -> __m512bh {
        _mm512_cvtne2ps_pbh(_mm512_set1_ps(value), _mm512_set1_ps(value))
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod kernels {
    use super::Kernel;

    pub fn f32() -> Option<Kernel> {
        None
    }

    pub fn bf16() -> Option<Kernel> {
        None
    }
}
