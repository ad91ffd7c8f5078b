//! The three products of a linear layer, in `f32` and in `bf16`.

use crate::{
    element::Element,
    pairs::{self, Add, COLUMNS, Left, Panels, Store},
};
use half::bf16;

/// Elements that matrices are multiplied in.
pub trait Number: Element {
    /// A weight as its products want it.
    type Weight: Send + Sync;
    /// A layer's input as the gradient of its weight wants it.
    type Input;

    /// The same elements, if they are these.
    fn as_bf16(_xs: &[Self]) -> Option<&[bf16]> {
        None
    }

    /// See [`as_bf16`](Number::as_bf16).
    fn as_bf16_mut(_xs: &mut [Self]) -> Option<&mut [bf16]> {
        None
    }

    /// Of a weight `[outputs, inputs]`. Without `backward`, for [`outputs`](Number::outputs) only.
    fn weight(weight: &[f32], inputs: usize, backward: bool) -> Self::Weight;

    /// Of rows of so many channels.
    fn input(xs: &[Self], channels: usize) -> Self::Input;

    /// `y = x wᵀ`, or `y += x wᵀ`.
    fn outputs(xs: &[Self], weight: &Self::Weight, ys: &mut [Self], mode: Mode);

    /// `y = x wᵀ` where that is symmetric: half of it is computed.
    fn symmetric(xs: &[Self], weight: &Self::Weight, ys: &mut [Self]) {
        Self::outputs(xs, weight, ys, Mode::Overwrite);
    }

    /// `y = x wᵀ`, unrounded.
    fn logits(xs: &[Self], weight: &Self::Weight, ys: &mut [f32]);

    /// `dx = dy w`, or `dx += dy w`.
    fn d_inputs(d_ys: &[Self], weight: &Self::Weight, d_xs: &mut [Self], mode: Mode);

    /// `dw += dyᵀ x`. `d_ys` has a row for each of `xs`, and `dw` is `[outputs, inputs]`.
    fn d_weight(
        d_ys: &[Self],
        xs: &[Self],
        input: &Self::Input,
        d_weight: &mut [f32],
        outputs: usize,
    );
}

/// Whether a result replaces what is there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Overwrite,
    Add,
}

/// A weight in panels for both directions.
pub struct Packed {
    outputs: usize,
    inputs: usize,
    forward: Panels<COLUMNS>,
    backward: Option<Panels<COLUMNS>>,
}

impl Number for bf16 {
    type Weight = Packed;
    type Input = Panels<COLUMNS>;

    fn as_bf16(xs: &[bf16]) -> Option<&[bf16]> {
        Some(xs)
    }

    fn as_bf16_mut(xs: &mut [bf16]) -> Option<&mut [bf16]> {
        Some(xs)
    }

    fn weight(weight: &[f32], inputs: usize, backward: bool) -> Packed {
        Packed {
            outputs: weight.len() / inputs,
            inputs,
            forward: Panels::of_columns(weight, inputs),
            backward: backward.then(|| Panels::of_rows(weight, inputs)),
        }
    }

    fn input(xs: &[bf16], channels: usize) -> Panels<COLUMNS> {
        Panels::of_rows(xs, channels)
    }

    fn outputs(xs: &[bf16], weight: &Packed, ys: &mut [bf16], mode: Mode) {
        let (k, n) = (weight.inputs, weight.outputs);
        store(xs, k, &weight.forward, ys, n, mode);
    }

    fn symmetric(xs: &[bf16], weight: &Packed, ys: &mut [bf16]) {
        let (k, n) = (weight.inputs, weight.outputs);
        if !k.is_multiple_of(2) {
            return Self::outputs(xs, weight, ys, Mode::Overwrite);
        }
        for first in (0..n).step_by(COLUMNS) {
            let columns = first..n.min(first + COLUMNS);
            let left = Left::Rows { elements: &xs[first * k..], stride: k };
            let right = weight.forward.part(0..k, columns.clone());
            let mut sums = Store { elements: &mut ys[first * n + first..], stride: n };
            pairs::product(n - first, &left, &right, &mut sums);
            // What lies right of the block is what lies below it.
            for block in (columns.end..n).step_by(COLUMNS) {
                for row in columns.clone() {
                    for column in block..n.min(block + COLUMNS) {
                        ys[row * n + column] = ys[column * n + row];
                    }
                }
            }
        }
    }

    fn logits(xs: &[bf16], weight: &Packed, ys: &mut [f32]) {
        let (k, n) = (weight.inputs, weight.outputs);
        store(xs, k, &weight.forward, ys, n, Mode::Overwrite);
    }

    fn d_inputs(d_ys: &[bf16], weight: &Packed, d_xs: &mut [bf16], mode: Mode) {
        let backward = weight.backward.as_ref().expect("the weight was packed for training");
        store(d_ys, weight.outputs, backward, d_xs, weight.inputs, mode);
    }

