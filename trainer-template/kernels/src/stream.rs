//! What is done to the residual stream and to values, beside matrices.

use crate::{
    card, composed,
    element::vectorized,
    math::tanh,
    pass::{Activations, Fused, dispatch},
    storage,
    tape::Node,
};
use candle_core::{Result, Tensor, bail};

/// `lambdas[layer] * x + x0_lambdas[layer] * x0`: a layer's way to keep the residual stream, and to
/// look at its beginning again. Both lists are `[layer]`.
pub fn mix(
    (xs, x0): (&Activations, &Activations),
    (lambdas, x0_lambdas): (&Tensor, &Tensor),
    layer: usize,
) -> Result<Activations> {
    let factors = (lambdas, x0_lambdas);
    dispatch!(
        [xs, x0],
        fused_mix((xs, x0), factors, layer),
        card::mix((xs, x0), factors, layer),
        composed::mix((xs, x0), factors, layer).map(Activations::Composed)
    )
}

fn fused_mix<E: Fused>(
    (xs, x0): (&Node<E>, &Node<E>),
    (lambdas, x0_lambdas): (&Tensor, &Tensor),
    layer: usize,
) -> Result<Activations> {
    if xs.values().len() != x0.values().len() || layer >= lambdas.elem_count() {
        bail!("mix: {} and {} values at layer {layer}", xs.values().len(), x0.values().len());
    }
    let read = |list: &Tensor| {
        storage::read([&list.detach()], |[list]: [&[f32]; 1]| list.get(layer).copied())
    };
    let (Some(a), Some(b)) = (read(lambdas)?, read(x0_lambdas)?) else {
        bail!("mix: there is no lambda of layer {layer}");
    };
    let mut ys = vec![E::default(); xs.values().len()];
    sum(xs.values(), x0.values(), &mut ys, a, b);
    let (x, x0, lists) = (xs.clone(), x0.clone(), [lambdas.clone(), x0_lambdas.clone()]);
    let node = xs.tape.record(ys, xs.channels, move |flow, d_ys: Vec<E>| {
        for (list, x) in lists.iter().zip([&x, &x0]) {
            if list.track_op() {
                let mut product = 0.0;
                dot(x.values(), &d_ys, &mut product);
                flow.sink.dense(list)[layer] += product;
            }
        }
        for (x, factor) in [(&x0, b), (&x, a)] {
            if x.at.is_some() {
                let mut d_xs = vec![E::default(); d_ys.len()];
                scale(&d_ys, &mut d_xs, factor);
                flow.give(x.at, d_xs);
            }
        }
        Ok(())
    });
    Ok(E::activations(node))
}

vectorized! {
    fn sum<E>(xs: &[E], x0: &[E], ys: &mut [E], a: f32, b: f32) {
        for ((y, x), x0) in ys.iter_mut().zip(xs).zip(x0) {
            *y = E::store(a * x.load() + b * x0.load());
        }
    }
}

vectorized! {
    fn scale<E>(xs: &[E], ys: &mut [E], factor: f32) {
        for (y, x) in ys.iter_mut().zip(xs) {
            *y = E::store(factor * x.load());
        }
    }
}

vectorized! {
    fn dot<E>(xs: &[E], ys: &[E], product: &mut f32) {
        *product = crate::math::dot(xs, ys);
    }
}

/// The first `count` channels.
pub fn first_channels(xs: &Activations, count: usize) -> Result<Activations> {
    dispatch!([xs], fused_first(xs, count), card::first_channels(xs, count), {
        xs.narrow(1, 0, count).map(Activations::Composed)
    })
}

