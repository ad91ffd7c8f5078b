//! Attention on a card: forward by blocks of queries, backward twice, by blocks of keys for the keys'
//! and values' gradients and by blocks of queries for theirs. So nothing is added atomically, at the
//! price of two of seven products.

use super::{
    Launch, THREADS, arguments,
    elementwise::apply,
    tape::{Node, floats},
};
use crate::{Heads, composed, pass::Activations};
use candle_core::{Result, bail};
use std::rc::Rc;

/// How a kernel is launched for heads of up to so many channels; see the head of `attention.cu`.
struct Tile {
    kernel: &'static str,
    /// Queries or keys of a block.
    rows: usize,
    threads: usize,
    shared: usize,
}

/// Forward, and backward by keys and by queries.
struct Tiles {
    channels: usize,
    forward: Tile,
    keys: Tile,
    queries: Tile,
}

const fn tile(kernel: &'static str, rows: usize, threads: usize, shared: usize) -> Tile {
    Tile { kernel, rows, threads, shared }
}

const TILES: [Tiles; 3] = [
    Tiles {
        channels: 32,
        forward: tile("attention_forward_32", 128, 128, 24_576),
        keys: tile("attention_backward_keys_32", 64, 128, 33_792),
        queries: tile("attention_backward_queries_32", 128, 128, 24_576),
    },
    Tiles {
        channels: 64,
        forward: tile("attention_forward_64", 128, 128, 49_152),
        keys: tile("attention_backward_keys_64", 64, 128, 58_368),
        queries: tile("attention_backward_queries_64", 128, 128, 49_152),
    },
    Tiles {
        channels: 128,
        forward: tile("attention_forward_128", 128, 128, 98_304),
        keys: tile("attention_backward_keys_128", 64, 128, 107_520),
        queries: tile("attention_backward_queries_128", 128, 128, 98_304),
    },
];

/// A grid is no longer in its second dimension.
const MOST_HEADS: usize = 65_535;

/// See [`attention`](crate::attention).
pub(crate) fn attention(q: &Node, k: &Node, v: &Node, heads: Heads) -> Result<Activations> {
    let Heads { time, channels: width, window } = heads;
    let Some(tiles) = TILES.iter().find(|tiles| width <= tiles.channels) else {
        return apply(vec![q, k, v], |xs| composed::attention(&xs[0], &xs[1], &xs[2], heads));
    };
    let card = q.tape.card();
    let (tokens, channels) = q.dims();
    let (sequences, count) = (tokens / time, channels / width);
    let window = window.min(time);
    let scale = heads.scale();
    let launch = move |tile: &Tile| Launch {
        kernel: tile.kernel,
        grid: [time.div_ceil(tile.rows), sequences * count],
        threads: tile.threads,
        shared: tile.shared,
    };
    if sequences * count > MOST_HEADS {
        bail!("attention: {sequences} sequences of {count} heads in one part of a batch");
    }
    let ys = Rc::new(card.allocate(q.values.bytes)?);
    let log_totals = floats(card, tokens * count)?;
    card.launch(
        launch(&tiles.forward),
        arguments![
            &*q.values,
            &*k.values,
            &*v.values,
            &*ys,
            &log_totals,
            sequences,
            time,
            count,
            width,
            channels,
            window,
            scale
        ],
    )?;
    let (q, k, v) = (q.clone(), k.clone(), v.clone());
    let node = q.tape.clone().record(ys.clone(), channels, move |flow, d_ys| {
        let card = flow.card;
        let delta = floats(card, tokens * count)?;
        // Sixteen rows a block, at least.
        let grid = [(tokens * count).div_ceil(16), 1];
        card.launch(
            Launch { kernel: "attention_delta", grid, threads: THREADS, shared: 0 },
            arguments![&*ys, &d_ys, &delta, sequences, time, count, width, channels],
        )?;
        let [d_q, d_k, d_v] = [(); 3].map(|()| card.allocate(d_ys.bytes));
        let (d_q, d_k, d_v) = (d_q?, d_k?, d_v?);
        card.launch(
            launch(&tiles.keys),
            arguments![
                &*q.values,
                &*k.values,
                &*v.values,
                &d_ys,
                &log_totals,
                &delta,
                &d_k,
                &d_v,
                sequences,
                time,
                count,
                width,
                channels,
                window,
                scale
            ],
        )?;
        card.launch(
            launch(&tiles.queries),
            arguments![
                &*q.values,
                &*k.values,
                &*v.values,
                &d_ys,
                &log_totals,
                &delta,
                &d_q,
                sequences,
                time,
                count,
                width,
                channels,
                window,
                scale
            ],
        )?;
        flow.give(v.at, d_v)?;
        flow.give(k.at, d_k)?;
        flow.give(q.at, d_q)
    });
    Ok(Activations::Card(node))
}
