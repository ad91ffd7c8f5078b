//! What a card does number by number, and what candle does between two kernels.

use super::{
    BF16, Card, F32, Launch, Memory, THREADS, arguments, each,
    tape::{Node, Sink, address_f32, floats, from_tensor},
    warps,
};
use crate::{gradients::Loss, pass::Activations};
use candle_core::{Result, Tensor, Var, bail};

/// See [`relu_squared`](crate::relu_squared).
pub(crate) fn relu_squared(xs: &Node) -> Result<Activations> {
    let card = xs.tape.card();
    let n = xs.len();
    let ys = card.allocate(xs.values.bytes)?;
    card.launch(each("relu_squared", n), arguments![&*xs.values, &ys, n])?;
    let x = xs.clone();
    let node = xs.tape.record(ys, xs.channels, move |flow, d_ys| {
        flow.card.launch(each("relu_squared_backward", n), arguments![&*x.values, &d_ys, n])?;
        flow.give(x.at, d_ys)
    });
    Ok(Activations::Card(node))
}

/// See [`mix`](crate::mix).
pub(crate) fn mix(
    (xs, x0): (&Node, &Node),
    (lambdas, x0_lambdas): (&Tensor, &Tensor),
    layer: usize,
) -> Result<Activations> {
    if xs.dims() != x0.dims() {
        bail!("mix: {:?} and {:?}", xs.dims(), x0.dims());
    }
    if layer >= lambdas.dim(0)?.min(x0_lambdas.dim(0)?) {
        bail!("mix: layer {layer} of factors for {:?}", lambdas.shape());
    }
    let card = xs.tape.card();
    let n = xs.len();
    let ys = card.allocate(xs.values.bytes)?;
    let factors = [address_f32(card, lambdas)?, address_f32(card, x0_lambdas)?];
    card.launch(
        each("mix", n),
        arguments![&*xs.values, &*x0.values, factors[0], factors[1], layer, &ys, n],
    )?;
    let (x, x0) = (xs.clone(), x0.clone());
    let (lambdas, x0_lambdas) = (lambdas.clone(), x0_lambdas.clone());
    let node = xs.tape.record(ys, xs.channels, move |flow, d_ys| {
        let card = flow.card;
        let bytes = x.values.bytes;
        let mut slot = |at: Option<usize>| match at {
            Some(at) => flow.slot(at, bytes),
            None => Ok((super::Address::NULL, false)),
        };
        // One after the other: they may be the same.
        let (d_x0, more_x0) = slot(x0.at)?;
        let (d_x, more_x) = if x.at == x0.at { (super::Address::NULL, false) } else { slot(x.at)? };
        let launch = each("mix_backward", n);
        let blocks = launch.grid[0];
        let partial = floats(card, 2 * blocks)?;
        let factors = [card.address(&lambdas)?, card.address(&x0_lambdas)?];
        card.launch(
            launch,
            arguments![
                &*x.values,
                &*x0.values,
                factors[0],
                factors[1],
                layer,
                &d_ys,
                d_x,
                more_x,
                d_x0,
                more_x0,
                &partial,
                n,
            ],
        )?;
        for (part, factors) in [&lambdas, &x0_lambdas].into_iter().enumerate() {
            if factors.track_op() {
                let to = flow.sink.dense(card, factors)?.offset(layer * F32);
                let from = partial.address.offset(part * blocks * F32);
                card.launch(one_block("finish"), arguments![from, to, blocks, 1.0f32, true])?;
            }
        }
        if x.at.is_some() && x.at == x0.at {
            let memory = card.allocate(bytes)?;
            card.launch(
                launch,
                arguments![
                    &*x.values,
                    &*x0.values,
                    factors[0],
                    factors[1],
                    layer,
                    &d_ys,
                    &memory,
                    false,
                    super::Address::NULL,
                    false,
                    &partial,
                    n,
                ],
            )?;
            flow.give(x.at, memory)?;
        }
        Ok(())
    });
    Ok(Activations::Card(node))
}

fn one_block(kernel: &'static str) -> Launch {
    Launch { kernel, grid: [1, 1], threads: THREADS, shared: 0 }
}

/// See [`first_channels`](crate::first_channels).
pub(crate) fn first_channels(xs: &Node, count: usize) -> Result<Activations> {
    let (tokens, channels) = xs.dims();
    if count == 0 || count > channels {
        bail!("first_channels: {count} of {channels}");
    }
    let card = xs.tape.card();
    let ys = card.allocate(tokens * count * BF16)?;
    let numbers = arguments![&*xs.values, &ys, tokens, channels, count];
    card.launch(each("first_channels", tokens * count), numbers)?;
    let x = xs.clone();
    let node = xs.tape.record(ys, count, move |flow, d_ys| {
        let Some(at) = x.at else { return Ok(()) };
        let (d_xs, more) = flow.slot(at, x.values.bytes)?;
        if !more {
            // Zero but for what is added.
            flow.card.launch(each("fill", x.len()), arguments![d_xs, 0.0f32, x.len()])?;
        }
        flow.card.launch(
            each("first_channels_backward", tokens * count),
            arguments![&d_ys, d_xs, tokens, channels, count],
        )
    });
    Ok(Activations::Card(node))
}