    fn d_weight(
        d_ys: &[bf16],
        _xs: &[bf16],
        input: &Panels<COLUMNS>,
        d_weight: &mut [f32],
        outputs: usize,
    ) {
        let inputs = d_weight.len() / outputs;
        let left = Panels::of_rows(d_ys, outputs);
        let mut sums = Add { elements: d_weight, stride: inputs };
        pairs::product(outputs, &Left::Panels(left.all()), &input.all(), &mut sums);
    }
}

/// The product of rows of `k` and a panelled matrix of `n` columns.
fn store<E: Element>(
    xs: &[bf16],
    k: usize,
    right: &Panels<COLUMNS>,
    ys: &mut [E],
    n: usize,
    mode: Mode,
) {
    let rows = xs.len() / k;
    let even;
    let (elements, stride) = if k.is_multiple_of(2) {
        (xs, k)
    } else {
        let widened = xs.chunks_exact(k).flat_map(|x| x.iter().copied().chain([bf16::ZERO]));
        even = widened.collect::<Vec<_>>();
        (&even[..], k + 1)
    };
    let left = Left::Rows { elements, stride };
    match mode {
        Mode::Overwrite => {
            pairs::product(rows, &left, &right.all(), &mut Store { elements: ys, stride: n });
        }
        Mode::Add => {
            pairs::product(rows, &left, &right.all(), &mut Add { elements: ys, stride: n })
        }
    }
}

/// A weight as it is, and how many inputs it has.
pub struct Plain {
    elements: Vec<f32>,
    inputs: usize,
}

impl Number for f32 {
    type Weight = Plain;
    type Input = ();

    fn weight(weight: &[f32], inputs: usize, _backward: bool) -> Plain {
        Plain { elements: weight.to_vec(), inputs }
    }

    fn input(_xs: &[f32], _channels: usize) {}

    fn outputs(xs: &[f32], weight: &Plain, ys: &mut [f32], mode: Mode) {
        let Plain { elements, inputs: k } = weight;
        let (rows, n) = (xs.len() / k, elements.len() / k);
        gemm((rows, *k, n), Strided::rows(xs, *k), Strided::columns(elements, *k), ys, mode);
    }

    fn logits(xs: &[f32], weight: &Plain, ys: &mut [f32]) {
        Self::outputs(xs, weight, ys, Mode::Overwrite);
    }

    fn d_inputs(d_ys: &[f32], weight: &Plain, d_xs: &mut [f32], mode: Mode) {
        let Plain { elements, inputs: n } = weight;
        let k = elements.len() / n;
        let rows = d_ys.len() / k;
        gemm((rows, k, *n), Strided::rows(d_ys, k), Strided::rows(elements, *n), d_xs, mode);
    }

    fn d_weight(d_ys: &[f32], xs: &[f32], (): &(), d_weight: &mut [f32], outputs: usize) {
        let (rows, inputs) = (d_ys.len() / outputs, d_weight.len() / outputs);
        let (d_ys, xs) = (Strided::columns(d_ys, outputs), Strided::rows(xs, inputs));
        gemm((outputs, rows, inputs), d_ys, xs, d_weight, Mode::Add);
    }
}

/// A matrix in a slice.
#[derive(Clone, Copy)]
struct Strided<'a> {
    elements: &'a [f32],
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Strided<'a> {
    fn rows(elements: &'a [f32], stride: usize) -> Self {
        Self { elements, row_stride: stride, column_stride: 1 }
    }

    /// The transpose of what the slice holds in rows.
    fn columns(elements: &'a [f32], stride: usize) -> Self {
        Self { elements, row_stride: 1, column_stride: stride }
    }

    fn holds(&self, rows: usize, columns: usize) -> bool {
        let last = (rows - 1) * self.row_stride + (columns - 1) * self.column_stride;
        last < self.elements.len()
    }
}

/// `c = a b` or `c += a b`, where `a` is `m × k`, `b` is `k × n` and `c` is `m × n`, in rows.
fn gemm(
    (m, k, n): (usize, usize, usize),
    a: Strided<'_>,
    b: Strided<'_>,
    c: &mut [f32],
    mode: Mode,
) {
    if m == 0 || n == 0 || k == 0 {
        if mode == Mode::Overwrite {
            c.fill(0.0);
        }
        return;
    }
    assert!(a.holds(m, k) && b.holds(k, n) && c.len() >= m * n, "the operands do not fit");
    // SAFETY: every element that m, k, n and the strides reach lies inside its slice, as just
    // checked, and `c` is not shared with `a` or `b`.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            n as isize,
            mode == Mode::Add,
            a.elements.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.elements.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
