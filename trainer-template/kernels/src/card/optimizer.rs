//! AdamW and Muon on a card, in place.

use super::{
    BF16, Card, F32, Launch, Memory, Product, THREADS, arguments, each, of,
    tape::{address_f32, floats},
};
use crate::{AdamWStep, MuonStep, muon::POLAR_EXPRESS};
use candle_core::{Result, Tensor, Var};

/// Of a variable's gradient, and of its square.
pub(crate) struct Averages([Memory; 2]);

impl Averages {
    pub fn new(var: &Var) -> Result<Self> {
        let card = of(var.device())?;
        let zeros = || zeros(card.as_ref(), var.elem_count());
        Ok(Self([zeros()?, zeros()?]))
    }

    /// Moves the variable. `bias` is what the averages lack of one, having started at zero.
    pub fn step(&self, var: &Var, grad: &Tensor, step: AdamWStep, bias: (f64, f64)) -> Result<()> {
        let card = of(var.device())?;
        let grad = grad.contiguous()?;
        let n = var.elem_count();
        card.launch(
            each("adamw", n),
            arguments![
                address_f32(card.as_ref(), var)?,
                address_f32(card.as_ref(), &grad)?,
                &self.0[0],
                &self.0[1],
                (1.0 - step.betas.0) as f32,
                (1.0 - step.betas.1) as f32,
                (1.0 / bias.1) as f32,
                (step.lr / bias.0) as f32,
                step.eps as f32,
                n,
            ],
        )
    }
}

/// What Muon remembers of a stack of matrices: their mean gradients, and the mean squares of their
/// neurons' updates.
pub(crate) struct Moments {
    means: Memory,
    neurons: Memory,
}

impl Moments {
    pub fn new(vars: &[Var]) -> Result<Self> {
        let card = of(vars[0].device())?;
        let (rows, columns) = vars[0].dims2()?;
        Ok(Self {
            means: zeros(card.as_ref(), vars.len() * rows * columns)?,
            neurons: zeros(card.as_ref(), vars.len() * rows.max(columns))?,
        })
    }

    /// Moves the matrices, all of one shape.
    pub fn step(&self, vars: &[Var], grads: &[&Tensor], step: MuonStep) -> Result<()> {
        let card = of(vars[0].device())?;
        let card = card.as_ref();
        let (rows, columns) = vars[0].dims2()?;
        let n = rows * columns;
        let update = self.directions(card, grads, n, step.momentum as f32)?;
        let update = polar_express(card, update, vars.len(), (rows, columns))?;
        let by_rows = rows >= columns;
        let neurons = rows.max(columns);
        let scales = floats(card, vars.len() * neurons)?;
        let per_block = if by_rows { THREADS / 32 } else { THREADS };
        let launch = |kernel, grid| Launch { kernel, grid, threads: THREADS, shared: 0 };
        card.launch(
            launch("neuron_squares", [neurons.div_ceil(per_block), vars.len()]),
            arguments![&update, &scales, rows, columns, by_rows],
        )?;
        let fresh = (1.0 - step.beta2) as f32;
        card.launch(
            launch("neuron_scales", [vars.len(), 1]),
            arguments![&scales, &self.neurons, neurons, rows.min(columns) as f32, fresh],
        )?;
        for (i, var) in vars.iter().enumerate() {
            card.launch(
                each("descend", n),
                arguments![
                    address_f32(card, var)?,
                    update.address.offset(i * n * BF16),
                    scales.address.offset(i * neurons * F32),
                    columns,
                    by_rows,
                    step.lr as f32,
                    step.weight_decay as f32,
                    n,
                ],
            )?;
        }
        Ok(())
    }

    /// Nesterov's, one after another in `bf16` and a little shorter than one.
    fn directions(
        &self,
        card: &dyn Card,
        grads: &[&Tensor],
        n: usize,
        momentum: f32,
    ) -> Result<Memory> {
        let update = floats(card, grads.len() * n)?;
        let launch = each("nesterov", n);
        let parts = launch.grid[0];
        let partial = floats(card, grads.len() * parts)?;
        for (i, grad) in grads.iter().enumerate() {
            let grad = grad.contiguous()?;
            card.launch(
                launch,
                arguments![
                    address_f32(card, &grad)?,
                    self.means.address.offset(i * n * F32),
                    update.address.offset(i * n * F32),
                    partial.address.offset(i * parts * F32),
                    momentum,
                    n,
                ],
            )?;
        }
        let xs = card.allocate(grads.len() * n * BF16)?;
        let grid = [launch.grid[0], grads.len()];
        card.launch(
            Launch { kernel: "normalise", grid, ..launch },
            arguments![&update, &partial, parts, &xs, n],
        )?;
        Ok(xs)
    }
}

/// The nearest matrices with all singular values one, roughly.
fn polar_express(
    card: &dyn Card,
    mut xs: Memory,
    batch: usize,
    (rows, columns): (usize, usize),
) -> Result<Memory> {
    // Whichever square is the smaller.
    let (side, tall) = (rows.min(columns), rows > columns);
    let squares = || card.allocate(batch * side * side * BF16);
    let (gram, square) = (squares()?, squares()?);
    let mut next = card.allocate(xs.bytes)?;
    for (a, b, c) in POLAR_EXPRESS {
        let x = xs.address;
        card.product(Product {
            rows: side,
            columns: side,
            inner: rows.max(columns),
            a: (x, tall),
            b: (x, !tall),
            c: (gram.address, false),
            alpha: 1.0,
            beta: 0.0,
            batch,
        })?;
        card.product(Product {
            rows: side,
            columns: side,
            inner: side,
            a: (gram.address, false),
            b: (gram.address, false),
            c: (square.address, false),
            alpha: 1.0,
            beta: 0.0,
            batch,
        })?;
        let n = batch * side * side;
        card.launch(each("polynomial", n), arguments![&gram, &square, b as f32, c as f32, n])?;
        // (b G + c G²) X + a X, or from the right.
        card.copy(x, next.address, next.bytes)?;
        let (left, right) = if tall { (x, square.address) } else { (square.address, x) };
        card.product(Product {
            rows,
            columns,
            inner: side,
            a: (left, false),
            b: (right, false),
            c: (next.address, false),
            alpha: 1.0,
            beta: a as f32,
            batch,
        })?;
        std::mem::swap(&mut xs, &mut next);
    }
    Ok(xs)
}

fn zeros(card: &dyn Card, n: usize) -> Result<Memory> {
    let memory = floats(card, n)?;
    card.clear(&memory)?;
    Ok(memory)
}