/// See [`gated_add`](crate::gated_add).
pub(crate) fn gated_add(v: &Node, values: &Node, gates: &Node) -> Result<Activations> {
    let ((tokens, channels), heads) = (v.dims(), gates.channels);
    let fits = values.dims() == v.dims()
        && gates.tokens() == tokens
        && heads > 0
        && channels.is_multiple_of(heads);
    if !fits {
        bail!("gated_add: {heads} gates for values of {} and {channels} channels", values.channels);
    }
    let card = v.tape.card();
    let (rows, width) = (tokens * heads, channels / heads);
    let ys = card.allocate(v.values.bytes)?;
    card.launch(
        warps("gated_add", rows),
        arguments![&*v.values, &*values.values, &*gates.values, &ys, rows, width],
    )?;
    let (v, values, gates) = (v.clone(), values.clone(), gates.clone());
    let node = v.tape.clone().record(ys, channels, move |flow, d_ys| {
        let d_values = flow.card.allocate(values.values.bytes)?;
        let d_gates = flow.card.allocate(gates.values.bytes)?;
        flow.card.launch(
            warps("gated_add_backward", rows),
            arguments![&*values.values, &*gates.values, &d_ys, &d_values, &d_gates, rows, width],
        )?;
        flow.give(values.at, d_values)?;
        flow.give(gates.at, d_gates)?;
        flow.give(v.at, d_ys)
    });
    Ok(Activations::Card(node))
}

/// The sum of numbers times `factor`, in a place of its own.
pub(super) fn total(
    card: &dyn Card,
    kernel: &'static str,
    xs: &Memory,
    n: usize,
    factor: f32,
) -> Result<Memory> {
    let launch = each(kernel, n);
    let blocks = launch.grid[0];
    let partial = floats(card, blocks)?;
    card.launch(launch, arguments![xs, &partial, n])?;
    let sum = floats(card, 1)?;
    card.launch(one_block("finish"), arguments![&partial, &sum, blocks, factor, false])?;
    Ok(sum)
}

/// See [`Loss::mean`].
pub(crate) fn mean(xs: &Node) -> Result<Loss> {
    let n = xs.len();
    let mean = total(xs.tape.card(), "sum_bf16", &xs.values, n, 1.0 / n as f32)?;
    let slope = (xs.tape.share().unwrap_or(0.0) / n as f64) as f32;
    let x = xs.clone();
    Ok(xs.tape.loss(mean, xs, move |_: &mut Sink| {
        let card = x.tape.card();
        let d_x = card.allocate(x.values.bytes)?;
        card.launch(each("fill", n), arguments![&d_x, slope, n])?;
        Ok(d_x)
    }))
}

/// See [`apply`](crate::apply).
pub(crate) fn apply(
    nodes: Vec<&Node>,
    f: impl FnOnce(&[Tensor]) -> Result<Tensor>,
) -> Result<Activations> {
    let Some(first) = nodes.first() else { bail!("apply: there is no input") };
    let tape = first.tape.clone();
    let vars =
        nodes.iter().map(|node| Var::from_tensor(&node.tensor()?)).collect::<Result<Vec<_>>>()?;
    let tensors: Vec<_> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let ys = f(&tensors)?;
    let (tokens, channels) = ys.dims2()?;
    let values = from_tensor(tape.card(), &ys.detach())?;
    let ats: Vec<_> = nodes.iter().map(|node| node.at).collect();
    let own = tape.clone();
    let node = tape.record(values, channels, move |flow, d_ys| {
        let card = flow.card;
        let slopes = own.zeros(&[tokens, channels])?;
        let n = tokens * channels;
        card.launch(each("to_f32", n), arguments![&d_ys, card.address(&slopes)?, n])?;
        let grads = (&ys * slopes)?.sum_all()?.backward()?;
        for (var, at) in vars.iter().zip(ats) {
            if let Some(grad) = grads.get(var) {
                flow.give(at, from_tensor(card, grad)?)?;
            }
        }
        for tensor in ys.sorted_nodes().into_iter().filter(|tensor| tensor.is_variable()) {
            let inner = vars.iter().any(|var| var.id() == tensor.id());
            if let (false, Some(grad)) = (inner, grads.get(tensor)) {
                flow.sink.give(card, tensor, grad.contiguous()?)?;
            }
        }
        Ok(())
    });
    Ok(Activations::Card(node))
}
