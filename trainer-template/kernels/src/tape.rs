//! What a shard leaves behind on its way through the model, and how gradients come back along it.

use crate::{
    gradients::{Backward, Loss, Sink},
    pass::Fused,
    product::{Mode, Number},
    storage,
};
use candle_core::{Device, Result, Tensor, TensorId};
use std::{
    cell::{OnceCell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::{Arc, Mutex, OnceLock},
};

/// What comes back through an operation: the gradient of its output goes in.
type Step<E> = Box<dyn FnOnce(&mut Flow<E>, Vec<E>) -> Result<()>>;

/// The operations of a shard, in their order.
pub struct Tape<E: Number> {
    weights: Arc<Weights<E>>,
    /// The part that this shard is of the whole loss; none where no gradient is wanted.
    share: Option<f64>,
    steps: RefCell<Vec<Step<E>>>,
}

impl<E: Fused> Tape<E> {
    pub(crate) fn new(weights: Arc<Weights<E>>, share: Option<f64>) -> Self {
        Self { weights, share, steps: RefCell::new(Vec::new()) }
    }

    /// The factor of the shard's mean loss in that of the batch.
    pub(crate) fn share(&self) -> Option<f64> {
        self.share
    }

    /// The weight, prepared for products.
    pub(crate) fn weight(&self, weight: &Tensor) -> Result<Arc<Weight<E>>> {
        self.weights.get(weight)
    }

    pub(crate) fn record(
        self: &Rc<Self>,
        values: Vec<E>,
        channels: usize,
        backward: impl FnOnce(&mut Flow<E>, Vec<E>) -> Result<()> + 'static,
    ) -> Node<E> {
        let at = self.share.map(|_| {
            let mut steps = self.steps.borrow_mut();
            steps.push(Box::new(backward));
            steps.len() - 1
        });
        let values = Rc::new(Values { elements: values, input: OnceCell::new() });
        Node { tape: self.clone(), at, channels, values }
    }

    /// A loss of this value. `backward` answers with the gradient of `x`.
    pub(crate) fn loss(
        self: &Rc<Self>,
        mean: f64,
        x: &Node<E>,
        backward: impl FnOnce(&mut Sink) -> Vec<E> + 'static,
    ) -> Loss {
        let (tape, at) = (self.clone(), x.at);
        let backward = move |mut sink: Sink| {
            let d_x = backward(&mut sink);
            tape.backward(at, d_x, sink)
        };
        Loss::fused(mean, self.share.map(|_| Box::new(backward) as Backward))
    }

    fn backward(&self, at: Option<usize>, d_x: Vec<E>, sink: Sink) -> Result<Sink> {
        let mut steps = self.steps.take();
        let mut flow = Flow { gradients: Vec::new(), sink };
        flow.gradients.resize_with(steps.len(), || None);
        flow.give(at, d_x);
        while let Some(step) = steps.pop() {
            if let Some(gradient) = flow.gradients.pop().flatten() {
                step(&mut flow, gradient)?;
            }
        }
        Ok(flow.sink)
    }
}

/// Values, and their layer-input form once something asked for it.
struct Values<E: Number> {
    elements: Vec<E>,
    input: OnceCell<E::Input>,
}

/// Activations of a fused pass.
pub struct Node<E: Number> {
    pub(crate) tape: Rc<Tape<E>>,
    /// Its step on the tape.
    pub(crate) at: Option<usize>,
    pub(crate) channels: usize,
    values: Rc<Values<E>>,
}

impl<E: Number> Clone for Node<E> {
    fn clone(&self) -> Self {
        let Self { tape, at, channels, values } = self;
        Self { tape: tape.clone(), at: *at, channels: *channels, values: values.clone() }
    }
}

impl<E: Fused> Node<E> {
    pub(crate) fn values(&self) -> &[E] {
        &self.values.elements
    }

    pub(crate) fn tokens(&self) -> usize {
        self.values.elements.len() / self.channels
    }

    /// Packed once, however many layers read it.
    pub(crate) fn input(&self) -> &E::Input {
        self.values.input.get_or_init(|| E::input(&self.values.elements, self.channels))
    }

    pub(crate) fn tensor(&self) -> Result<Tensor> {
        let values: Vec<f32> = self.values().iter().map(|x| x.load()).collect();
        Tensor::from_vec(values, (self.tokens(), self.channels), &Device::Cpu)
    }
}

/// Gradients on their way back.
pub struct Flow<E: Number> {
    gradients: Vec<Option<Vec<E>>>,
    pub(crate) sink: Sink,
}

impl<E: Number> Flow<E> {
    /// Adds to the gradient of the output at `at`.
    pub(crate) fn give(&mut self, at: Option<usize>, gradient: Vec<E>) {
        let Some(at) = at else { return };
        match &mut self.gradients[at] {
            empty @ None => *empty = Some(gradient),
            Some(sum) => {
                for (sum, x) in sum.iter_mut().zip(gradient) {
                    *sum = E::store(sum.load() + x.load());
                }
            }
        }
    }

    /// The gradient of the output at `at`, to be written or added to.
    pub(crate) fn slot(&mut self, at: usize, len: usize) -> (&mut [E], Mode) {
        match &mut self.gradients[at] {
            Some(sum) => (sum, Mode::Add),
            empty @ None => (empty.insert(vec![E::default(); len]), Mode::Overwrite),
        }
    }
}

/// Weights as products want them, prepared by the first shard that uses them.
pub(crate) struct Weights<E: Number> {
    backward: bool,
    prepared: Mutex<HashMap<TensorId, Arc<OnceLock<Shared<E>>>>>,
}

type Shared<E> = Arc<Weight<E>>;

/// A prepared weight, `[outputs, inputs]`.
pub(crate) struct Weight<E: Number> {
    pub packed: E::Weight,
    pub outputs: usize,
    pub inputs: usize,
    /// Whether a gradient is wanted.
    pub trained: bool,
}

impl<E: Number> Weights<E> {
    pub(crate) fn new(backward: bool) -> Self {
        Self { backward, prepared: Mutex::new(HashMap::new()) }
    }

    fn get(&self, weight: &Tensor) -> Result<Arc<Weight<E>>> {
        let (outputs, inputs) = weight.dims2()?;
        let entry = {
            let mut prepared = self.prepared.lock().expect("nothing panics while it is held");
            prepared.entry(weight.id()).or_default().clone()
        };
        if let Some(ready) = entry.get() {
            return Ok(ready.clone());
        }
        // Others that want the same weight wait for it, those that want another do not.
        storage::read([&weight.detach()], |[elements]: [&[f32]; 1]| {
            let prepare = || Weight {
                packed: E::weight(elements, inputs, self.backward),
                outputs,
                inputs,
                trained: weight.track_op(),
            };
            entry.get_or_init(|| Arc::new(prepare())).clone()
        })
    }
}
