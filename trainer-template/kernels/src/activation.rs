//! ReLU², the activation of the MLP.

use crate::{
    card, composed,
    element::vectorized,
    pass::{Activations, Fused, dispatch},
    tape::Node,
};
use candle_core::Result;

/// `max(x, 0)²`, element by element (So et al. 2021, *Primer*, arXiv 2109.08668).
pub fn relu_squared(xs: &Activations) -> Result<Activations> {
    dispatch!([xs], fused(xs), card::relu_squared(xs), {
        composed::relu_squared(xs).map(Activations::Composed)
    })
}

fn fused<E: Fused>(xs: &Node<E>) -> Result<Activations> {
    let mut ys = vec![E::default(); xs.values().len()];
    forward(xs.values(), &mut ys);
    let x = xs.clone();
    let node = xs.tape.record(ys, xs.channels, move |flow, mut d_ys: Vec<E>| {
        backward(x.values(), &mut d_ys);
        flow.give(x.at, d_ys);
        Ok(())
    });
    Ok(E::activations(node))
}

vectorized! {
    fn forward<E>(xs: &[E], ys: &mut [E]) {
        for (y, x) in ys.iter_mut().zip(xs) {
            let x = x.load();
            // As a product, so that NaN stays NaN.
            *y = E::store(x * positive(x));
        }
    }
}

vectorized! {
    /// Turns the gradient of the result into that of the argument.
    fn backward<E>(xs: &[E], d: &mut [E]) {
        for (d, x) in d.iter_mut().zip(xs) {
            *d = E::store(2.0 * positive(x.load()) * d.load());
        }
    }
}

#[inline(always)]
fn positive(x: f32) -> f32 {
    if x > 0.0 { x } else { 0.0 }
}