fn fused_first<E: Fused>(xs: &Node<E>, count: usize) -> Result<Activations> {
    let channels = xs.channels;
    if count == 0 || count > channels {
        bail!("first_channels: {count} of {channels}");
    }
    let ys = xs.values().chunks_exact(channels).flat_map(|x| &x[..count]).copied().collect();
    let x = xs.clone();
    let node = xs.tape.record(ys, count, move |flow, d_ys: Vec<E>| {
        if let Some(at) = x.at {
            let (d_xs, _) = flow.slot(at, x.values().len());
            // A fresh gradient is zero elsewhere.
            for (d_x, d_y) in d_xs.chunks_exact_mut(channels).zip(d_ys.chunks_exact(count)) {
                for (d_x, d_y) in d_x.iter_mut().zip(d_y) {
                    *d_x = E::store(d_x.load() + d_y.load());
                }
            }
        }
        Ok(())
    });
    Ok(E::activations(node))
}

/// `v + 2 sigmoid(gate) * values`, where each head of `values`, `[token, channel]`, has one gate:
/// `gates` is `[token, head]`. How value embeddings enter (ResFormer, arXiv 2410.17897).
pub fn gated_add(
    v: &Activations,
    values: &Activations,
    gates: &Activations,
) -> Result<Activations> {
    dispatch!(
        [v, values, gates],
        fused_gate(v, values, gates),
        card::gated_add(v, values, gates),
        composed::gated_add(v, values, gates).map(Activations::Composed)
    )
}

fn fused_gate<E: Fused>(v: &Node<E>, values: &Node<E>, gates: &Node<E>) -> Result<Activations> {
    let (channels, heads) = (v.channels, gates.channels);
    let fits = v.values().len() == values.values().len()
        && values.channels == channels
        && gates.tokens() == v.tokens()
        && channels.is_multiple_of(heads);
    if !fits {
        bail!("gated_add: {heads} gates for values of {} and {channels} channels", values.channels);
    }
    let width = channels / heads;
    let mut ys = vec![E::default(); v.values().len()];
    gate(v.values(), values.values(), gates.values(), &mut ys, width);
    let (v, values, gates) = (v.clone(), values.clone(), gates.clone());
    let node = v.tape.clone().record(ys, channels, move |flow, d_ys: Vec<E>| {
        let mut d_values = vec![E::default(); d_ys.len()];
        let mut d_gates = vec![E::default(); gates.values().len()];
        d_gate(values.values(), gates.values(), &d_ys, &mut d_values, &mut d_gates, width);
        flow.give(values.at, d_values);
        flow.give(gates.at, d_gates);
        flow.give(v.at, d_ys);
        Ok(())
    });
    Ok(E::activations(node))
}

vectorized! {
    fn gate<E>(v: &[E], values: &[E], gates: &[E], ys: &mut [E], width: usize) {
        let heads = v.chunks_exact(width).zip(values.chunks_exact(width)).zip(gates);
        for (y, ((v, values), gate)) in ys.chunks_exact_mut(width).zip(heads) {
            // 2 sigmoid(z) = 1 + tanh(z / 2)
            let gate = 1.0 + tanh(0.5 * gate.load());
            for ((y, v), value) in y.iter_mut().zip(v).zip(values) {
                *y = E::store(v.load() + gate * value.load());
            }
        }
    }
}

vectorized! {
    fn d_gate<E>(
        values: &[E],
        gates: &[E],
        d_ys: &[E],
        d_values: &mut [E],
        d_gates: &mut [E],
        width: usize,
    ) {
        let inputs = values.chunks_exact(width).zip(gates).zip(d_ys.chunks_exact(width));
        let outputs = d_values.chunks_exact_mut(width).zip(d_gates);
        for ((d_values, d_gate), ((values, gate), d_y)) in outputs.zip(inputs) {
            let tanh = tanh(0.5 * gate.load());
            *d_gate = E::store(0.5 * (1.0 - tanh * tanh) * crate::math::dot(values, d_y));
            for (d_value, d_y) in d_values.iter_mut().zip(d_y) {
                *d_value = E::store((1.0 + tanh) * d_y.load());
            }
        }
    }
}
