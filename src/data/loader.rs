//! Training batches, packed on a thread so that the trainer never waits for them.

use super::{Packer, TokenFile};
use crate::error::{Error, Result};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::{path::Path, thread};

/// Hands out batches of any shape. While one is trained on, the next of that shape is packed.
///
/// What comes depends on the seed and the shapes asked for, never on timing.
pub struct Loader {
    orders: Sender<Order>,
    batches: Receiver<Order>,
    /// The shape of the batch that is being packed, or waits.
    ahead: Option<(usize, usize)>,
    /// Space to give along with the next order.
    spare: Vec<u32>,
    /// The batch that was handed out last.
    rows: Vec<u32>,
}

/// Rows to be filled, `seq_len + 1` tokens each: goes out empty and comes back full.
struct Order {
    shape: (usize, usize),
    rows: Vec<u32>,
}

impl Loader {
    /// Opens a token file and starts the thread, which ends with the loader.
    ///
    /// # Errors
    /// The file cannot be read, or has no document.
    pub fn open(path: &Path, bos: u32, seed: u64) -> Result<Self> {
        let packer = Packer::endless(TokenFile::open(path)?, bos, seed)?;
        let (orders, inbox) = bounded(1);
        let (outbox, batches) = bounded(1);
        let spawned = thread::Builder::new()
            .name("loader".to_owned())
            .spawn(move || pack(packer, &inbox, &outbox));
        spawned.map_err(Error::io("start a thread to read", path))?;
        Ok(Self { orders, batches, ahead: None, spare: Vec::new(), rows: Vec::new() })
    }

    /// The next `batch_size` rows of `seq_len + 1` tokens each, row major.
    ///
    /// # Errors
    /// The thread is gone, which no trainer can bring about.
    pub fn next_rows(&mut self, batch_size: usize, seq_len: usize) -> Result<&[u32]> {
        let shape = (batch_size, seq_len);
        if self.ahead.is_some_and(|ahead| ahead != shape) {
            // Packed for nothing; but always so when shapes change like this.
            self.spare = self.receive()?;
        }
        if self.ahead.is_none() {
            self.order(shape)?;
        }
        let rows = self.receive()?;
        self.spare = std::mem::replace(&mut self.rows, rows);
        self.order(shape)?;
        Ok(&self.rows)
    }

    /// The same batch as inputs and targets, of `batch_size * seq_len` tokens each, row major:
    /// `targets[b, i]` is the token after `inputs[b, i]`.
    ///
    /// # Errors
    /// As [`next_rows`](Self::next_rows).
    pub fn next(
        &mut self,
        batch_size: usize,
        seq_len: usize,
        inputs: &mut [u32],
        targets: &mut [u32],
    ) -> Result<()> {
        let rows = self.next_rows(batch_size, seq_len)?;
        let pairs = inputs.chunks_exact_mut(seq_len).zip(targets.chunks_exact_mut(seq_len));
        for (row, (inputs, targets)) in rows.chunks_exact(seq_len + 1).zip(pairs) {
            inputs.copy_from_slice(&row[..seq_len]);
            targets.copy_from_slice(&row[1..]);
        }
        Ok(())
    }

    fn order(&mut self, shape: (usize, usize)) -> Result<()> {
        let rows = std::mem::take(&mut self.spare);
        self.orders.send(Order { shape, rows }).map_err(|_| gone())?;
        self.ahead = Some(shape);
        Ok(())
    }

    fn receive(&mut self) -> Result<Vec<u32>> {
        self.ahead = None;
        Ok(self.batches.recv().map_err(|_| gone())?.rows)
    }
}

fn pack(mut packer: Packer, inbox: &Receiver<Order>, outbox: &Sender<Order>) {
    for mut order in inbox {
        let (batch_size, seq_len) = order.shape;
        order.rows.resize(batch_size * (seq_len + 1), 0);
        for row in order.rows.chunks_exact_mut(seq_len + 1) {
            // An endless packer fills every row.
            packer.fill(row);
        }
        if outbox.send(order).is_err() {
            return;
        }
    }
}

fn gone() -> Error {
    Error::Data {
        what: "the training tokens".to_owned(),
        problem: "the thread that packs them has ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_the_packers_rows_whatever_the_shapes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.bin");
        let documents: Vec<Vec<u16>> = (0..500).map(|i| vec![i; 3 + i as usize % 50]).collect();
        TokenFile::write(&path, &documents).unwrap();

        let batch = |loader: &mut Loader, batch_size, seq_len| {
            let mut inputs = vec![0; batch_size * seq_len];
            let mut targets = inputs.clone();
            loader.next(batch_size, seq_len, &mut inputs, &mut targets).unwrap();
            (inputs, targets)
        };
        let mut loader = Loader::open(&path, 1000, 3).unwrap();
        let mut packer = Packer::endless(TokenFile::open(&path).unwrap(), 1000, 3).unwrap();
        for _ in 0..20 {
            let (inputs, targets) = batch(&mut loader, 2, 16);
            for (inputs, targets) in inputs.chunks(16).zip(targets.chunks(16)) {
                let mut row = [0; 17];
                packer.fill(&mut row);
                assert_eq!(inputs, &row[..16]);
                assert_eq!(targets, &row[1..]);
            }
        }
        let changing = || {
            let mut loader = Loader::open(&path, 1000, 3).unwrap();
            [(2, 16), (2, 16), (3, 8), (1, 1), (2, 16)].map(|(b, t)| batch(&mut loader, b, t))
        };
        assert_eq!(changing(), changing());
    }
}
