//! Products of matrices as small as one head's: too small for a general library's packing to pay.

/// Rows and columns that are accumulated in registers: 6 × 16 `f32` fill 12 of the 16 registers of
/// AVX2, which leaves room for a row of `b` and a broadcast element of `a`.
const ROWS: usize = 6;
pub const COLUMNS: usize = 16;

/// A matrix in a slice, from its first element on.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    pub elements: &'a [f32],
    pub row_stride: usize,
    pub column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Rows beside each other in memory, `stride` apart.
    pub fn rows(elements: &'a [f32], stride: usize) -> Self {
        Self { elements, row_stride: stride, column_stride: 1 }
    }

    pub fn transposed(self) -> Self {
        Self { row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }
}

/// What [`product`] adds to, rows `stride` apart.
pub struct Accumulator<'a> {
    pub elements: &'a mut [f32],
    pub stride: usize,
}

/// `c += a · b`, where `a` is `m × k`, `b` is `k × n` and `c` is `m × n`.
///
/// The columns of `b` must be adjacent. `scratch` is grown as needed. With `FMA`, multiplication
/// and addition round once; on a processor without the instruction that would be a slow call.
#[inline(always)]
pub fn product<const FMA: bool>(
    (m, k, n): (usize, usize, usize),
    a: Matrix<'_>,
    b: Matrix<'_>,
    c: &mut Accumulator<'_>,
    scratch: &mut Vec<f32>,
) {
    debug_assert_eq!(b.column_stride, 1);
    // `a` is repacked so that what one step of the inner loop needs is adjacent; missing rows are
    // zeros.
    let blocks = m.div_ceil(ROWS);
    let whole_columns = n / COLUMNS * COLUMNS;
    let packed_a = blocks * k * ROWS;
    scratch.clear();
    scratch.resize(packed_a + k * COLUMNS, 0.0);
    let (packed_a, packed_b) = scratch.split_at_mut(packed_a);
    for i in 0..m {
        let (block, row) = (i / ROWS, i % ROWS);
        let target = &mut packed_a[block * k * ROWS..][..k * ROWS];
        for p in 0..k {
            target[p * ROWS + row] = a.elements[i * a.row_stride + p * a.column_stride];
        }
    }
    // The last columns, where there are fewer than a register's worth.
    if whole_columns < n {
        for (p, row) in packed_b.as_chunks_mut::<COLUMNS>().0.iter_mut().enumerate() {
            let tail = &b.elements[p * b.row_stride + whole_columns..][..n - whole_columns];
            row[..tail.len()].copy_from_slice(tail);
        }
    }
    for j in (0..n).step_by(COLUMNS) {
        let (panel, stride) = if j < whole_columns {
            (&b.elements[j..], b.row_stride)
        } else {
            (&*packed_b, COLUMNS)
        };
        let columns = COLUMNS.min(n - j);
        for block in 0..blocks {
            let rows = packed_a[block * k * ROWS..][..k * ROWS].as_chunks::<ROWS>().0;
            let sums = tile::<FMA>(rows, panel, stride);
            for (row, sums) in sums.iter().enumerate().take(m - block * ROWS) {
                let start = (block * ROWS + row) * c.stride + j;
                if columns == COLUMNS {
                    // Of a length known when compiling, so that it stays in registers.
                    let target = &mut c.elements[start..start + COLUMNS];
                    for (target, &sum) in target.iter_mut().zip(sums) {
                        *target += sum;
                    }
                } else {
                    let target = &mut c.elements[start..start + columns];
                    for (target, &sum) in target.iter_mut().zip(sums) {
                        *target += sum;
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn tile<const FMA: bool>(a: &[[f32; ROWS]], b: &[f32], b_stride: usize) -> [[f32; COLUMNS]; ROWS] {
    let mut sums = [[0.0; COLUMNS]; ROWS];
    for (p, a) in a.iter().enumerate() {
        let b = &b[p * b_stride..][..COLUMNS];
        for row in 0..ROWS {
            for column in 0..COLUMNS {
                sums[row][column] = if FMA {
                    a[row].mul_add(b[column], sums[row][column])
                } else {
                    sums[row][column] + a[row] * b[column]
                };
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small integers: every product and sum is exact.
    fn numbers(n: usize, salt: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7 + salt * 5) % 11) as f32 - 5.0).collect()
    }

    #[test]
    fn products_of_all_small_shapes_are_exact() {
        let mut scratch = Vec::new();
        for (m, k, n) in [(1, 1, 1), (6, 4, 16), (7, 5, 17), (5, 3, 15), (13, 33, 40), (12, 2, 31)]
        {
            let (a, b) = (numbers(m * k, 1), numbers(k * (n + 3), 2));
            for transposed in [false, true] {
                let a =
                    if transposed { Matrix::rows(&a, m).transposed() } else { Matrix::rows(&a, k) };
                let mut c = numbers(m * (n + 2), 3);
                let mut expected = c.clone();
                for i in 0..m {
                    for j in 0..n {
                        for p in 0..k {
                            let x = a.elements[i * a.row_stride + p * a.column_stride];
                            expected[i * (n + 2) + j] += x * b[p * (n + 3) + j];
                        }
                    }
                }
                let mut accumulator = Accumulator { elements: &mut c, stride: n + 2 };
                let b = Matrix::rows(&b, n + 3);
                product::<true>((m, k, n), a, b, &mut accumulator, &mut scratch);
                assert_eq!(c, expected, "{m} x {k} x {n}, transposed: {transposed}");
            }
        }
    }
}
