//! Embeddings: rows of a table.

use crate::{
    card, composed,
    pass::{Activations, Fused, Pass},
    storage,
    tape::Tape,
};
use candle_core::{Result, Tensor, bail};
use std::rc::Rc;

impl Pass {
    /// The rows of `table`, `[vocabulary, channel]`, for these tokens: where activations begin.
    pub fn embedding(&self, table: &Tensor, ids: &[u32]) -> Result<Activations> {
        match self {
            Self::Bf16(tape) => fused(tape, table, ids),
            Self::F32(tape) => fused(tape, table, ids),
            Self::Card(tape) => card::embedding(tape, table, ids),
            Self::Composed => composed::embedding(table, ids).map(Activations::Composed),
        }
    }
}

fn fused<E: Fused>(tape: &Rc<Tape<E>>, table: &Tensor, ids: &[u32]) -> Result<Activations> {
    let (vocabulary, channels) = table.dims2()?;
    if let Some(id) = ids.iter().find(|&&id| id as usize >= vocabulary) {
        bail!("embedding: token {id} of a vocabulary of {vocabulary}");
    }
    let ys = storage::read([&table.detach()], |[table]: [&[f32]; 1]| {
        let row = |&id: &u32| &table[id as usize * channels..][..channels];
        ids.iter().flat_map(row).map(|&x| E::store(x)).collect()
    })?;
    let (table, ids) = (table.clone(), ids.to_vec());
    let node = tape.record(ys, channels, move |flow, d_ys: Vec<E>| {
        if table.track_op() {
            let gradients = d_ys.into_iter().map(E::load).collect();
            flow.sink.rows(&table, ids, gradients);
        }
        Ok(())
    });
    Ok(E::activations(node))
}
