//! Embeddings on a card.

use super::{
    BF16, Launch, THREADS, Tape, arguments, each,
    tape::{address_f32, floats},
    warps,
};
use crate::pass::Activations;
use candle_core::{Result, Tensor, bail};
use std::rc::Rc;

/// See [`Pass::embedding`](crate::Pass::embedding).
pub(crate) fn embedding(tape: &Rc<Tape>, table: &Tensor, ids: &[u32]) -> Result<Activations> {
    let (vocabulary, channels) = table.dims2()?;
    if let Some(id) = ids.iter().find(|&&id| id as usize >= vocabulary) {
        bail!("embedding: token {id} of a vocabulary of {vocabulary}");
    }
    let card = tape.begin(table)?;
    let lookup = tape.lookup(ids)?;
    let rows = table.detach().contiguous()?;
    let (tokens, n) = (ids.len(), ids.len() * channels);
    let ys = card.allocate(n * BF16)?;
    card.launch(
        each("embedding", n),
        arguments![address_f32(card, &rows)?, &lookup.ids, &ys, tokens, channels],
    )?;
    let table = table.clone();
    let node = tape.record(ys, channels, move |flow, d_ys| {
        if !table.track_op() {
            return Ok(());
        }
        let sorted = lookup.sorted(flow.card)?;
        let d_table = flow.sink.dense(flow.card, &table)?;
        // Four channels a thread, or one.
        let width = if channels.is_multiple_of(4) { 128 } else { 32 };
        let partial = floats(flow.card, sorted.partial * channels)?;
        let runs = warps("embedding_backward", sorted.runs);
        let grid = [runs.grid[0], channels.div_ceil(width)];
        flow.card.launch(
            Launch { grid, ..runs },
            arguments![
                &d_ys,
                sorted.starts,
                sorted.targets,
                sorted.order,
                d_table,
                &partial,
                sorted.runs,
                channels
            ],
        )?;
        if sorted.split == 0 {
            return Ok(());
        }
        let grid = [sorted.split, 1];
        flow.card.launch(
            Launch { kernel: "embedding_finish", grid, threads: THREADS, shared: 0 },
            arguments![&partial, sorted.ids, sorted.firsts, d_table, channels],
        )
    });
    Ok(Activations::Card(node))
}
