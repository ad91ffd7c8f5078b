//! What a part of a batch leaves behind on its way through the model, and how gradients come back.

use super::{Address, BF16, Card, F32, Memory, arguments, each, of, upload_ids};
use crate::gradients::{CardBackward, Loss};
use candle_core::{DType, Device, Result, Tensor, TensorId, bail};
use std::{
    cell::{OnceCell, RefCell},
    collections::HashMap,
    rc::Rc,
};

/// What comes back through an operation: the gradient of its output goes in.
type Step = Box<dyn FnOnce(&mut Flow<'_>, Memory) -> Result<()>>;

/// The operations of a part, in their order.
pub struct Tape {
    weights: Rc<Weights>,
    /// The part that this is of the whole loss; none where no gradient is wanted.
    share: Option<f64>,
    steps: RefCell<Vec<Step>>,
    lookups: RefCell<Vec<Rc<Lookup>>>,
}

/// Tokens in the card's memory, for every table that they are looked up in.
pub(super) struct Lookup {
    tokens: Vec<u32>,
    pub ids: Memory,
    sorted: OnceCell<Sorted>,
}

/// Where each token stands, sorted by their ids and cut into runs; see `embedding.cu`.
pub(super) struct Sorted {
    _memory: Memory,
    pub order: Address,
    pub starts: Address,
    pub targets: Address,
    pub runs: usize,
    /// Rows of partial sums.
    pub partial: usize,
    /// Ids with more than one run, and where the partial sums of each begin.
    pub ids: Address,
    pub firsts: Address,
    pub split: usize,
}

impl Lookup {
    pub fn sorted(&self, card: &dyn Card) -> Result<&Sorted> {
        if let Some(sorted) = self.sorted.get() {
            return Ok(sorted);
        }
        let runs = Runs::of(&self.tokens);
        // In one piece: to a small batch every copy is dear.
        let lists = [&runs.order, &runs.starts, &runs.targets, &runs.ids, &runs.firsts];
        let memory = upload_ids(card, &lists.map(Vec::as_slice).concat())?;
        let mut next = memory.address;
        let [order, starts, targets, ids, firsts] = lists.map(|list| {
            let here = next;
            next = next.offset(list.len() * F32);
            here
        });
        let sorted = Sorted {
            _memory: memory,
            order,
            starts,
            targets,
            runs: runs.targets.len(),
            partial: runs.firsts.last().map_or(0, |&rows| rows as usize),
            ids,
            firsts,
            split: runs.ids.len(),
        };
        Ok(self.sorted.get_or_init(|| sorted))
    }
}

/// Tokens by their ids.
#[derive(Debug, Default)]
struct Runs {
    order: Vec<u32>,
    starts: Vec<u32>,
    targets: Vec<u32>,
    ids: Vec<u32>,
    firsts: Vec<u32>,
}

impl Runs {
    /// Tokens that a warp adds up one after another, at most.
    const LONGEST: usize = 32;
    /// What marks a row of partial sums among the targets.
    const PARTIAL: u32 = 1 << 31;

    fn of(tokens: &[u32]) -> Self {
        let highest = tokens.iter().max().map_or(0, |&id| id as usize);
        let mut next = vec![0u32; highest + 2];
        for &id in tokens {
            next[id as usize + 1] += 1;
        }
        for id in 0..=highest {
            next[id + 1] += next[id];
        }
        let mut runs = Self { firsts: vec![0], ..Self::default() };
        for id in 0..=highest as u32 {
            let (from, to) = (next[id as usize], next[id as usize + 1]);
            let starts = (from..to).step_by(Self::LONGEST);
            let count = starts.len() as u32;
            runs.starts.extend(starts);
            if count > 1 {
                let first = runs.firsts[runs.ids.len()];
                runs.targets.extend((first..first + count).map(|row| Self::PARTIAL | row));
                runs.ids.push(id);
                runs.firsts.push(first + count);
            } else if count == 1 {
                runs.targets.push(id);
            }
        }
        runs.starts.push(tokens.len() as u32);
        runs.order = vec![0; tokens.len()];
        for (place, &id) in (0u32..).zip(tokens) {
            runs.order[next[id as usize] as usize] = place;
            next[id as usize] += 1;
        }
        runs
    }
}

impl Tape {
    pub(super) fn new(weights: Rc<Weights>, share: Option<f64>) -> Self {
        Self { weights, share, steps: RefCell::default(), lookups: RefCell::default() }
    }

    /// The factor of this part's mean loss in that of the batch.
    pub(super) fn share(&self) -> Option<f64> {
        self.share
    }

    /// The card of a weight's device, which every weight of a model has to share.
    pub(super) fn begin(&self, weight: &Tensor) -> Result<&dyn Card> {
        self.weights.begin(weight.device())
    }

    pub(super) fn card(&self) -> &dyn Card {
        let place = self.weights.place.get();
        place.expect("activations begin with a table").card.as_ref()
    }

    /// The weight in `bf16`.
    pub(super) fn weight(&self, weight: &Tensor) -> Result<Rc<Weight>> {
        self.weights.get(weight)
    }

    /// The tokens, uploaded once.
    pub(super) fn lookup(&self, tokens: &[u32]) -> Result<Rc<Lookup>> {
        let mut lookups = self.lookups.borrow_mut();
        if let Some(lookup) = lookups.iter().find(|lookup| lookup.tokens == tokens) {
            return Ok(lookup.clone());
        }
        let ids = upload_ids(self.card(), tokens)?;
        let lookup = Lookup { tokens: tokens.to_vec(), ids, sorted: OnceCell::new() };
        lookups.push(Rc::new(lookup));
        Ok(lookups[lookups.len() - 1].clone())
    }

    /// Zeros in `f32`, as one of candle's tensors.
    pub(super) fn zeros(&self, shape: &[usize]) -> Result<Tensor> {
        let place = self.weights.place.get().expect("activations begin with a table");
        Tensor::zeros(shape, DType::F32, &place.device)
    }

    pub(super) fn record(
        self: &Rc<Self>,
        values: impl Into<Rc<Memory>>,
        channels: usize,
        backward: impl FnOnce(&mut Flow<'_>, Memory) -> Result<()> + 'static,
    ) -> Node {
        let at = self.share.map(|_| {
            let mut steps = self.steps.borrow_mut();
            steps.push(Box::new(backward));
            steps.len() - 1
        });
        Node { tape: self.clone(), at, channels, values: values.into() }
    }

    /// A loss whose value stands in `mean`. `backward` answers with the gradient of `x`.
    pub(super) fn loss(
        self: &Rc<Self>,
        mean: Memory,
        x: &Node,
        backward: impl FnOnce(&mut Sink) -> Result<Memory> + 'static,
    ) -> Loss {
        let (tape, at) = (self.clone(), x.at);
        let backward = move |sink: &mut Sink| {
            let d_x = backward(sink)?;
            tape.backward(at, d_x, sink)
        };
        Loss::card(mean, self.share.map(|_| Box::new(backward) as CardBackward))
    }

    fn backward(&self, at: Option<usize>, d_x: Memory, sink: &mut Sink) -> Result<()> {
        let mut steps = self.steps.take();
        let mut flow = Flow { card: self.card(), gradients: Vec::new(), sink };
        flow.gradients.resize_with(steps.len(), || None);
        flow.give(at, d_x)?;
        while let Some(step) = steps.pop() {
            if let Some(gradient) = flow.gradients.pop().flatten() {
                step(&mut flow, gradient)?;
            }
        }
        Ok(())
    }
}

/// Activations on a card.
#[derive(Clone)]
pub struct Node {
    pub(super) tape: Rc<Tape>,
    /// Its step on the tape.
    pub(super) at: Option<usize>,
    pub(super) channels: usize,
    pub(super) values: Rc<Memory>,
}

impl Node {
    /// Numbers in all.
    pub(super) fn len(&self) -> usize {
        self.values.bytes / BF16
    }

    pub(crate) fn dims(&self) -> (usize, usize) {
        (self.len() / self.channels, self.channels)
    }

    pub(super) fn tokens(&self) -> usize {
        self.dims().0
    }

    /// A copy in `f32`, without a graph.
    pub(crate) fn tensor(&self) -> Result<Tensor> {
        let (tokens, channels) = self.dims();
        let tensor = self.tape.zeros(&[tokens, channels])?;
        let card = self.tape.card();
        let n = self.len();
        let to = card.address(&tensor)?;
        card.launch(each("to_f32", n), arguments![&*self.values, to, n])?;
        Ok(tensor)
    }
}

/// `bf16` from one of candle's tensors.
pub(super) fn from_tensor(card: &dyn Card, tensor: &Tensor) -> Result<Memory> {
    let tensor = tensor.to_dtype(DType::F32)?.contiguous()?;
    let n = tensor.elem_count();
    let memory = card.allocate(n * BF16)?;
    card.launch(each("to_bf16", n), arguments![card.address(&tensor)?, &memory, n])?;
    Ok(memory)
}

/// Gradients on their way back.
pub(super) struct Flow<'a> {
    pub card: &'a dyn Card,
    gradients: Vec<Option<Memory>>,
    pub sink: &'a mut Sink,
}

impl Flow<'_> {
    /// Adds to the gradient of the output at `at`.
    pub fn give(&mut self, at: Option<usize>, gradient: Memory) -> Result<()> {
        let Some(at) = at else { return Ok(()) };
        match &self.gradients[at] {
            None => self.gradients[at] = Some(gradient),
            Some(sum) => {
                let n = sum.bytes / BF16;
                self.card.launch(each("add", n), arguments![sum, &gradient, n])?;
            }
        }
        Ok(())
    }

    /// The gradient of the output at `at`, and whether there is something in it to add to.
    pub fn slot(&mut self, at: usize, bytes: usize) -> Result<(Address, bool)> {
        if let Some(sum) = &self.gradients[at] {
            return Ok((sum.address, true));
        }
        let memory = self.card.allocate(bytes)?;
        let address = memory.address;
        self.gradients[at] = Some(memory);
        Ok((address, false))
    }
}

