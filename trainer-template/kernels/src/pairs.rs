//! Products of matrices of `bf16`, summed in `f32`.
//!
//! `vdpbf16ps` multiplies pairs: one instruction adds `a[k] b[k] + a[k+1] b[k+1]` to each of 16 sums.
//! So both operands are read as pairs of numbers that are neighbours along the summed dimension. The
//! left one has them in memory already where rows are summed over; [`Panels`] arranges everything
//! else. Every sum runs over its whole length in order, in one tile: a result depends neither on the
//! number of threads nor on how many rows were computed with it.

use crate::element::{Element, vectorized};
use half::bf16;
use std::ops::Range;

/// Rows of a tile: 8 × 32 sums fill 16 of the 32 registers of AVX-512.
pub const ROWS: usize = 8;
/// Columns of a tile.
pub const COLUMNS: usize = 32;

/// Two `bf16`, the first in the low half.
type Pair = u32;

/// A matrix cut into panels of `W` columns, each with the pairs of its rows one after another:
/// `[panel][pair][column]`. Missing rows and columns are zeros.
pub struct Panels<const W: usize> {
    pairs: usize,
    columns: usize,
    elements: Vec<[Pair; W]>,
}

impl<const W: usize> Panels<W> {
    /// Pairs along the rows of `xs`, `[rows, columns]`: for sums over rows.
    pub fn of_rows<E: Element>(xs: &[E], columns: usize) -> Self {
        let pairs = (xs.len() / columns).div_ceil(2);
        let mut elements = vec![[0; W]; columns.div_ceil(W) * pairs];
        pack_rows(xs, columns, pairs, elements.as_flattened_mut(), W);
        Self { pairs, columns, elements }
    }

    /// Pairs along the columns of `xs`, `[rows, columns]`, which is thereby transposed: for sums
    /// over columns.
    pub fn of_columns<E: Element>(xs: &[E], columns: usize) -> Self {
        let (rows, pairs) = (xs.len() / columns, columns.div_ceil(2));
        let mut elements = vec![[0; W]; rows.div_ceil(W) * pairs];
        pack_columns(xs, columns, pairs, elements.as_flattened_mut(), W);
        Self { pairs, columns: rows, elements }
    }

    /// All of it.
    pub fn all(&self) -> Part<'_, W> {
        self.part(0..2 * self.pairs, 0..self.columns)
    }

    /// Some rows (along which the pairs are, so their ends are even or the last) and some columns
    /// (of whole panels, but for the last).
    pub fn part(&self, rows: Range<usize>, columns: Range<usize>) -> Part<'_, W> {
        assert!(rows.start.is_multiple_of(2) && rows.end <= 2 * self.pairs);
        assert!(columns.start.is_multiple_of(W) && columns.end <= self.columns);
        let pairs = rows.start / 2..rows.end.div_ceil(2);
        Part { panels: self, pairs, first: columns.start / W, columns: columns.len() }
    }
}

/// A part of a matrix in panels.
pub struct Part<'a, const W: usize> {
    panels: &'a Panels<W>,
    pairs: Range<usize>,
    /// The first panel.
    first: usize,
    columns: usize,
}

impl<const W: usize> Part<'_, W> {
    fn panel(&self, n: usize) -> &[[Pair; W]] {
        let panel = &self.panels.elements[(self.first + n) * self.panels.pairs..];
        &panel[..self.panels.pairs][self.pairs.clone()]
    }
}

#[inline(always)]
fn pair<E: Element>(low: E, high: E) -> Pair {
    let bits = |x: E| Pair::from(bf16::store(x.load()).to_bits());
    bits(low) | bits(high) << 16
}

vectorized! {
    fn pack_rows<E>(xs: &[E], columns: usize, pairs: usize, packed: &mut [u32], width: usize) {
        // As many columns as fill a line of the cache.
        const GROUP: usize = 32;
        let rows = xs.len() / columns;
        let whole = columns / GROUP * GROUP;
        for first in (0..whole).step_by(GROUP) {
            for p in 0..rows / 2 {
                let low = &xs[2 * p * columns + first..][..GROUP];
                let high = &xs[(2 * p + 1) * columns + first..][..GROUP];
                let mut line = [0; GROUP];
                for i in 0..GROUP {
                    line[i] = pair(low[i], high[i]);
                }
                for (n, part) in line.chunks_exact(width).enumerate() {
                    let panel = first / width + n;
                    packed[(panel * pairs + p) * width..][..width].copy_from_slice(part);
                }
            }
        }
        let zero = E::default();
        for p in 0..pairs {
            // What is left over: the last columns, and the last row of an odd number.
            let from = if p < rows / 2 { whole } else { 0 };
            for c in from..columns {
                let low = xs[2 * p * columns + c];
                let high = if 2 * p + 1 < rows { xs[(2 * p + 1) * columns + c] } else { zero };
                packed[(c / width * pairs + p) * width + c % width] = pair(low, high);
            }
        }
    }
}

