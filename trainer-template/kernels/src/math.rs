//! Functions and sums of `f32` that compile to vector code.

use crate::element::Element;

/// Never below the smallest normal number, and NaN for NaN. Without branches or calls, so that a
/// loop over it becomes vector code; the standard library's does not. Range reduction and polynomial
/// of Cephes' `expf` (netlib.org/cephes, `single/expf.c`), good to two units in the last place.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer, and leaves that integer in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    // ln 2 in two parts, the first of them short, so that n times it is exact.
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let mantissa = p * (r * r) + r + 1.0;
    let exponent = (rounded.to_bits() << 23).wrapping_add(1.0f32.to_bits());
    mantissa * f32::from_bits(exponent)
}

#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

/// Partial sums that a reduction keeps: additions of floating-point numbers may not be reordered
/// by the compiler, so the independent chains that fill the vector units are written out.
const LANES: usize = 16;

#[inline(always)]
pub fn dot<E: Element>(xs: &[E], ys: &[E]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (xs, xs_tail) = xs.as_chunks::<LANES>();
    let (ys, ys_tail) = ys.as_chunks::<LANES>();
    for (x, y) in xs.iter().zip(ys) {
        for i in 0..LANES {
            lanes[i] += x[i].load() * y[i].load();
        }
    }
    let mut sum = add_up(lanes);
    for (x, y) in xs_tail.iter().zip(ys_tail) {
        sum += x.load() * y.load();
    }
    sum
}

#[inline(always)]
pub fn sum(xs: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (xs, tail) = xs.as_chunks::<LANES>();
    for x in xs {
        for i in 0..LANES {
            lanes[i] += x[i];
        }
    }
    tail.iter().fold(add_up(lanes), |sum, &x| sum + x)
}

/// The largest element; NaN is passed over.
#[inline(always)]
pub fn max(xs: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (xs, tail) = xs.as_chunks::<LANES>();
    for x in xs {
        for i in 0..LANES {
            lanes[i] = larger(x[i], lanes[i]);
        }
    }
    lanes.iter().chain(tail).fold(f32::NEG_INFINITY, |max, &x| larger(x, max))
}

#[inline(always)]
fn larger(x: f32, max: f32) -> f32 {
    if x > max { x } else { max }
}

#[inline(always)]
fn add_up(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_over_its_whole_range() {
        for i in -87_000..=88_000 {
            let x = i as f32 / 1000.0;
            let exact = f64::from(x).exp();
            let relative = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(relative < 2.5e-7, "exp({x}) is off by {relative:e}");
        }
    }

    #[test]
    fn exp_and_tanh_saturate_without_overflow() {
        assert!(exp(f32::NEG_INFINITY) < 2e-38);
        assert!(exp(1e30).is_finite());
        assert_eq!(tanh(1e30), 1.0);
        assert_eq!(tanh(-1e30), -1.0);
    }

    #[test]
    fn exp_and_tanh_of_nan_are_nan() {
        assert!(exp(f32::NAN).is_nan());
        assert!(tanh(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_is_accurate_to_the_rounding_of_one() {
        for i in -20_000..=20_000 {
            let x = i as f32 / 1000.0;
            let error = f64::from(tanh(x)) - f64::from(x).tanh();
            assert!(error.abs() < 2.0 * f64::from(f32::EPSILON), "tanh({x}) is off by {error:e}");
        }
    }

    #[test]
    fn reductions_take_in_every_element() {
        for n in [0u16, 1, 15, 16, 17, 50] {
            let xs: Vec<f32> = (1..=n).map(f32::from).collect();
            let n = f32::from(n);
            assert_eq!(sum(&xs), n * (n + 1.0) / 2.0);
            assert_eq!(dot(&xs, &xs), n * (n + 1.0) * (2.0 * n + 1.0) / 6.0);
            assert_eq!(max(&xs), if n == 0.0 { f32::NEG_INFINITY } else { n });
        }
    }
}
