//! RMS norm on a card, alone and after rotary embeddings.

use super::{arguments, tape::Node, tape::address_f32, warps};
use crate::pass::Activations;
use candle_core::{Result, Tensor};

/// See [`rms_norm`](crate::rms_norm).
pub(crate) fn rms_norm(xs: &Node) -> Result<Activations> {
    let card = xs.tape.card();
    let (tokens, width) = xs.dims();
    let ys = card.allocate(xs.values.bytes)?;
    card.launch(warps("rms_norm", tokens), arguments![&*xs.values, &ys, tokens, width])?;
    let x = xs.clone();
    let node = xs.tape.record(ys, width, move |flow, d_ys| {
        let Some(at) = x.at else { return Ok(()) };
        let (d_xs, more) = flow.slot(at, x.values.bytes)?;
        flow.card.launch(
            warps("rms_norm_backward", tokens),
            arguments![&*x.values, &d_ys, d_xs, more, tokens, width],
        )
    });
    Ok(Activations::Card(node))
}

/// See [`rotary_norm`](crate::rotary_norm). The tables are as long as a sequence.
pub(crate) fn rotary_norm(xs: &Node, cos: &Tensor, sin: &Tensor) -> Result<Activations> {
    let card = xs.tape.card();
    let (time, half) = cos.dims2()?;
    let heads = xs.channels / (2 * half);
    let rows = xs.tokens() * heads;
    // Threads that share a head, eight channels of each half in each; zero is a warp that goes over it.
    let lanes =
        if half % 8 == 0 && (half / 8).is_power_of_two() && half <= 256 { half / 8 } else { 0 };
    let launch =
        move |kernel| warps(kernel, if lanes > 0 { (rows * lanes).div_ceil(32) } else { rows });
    let tables = [cos.contiguous()?, sin.contiguous()?];
    let ys = card.allocate(xs.values.bytes)?;
    let addresses = [address_f32(card, &tables[0])?, address_f32(card, &tables[1])?];
    card.launch(
        launch("rotary"),
        arguments![&*xs.values, addresses[0], addresses[1], &ys, rows, time, heads, half, lanes],
    )?;
    let x = xs.clone();
    let node = xs.tape.record(ys, xs.channels, move |flow, d_ys| {
        let addresses = [flow.card.address(&tables[0])?, flow.card.address(&tables[1])?];
        flow.card.launch(
            launch("rotary_backward"),
            arguments![
                &*x.values,
                addresses[0],
                addresses[1],
                &d_ys,
                &d_ys,
                rows,
                time,
                heads,
                half,
                lanes
            ],
        )?;
        flow.give(x.at, d_ys)
    });
    Ok(Activations::Card(node))
}