vectorized! {
    fn pack_columns<E>(xs: &[E], columns: usize, pairs: usize, packed: &mut [u32], width: usize) {
        let zero = E::default();
        let mut row = vec![0; pairs];
        for (r, x) in xs.chunks_exact(columns).enumerate() {
            // First what is vector code, then what is not.
            let (whole, odd) = x.as_chunks::<2>();
            for (pair_of, x) in row.iter_mut().zip(whole) {
                *pair_of = pair(x[0], x[1]);
            }
            if let Some(&last) = odd.first() {
                row[pairs - 1] = pair(last, zero);
            }
            let panel = &mut packed[r / width * pairs * width..][..pairs * width];
            for (target, &pair) in panel.chunks_exact_mut(width).zip(&row) {
                target[r % width] = pair;
            }
        }
    }
}

/// The left operand: of every row, the pairs to multiply.
pub enum Left<'a> {
    /// Rows as they are, `stride` apart; an even number of their elements is summed over.
    Rows { elements: &'a [bf16], stride: usize },
    /// For sums over rows: the left operand's rows are these panels' columns.
    Panels(Part<'a, ROWS>),
}

/// Where sums go.
pub trait Sums {
    /// Takes the sums of one row, from `column` on.
    fn take(&mut self, row: usize, column: usize, sums: &[f32]);
}

/// Overwrites rows, `stride` apart.
pub struct Store<'a, E> {
    pub elements: &'a mut [E],
    pub stride: usize,
}

/// Adds to them.
pub struct Add<'a, E> {
    pub elements: &'a mut [E],
    pub stride: usize,
}

impl<E: Element> Sums for Store<'_, E> {
    #[inline(always)]
    fn take(&mut self, row: usize, column: usize, sums: &[f32]) {
        let target = &mut self.elements[row * self.stride + column..][..sums.len()];
        for (target, &sum) in target.iter_mut().zip(sums) {
            *target = E::store(sum);
        }
    }
}

impl<E: Element> Sums for Add<'_, E> {
    #[inline(always)]
    fn take(&mut self, row: usize, column: usize, sums: &[f32]) {
        let target = &mut self.elements[row * self.stride + column..][..sums.len()];
        for (target, &sum) in target.iter_mut().zip(sums) {
            *target = E::store(target.load() + sum);
        }
    }
}

/// Rows that stay in the cache while the panels of `right` pass.
const BLOCK: usize = 128;