/// The sums of gradients of weights, in the order in which they were first met.
#[derive(Default)]
pub(crate) struct Sink(Vec<(Tensor, Tensor)>);

impl Sink {
    /// Where the gradient of a weight is added up, in `f32`.
    pub(super) fn dense(&mut self, card: &dyn Card, weight: &Tensor) -> Result<Address> {
        card.address(self.sum(weight)?)
    }

    /// Adds a gradient in `f32`.
    pub(super) fn give(
        &mut self,
        card: &dyn Card,
        weight: &Tensor,
        gradient: Tensor,
    ) -> Result<()> {
        match self.0.iter().find(|(known, _)| known.id() == weight.id()) {
            None => self.0.push((weight.clone(), gradient)),
            Some((_, sum)) => {
                let n = gradient.elem_count();
                let addresses = (card.address(sum)?, card.address(&gradient)?);
                card.launch(each("add_f32", n), arguments![addresses.0, addresses.1, n])?;
            }
        }
        Ok(())
    }

    fn sum(&mut self, weight: &Tensor) -> Result<&Tensor> {
        let at = match self.0.iter().position(|(known, _)| known.id() == weight.id()) {
            Some(at) => at,
            None => {
                let zeros = Tensor::zeros(weight.shape(), DType::F32, weight.device())?;
                self.0.push((weight.clone(), zeros));
                self.0.len() - 1
            }
        };
        Ok(&self.0[at].1)
    }

    /// Weights and their gradients.
    pub(super) fn into_sums(self) -> Vec<(Tensor, Tensor)> {
        self.0
    }
}

/// Weights as products want them, prepared by the first part that uses them.
#[derive(Default)]
pub(super) struct Weights {
    place: OnceCell<Place>,
    prepared: RefCell<HashMap<TensorId, Rc<Weight>>>,
}

struct Place {
    device: Device,
    card: Rc<dyn Card>,
}

/// A weight in `bf16`, `[outputs, inputs]`.
pub(super) struct Weight {
    pub packed: Memory,
    pub outputs: usize,
    pub inputs: usize,
    /// Whether a gradient is wanted.
    pub trained: bool,
}

impl Weights {
    fn begin(&self, device: &Device) -> Result<&dyn Card> {
        if self.place.get().is_none() {
            let place = Place { device: device.clone(), card: of(device)? };
            self.place.get_or_init(|| place);
        }
        Ok(self.place.get().expect("it was just set").card.as_ref())
    }

    fn get(&self, weight: &Tensor) -> Result<Rc<Weight>> {
        if let Some(ready) = self.prepared.borrow().get(&weight.id()) {
            return Ok(ready.clone());
        }
        let (outputs, inputs) = weight.dims2()?;
        let card = self.begin(weight.device())?;
        let packed = from_tensor(card, &weight.detach())?;
        let ready = Rc::new(Weight { packed, outputs, inputs, trained: weight.track_op() });
        self.prepared.borrow_mut().insert(weight.id(), ready.clone());
        Ok(ready)
    }
}

/// The address of a vector or matrix of `f32`.
pub(super) fn address_f32(card: &dyn Card, tensor: &Tensor) -> Result<Address> {
    if tensor.dtype() != DType::F32 {
        bail!("a card computes with weights in f32, not {:?}", tensor.dtype());
    }
    card.address(tensor)
}

/// Memory for `n` numbers of `f32`.
pub(super) fn floats(card: &dyn Card, n: usize) -> Result<Memory> {
    card.allocate(n * F32)
}

#[cfg(test)]
mod tests {
    use super::Runs;

    #[test]
    fn tokens_are_sorted_by_their_ids_and_stay_in_order() {
        let runs = Runs::of(&[5, 0, 5, 2, 0, 5]);
        assert_eq!(runs.starts, [0, 2, 3, 6]);
        assert_eq!(runs.targets, [0, 2, 5]);
        assert_eq!(runs.order, [1, 4, 3, 0, 2, 5]);
        assert_eq!((runs.ids.len(), runs.firsts), (0, vec![0]));
    }

    #[test]
    fn many_tokens_of_one_id_are_several_runs() {
        let tokens: Vec<u32> = (0..70).map(|n| if n == 3 { 1 } else { 4 }).collect();
        let runs = Runs::of(&tokens);
        assert_eq!(runs.starts, [0, 1, 33, 65, 70]);
        assert_eq!(runs.targets, [1, Runs::PARTIAL, Runs::PARTIAL | 1, Runs::PARTIAL | 2]);
        assert_eq!((runs.ids, runs.firsts), (vec![4], vec![0, 3]));
        assert_eq!((runs.order[0], runs.order[1]), (3, 0));
    }
}