/// The product of `left`, of so many rows, and `right`.
///
/// # Panics
///
/// Where [`multiplies_bf16`](crate::multiplies_bf16) is false, and where the operands do not fit.
pub fn product(rows: usize, left: &Left<'_>, right: &Part<'_, COLUMNS>, sums: &mut impl Sums) {
    assert!(crate::multiplies_bf16(), "this processor does not multiply bf16");
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the processor has the instructions.
    unsafe {
        avx512::product(rows, left, right, sums);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (rows, left, right, sums);
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::*;
    use std::arch::x86_64::{
        __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_set1_epi32,
        _mm512_setzero_ps, _mm512_storeu_ps,
    };
    use std::mem::transmute;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    pub fn product<S: Sums>(rows: usize, left: &Left<'_>, right: &Part<'_, COLUMNS>, sums: &mut S) {
        let mut tile = [[0.0; COLUMNS]; ROWS];
        for block in (0..rows).step_by(BLOCK) {
            let block_end = rows.min(block + BLOCK);
            for n in 0..right.columns.div_ceil(COLUMNS) {
                let panel = right.panel(n);
                let width = COLUMNS.min(right.columns - n * COLUMNS);
                for row in (block..block_end).step_by(ROWS) {
                    let height = ROWS.min(rows - row);
                    match left {
                        Left::Rows { elements, stride } => {
                            let elements = &elements[row * stride..];
                            multiply(elements, (*stride, 2), height, panel, &mut tile);
                        }
                        Left::Panels(panels) => {
                            let pairs = panels.panel(row / ROWS).as_flattened();
                            assert!(pairs.len() == ROWS * panel.len());
                            multiply(halves(pairs), (2, 2 * ROWS), height, panel, &mut tile);
                        }
                    }
                    for (i, tile) in tile.iter().enumerate().take(height) {
                        if width == COLUMNS {
                            // Of a length known when compiling, so that it stays in registers.
                            sums.take(row + i, n * COLUMNS, tile);
                        } else {
                            sums.take(row + i, n * COLUMNS, &tile[..width]);
                        }
                    }
                }
            }
        }
    }

    fn halves(pairs: &[Pair]) -> &[bf16] {
        // SAFETY: a pair is two numbers of 16 bits, of any value, aligned to more than they need.
        unsafe { std::slice::from_raw_parts(pairs.as_ptr().cast(), 2 * pairs.len()) }
    }

    /// `tile = left · panel`, `height` rows of it. Row `i`'s pair `p` begins at element
    /// `i * row_step + p * pair_step`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    #[inline]
    fn multiply(
        left: &[bf16],
        (row_step, pair_step): (usize, usize),
        height: usize,
        panel: &[[Pair; COLUMNS]],
        tile: &mut [[f32; COLUMNS]; ROWS],
    ) {
        let pairs = panel.len();
        if pairs == 0 {
            *tile = [[0.0; COLUMNS]; ROWS];
            return;
        }
        assert!(height >= 1 && left.len() >= (height - 1) * row_step + (pairs - 1) * pair_step + 2);
        // Missing rows are computed from the last one, and left out by the caller.
        let rows: [*const bf16; ROWS] =
            std::array::from_fn(|i| left[i.min(height - 1) * row_step..].as_ptr());
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        for (p, columns) in panel.iter().enumerate() {
            let b: [__m512bh; 2] = std::array::from_fn(|half| {
                let from = columns[16 * half..][..16].as_ptr();
                // SAFETY: 16 pairs are the 64 bytes that are loaded, and all of them are numbers.
                unsafe { transmute::<__m512i, __m512bh>(_mm512_loadu_si512(from.cast())) }
            });
            for (row, sums) in rows.iter().zip(&mut sums) {
                // SAFETY: the assertion above holds the last pair of the last row inside `left`.
                let a = unsafe {
                    let pair = row.add(p * pair_step).cast::<i32>().read_unaligned();
                    transmute::<__m512i, __m512bh>(_mm512_set1_epi32(pair))
                };
                sums[0] = _mm512_dpbf16_ps(sums[0], a, b[0]);
                sums[1] = _mm512_dpbf16_ps(sums[1], a, b[1]);
            }
        }
        for (sums, tile) in sums.into_iter().zip(tile) {
            for (half, sums) in sums.into_iter().enumerate() {
                let target = &mut tile[16 * half..][..16];
                // SAFETY: 16 numbers are the 64 bytes that are stored.
                unsafe { _mm512_storeu_ps(target.as_mut_ptr(), sums) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small integers: every product and sum is exact.
    fn numbers(n: usize, salt: usize) -> Vec<bf16> {
        (0..n).map(|i| bf16::from_f32(((i * 7 + salt * 5) % 11) as f32 - 5.0)).collect()
    }

    #[test]
    fn products_of_all_small_shapes_are_exact() {
        if !crate::multiplies_bf16() {
            return;
        }
        let shapes = [(1, 2, 1), (8, 4, 32), (9, 6, 33), (7, 64, 31), (140, 34, 70), (16, 130, 64)];
        for (m, k, n) in shapes {
            // `b` is [n, k], as weights are; both forms of the left operand.
            let (a, b) = (numbers(m * k, 1), numbers(n * k, 2));
            let expected: Vec<f32> = (0..m * n)
                .map(|at| {
                    (0..k).map(|p| a[at / n * k + p].to_f32() * b[at % n * k + p].to_f32()).sum()
                })
                .collect();
            let right = Panels::<COLUMNS>::of_columns(&b, k);
            let mut c = vec![1.0f32; m * n];
            let left = Left::Rows { elements: &a, stride: k };
            product(m, &left, &right.all(), &mut Store { elements: &mut c, stride: n });
            assert_eq!(c, expected, "{m} x {k} x {n}, rows");

            let turned = |xs: &[bf16], rows: usize| -> Vec<bf16> {
                (0..xs.len()).map(|at| xs[at % rows * k + at / rows]).collect()
            };
            let (a, b) = (turned(&a, m), turned(&b, n));
            let (left, right) = (Panels::of_rows(&a, m), Panels::<COLUMNS>::of_rows(&b, n));
            let mut c = vec![1.0f32; m * n];
            product(
                m,
                &Left::Panels(left.all()),
                &right.all(),
                &mut Add { elements: &mut c, stride: n },
            );
            let expected: Vec<_> = expected.iter().map(|x| x + 1.0).collect();
            assert_eq!(c, expected, "{m} x {k} x {n}, panels");
        }
    }

    #[test]
    fn an_odd_number_of_rows_is_filled_up_with_zeros() {
        if !crate::multiplies_bf16() {
            return;
        }
        let (a, b) = (numbers(3 * 5, 1), numbers(3 * 4, 2));
        let (left, right) = (Panels::of_rows(&a, 5), Panels::<COLUMNS>::of_rows(&b, 4));
        let mut c = vec![0.0f32; 5 * 4];
        product(
            5,
            &Left::Panels(left.all()),
            &right.all(),
            &mut Store { elements: &mut c, stride: 4 },
        );
        for (at, c) in c.iter().enumerate() {
            let sum: f32 =
                (0..3).map(|r| a[r * 5 + at / 4].to_f32() * b[r * 4 + at % 4].to_f32()).sum();
            assert_eq!(*c, sum);
        }
    }
}
