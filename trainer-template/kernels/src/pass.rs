//! A pass through a model: what was computed, and how its gradients come back.
//!
//! On the CPU a batch is cut into shards of a few hundred tokens, and each goes forward and backward
//! on one thread, so that its activations stay in that thread's cache and threads meet once a step
//! instead of at every operation. Which shards there are and in what order their gradients are added
//! depends on the shapes alone, so the number of threads changes no bit of a result.

use crate::{
    product::{Mode, Number},
    storage,
};
use candle_core::{DType, Device, Error, Tensor, TensorId, Var, backprop::GradStore, bail};
use half::bf16;
use rayon::prelude::*;
use std::{
    cell::{OnceCell, RefCell},
    collections::HashMap,
    ops::Range,
    rc::Rc,
    sync::{Arc, Mutex, OnceLock},
};

type Result<T, E = Error> = std::result::Result<T, E>;

/// What activations are computed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compute {
    /// Fused operations on the CPU: activations and products in `bf16`, sums in `f32`.
    Bf16,
    /// Fused operations on the CPU, in `f32`.
    F32,
    /// candle's own operations, on any device, in the type of the parameters.
    Composed,
}

impl Compute {
    /// The fastest for parameters of this type, there.
    pub fn fastest(device: &Device, dtype: DType) -> Self {
        match (device, dtype) {
            (Device::Cpu, DType::F32) if crate::multiplies_bf16() => Self::Bf16,
            (Device::Cpu, DType::F32) => Self::F32,
            _ => Self::Composed,
        }
    }
}

/// Tokens of a shard, if its rows are no longer: enough for products to be efficient, few enough
/// for the activations of a layer to stay in the cache.
const SHARD_TOKENS: usize = 512;
/// Sets of gradients that shards add to at the same time.
const LANES: usize = 8;

/// The rows of each shard.
fn shards(rows: usize, seq_len: usize) -> Vec<Range<usize>> {
    let size = (SHARD_TOKENS / seq_len.max(1)).max(1);
    (0..rows).step_by(size).map(|first| first..rows.min(first + size)).collect()
}

/// The mean loss of `rows` sequences of `seq_len` tokens, and its gradients.
///
/// `loss` answers for the range of rows that it is given: with the mean over their tokens.
pub fn gradients<Failure: From<Error> + Send>(
    compute: Compute,
    (rows, seq_len): (usize, usize),
    loss: impl Fn(&Pass, Range<usize>) -> Result<Loss, Failure> + Sync,
) -> Result<(f64, Gradients), Failure> {
    match compute {
        Compute::Bf16 => fused_gradients::<bf16, _>(rows, seq_len, loss),
        Compute::F32 => fused_gradients::<f32, _>(rows, seq_len, loss),
        Compute::Composed => {
            let loss = loss(&Pass::Composed, 0..rows)?;
            Ok(composed_gradients(loss)?)
        }
    }
}

fn composed_gradients(loss: Loss) -> Result<(f64, Gradients)> {
    let Kind::Composed(mean) = loss.0 else { bail!("gradients: the loss is of another pass") };
    let value = mean.to_dtype(DType::F64)?.to_scalar()?;
    Ok((value, Gradients(Source::Candle(mean.backward()?))))
}

fn fused_gradients<E: Fused, Failure: From<Error> + Send>(
    rows: usize,
    seq_len: usize,
    loss: impl Fn(&Pass, Range<usize>) -> Result<Loss, Failure> + Sync,
) -> Result<(f64, Gradients), Failure> {
    let weights = Arc::new(Weights::<E>::new(true));
    let shards = shards(rows, seq_len);
    let size = shards.len().div_ceil(LANES).max(1);
    let lane = |shards: &[Range<usize>]| {
        let (mut sum, mut sink) = (0.0, Sink::default());
        for shard in shards {
            let share = shard.len() as f64 / rows as f64;
            let tape = Rc::new(Tape::new(weights.clone(), Some(share)));
            let (mean, gradients) = loss(&E::pass(tape), shard.clone())?.backward(sink)?;
            sum += share * mean;
            sink = gradients;
        }
        Ok((sum, sink))
    };
    let lanes = shards.par_chunks(size).map(lane).collect::<Result<Vec<_>, Failure>>()?;
    let mean = lanes.iter().map(|(sum, _)| sum).sum();
    let sinks: Vec<_> = lanes.into_iter().map(|(_, sink)| sink).collect();
    Ok((mean, Gradients::merge(sinks)?))
}

/// Answers for `rows` sequences of `seq_len` tokens, without gradients: those of `answer` for each
/// range of rows that it is given, one after another.
pub fn infer<Failure: From<Error> + Send>(
    compute: Compute,
    (rows, seq_len): (usize, usize),
    answer: impl Fn(&Pass, Range<usize>) -> Result<Vec<f32>, Failure> + Sync,
) -> Result<Vec<f32>, Failure> {
    match compute {
        Compute::Bf16 => fused_infer::<bf16, _>(rows, seq_len, answer),
        Compute::F32 => fused_infer::<f32, _>(rows, seq_len, answer),
        Compute::Composed => answer(&Pass::Composed, 0..rows),
    }
}

fn fused_infer<E: Fused, Failure: From<Error> + Send>(
    rows: usize,
    seq_len: usize,
    answer: impl Fn(&Pass, Range<usize>) -> Result<Vec<f32>, Failure> + Sync,
) -> Result<Vec<f32>, Failure> {
    let weights = Arc::new(Weights::<E>::new(false));
    let shards = shards(rows, seq_len).into_par_iter();
    let pass = || E::pass(Rc::new(Tape::new(weights.clone(), None)));
    let answers = shards.map(|shard| answer(&pass(), shard)).collect::<Result<Vec<_>, _>>()?;
    Ok(answers.concat())
}

/// One shard on its way through the model.
pub enum Pass {
    #[doc(hidden)]
    Bf16(Rc<Tape<bf16>>),
    #[doc(hidden)]
    F32(Rc<Tape<f32>>),
    #[doc(hidden)]
    Composed,
}

/// The output of an operation: `[token, channel]`, the tokens of a shard's sequences one after
/// another.
#[derive(Clone)]
pub enum Activations {
    #[doc(hidden)]
    Bf16(Node<bf16>),
    #[doc(hidden)]
    F32(Node<f32>),
    /// With the graph that candle keeps.
    Composed(Tensor),
}

/// Runs an operation on activations of one kind: a generic function on fused ones, or its composed
/// twin.
macro_rules! dispatch {
    ([$first:ident $(, $other:ident)*], $fused:expr, $composed:expr) => {
        match ($first $(, $other)*) {
            #[allow(unused_parens)]
            ($crate::pass::Activations::Bf16($first) $(, $crate::pass::Activations::Bf16($other))*) => $fused,
            #[allow(unused_parens)]
            ($crate::pass::Activations::F32($first) $(, $crate::pass::Activations::F32($other))*) => $fused,
            #[allow(unused_parens)]
            ($crate::pass::Activations::Composed($first) $(, $crate::pass::Activations::Composed($other))*) => $composed,
            #[allow(unreachable_patterns)]
            _ => candle_core::bail!("activations of different passes"),
        }
    };
}
pub(crate) use dispatch;

impl Activations {
    /// Tokens and channels.
    pub fn dims(&self) -> Result<(usize, usize)> {
        match self {
            Self::Bf16(node) => Ok((node.tokens(), node.channels)),
            Self::F32(node) => Ok((node.tokens(), node.channels)),
            Self::Composed(tensor) => tensor.dims2(),
        }
    }

    /// The values alone, `[token, channel]`; no gradient comes back from there. See [`apply`].
    pub fn values(&self) -> Result<Tensor> {
        match self {
            Self::Bf16(node) => node.tensor(),
            Self::F32(node) => node.tensor(),
            Self::Composed(tensor) => Ok(tensor.detach()),
        }
    }
}

/// Any differentiable expression of candle's on activations: `f` gets a tensor `[token, channel]`
/// for each of `inputs` and returns another one. Slower than a fused operation, and complete:
/// gradients go to the inputs and to every variable that `f` uses.
pub fn apply(
    inputs: &[&Activations],
    f: impl FnOnce(&[Tensor]) -> Result<Tensor>,
) -> Result<Activations> {
    fn fused<E: Fused>(
        nodes: Vec<&Node<E>>,
        f: impl FnOnce(&[Tensor]) -> Result<Tensor>,
    ) -> Result<Activations> {
        let Some(first) = nodes.first() else { bail!("apply: there is no input") };
        let vars = nodes
            .iter()
            .map(|node| Var::from_tensor(&node.tensor()?))
            .collect::<Result<Vec<_>>>()?;
        let tensors: Vec<_> = vars.iter().map(|var| var.as_tensor().clone()).collect();
        let ys = f(&tensors)?;
        let (_, channels) = ys.dims2()?;
        let values = storage::read([&ys.detach()], |[ys]: [&[f32]; 1]| {
            ys.iter().map(|&y| E::store(y)).collect()
        })?;
        let ats: Vec<_> = nodes.iter().map(|node| node.at).collect();
        let node = first.tape.record(values, channels, move |flow, d_ys: Vec<E>| {
            let d_ys: Vec<f32> = d_ys.into_iter().map(E::load).collect();
            let d_ys = Tensor::from_vec(d_ys, ys.shape(), &Device::Cpu)?;
            let grads = (&ys * d_ys)?.sum_all()?.backward()?;
            for (var, at) in vars.iter().zip(ats) {
                if let Some(grad) = grads.get(var) {
                    let grad = storage::read([grad], |[xs]: [&[f32]; 1]| {
                        xs.iter().map(|&x| E::store(x)).collect()
                    })?;
                    flow.give(at, grad);
                }
            }
            for tensor in ys.sorted_nodes().into_iter().filter(|tensor| tensor.is_variable()) {
                let inner = vars.iter().any(|var| var.id() == tensor.id());
                if let (false, Some(grad)) = (inner, grads.get(tensor)) {
                    let sums = flow.sink.dense(tensor);
                    storage::read([grad], |[grad]: [&[f32]; 1]| {
                        sums.iter_mut().zip(grad).for_each(|(sum, x)| *sum += x);
                    })?;
                }
            }
            Ok(())
        });
        Ok(E::activations(node))
    }
    match inputs.first() {
        Some(Activations::Bf16(_)) => fused(nodes_of::<bf16>(inputs)?, f),
        Some(Activations::F32(_)) => fused(nodes_of::<f32>(inputs)?, f),
        _ => {
            let tensors = inputs
                .iter()
                .map(|input| match input {
                    Activations::Composed(tensor) => Ok(tensor.clone()),
                    _ => bail!("activations of different passes"),
                })
                .collect::<Result<Vec<_>>>()?;
            f(&tensors).map(Activations::Composed)
        }
    }
}

fn nodes_of<'a, E: Fused>(inputs: &[&'a Activations]) -> Result<Vec<&'a Node<E>>> {
    let node = |input: &&'a Activations| match E::node(input) {
        Some(node) => Ok(node),
        None => bail!("activations of different passes"),
    };
    inputs.iter().map(node).collect()
}

/// An element type that there are fused operations for.
pub trait Fused: Number {
    fn pass(tape: Rc<Tape<Self>>) -> Pass;
    fn activations(node: Node<Self>) -> Activations;
    fn node(activations: &Activations) -> Option<&Node<Self>>;
}

impl Fused for bf16 {
    fn pass(tape: Rc<Tape<Self>>) -> Pass {
        Pass::Bf16(tape)
    }

    fn activations(node: Node<Self>) -> Activations {
        Activations::Bf16(node)
    }

    fn node(activations: &Activations) -> Option<&Node<Self>> {
        match activations {
            Activations::Bf16(node) => Some(node),
            _ => None,
        }
    }
}

impl Fused for f32 {
    fn pass(tape: Rc<Tape<Self>>) -> Pass {
        Pass::F32(tape)
    }

    fn activations(node: Node<Self>) -> Activations {
        Activations::F32(node)
    }

    fn node(activations: &Activations) -> Option<&Node<Self>> {
        match activations {
            Activations::F32(node) => Some(node),
            _ => None,
        }
    }
}

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
    fn new(weights: Arc<Weights<E>>, share: Option<f64>) -> Self {
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
        Loss(Kind::Fused { mean, backward: self.share.map(|_| Box::new(backward) as Backward) })
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

    fn tensor(&self) -> Result<Tensor> {
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

/// The sums of gradients of weights, in the order in which they were first met: what is added up
/// later must not depend on the order of a hash table.
#[derive(Default)]
pub struct Sink(Vec<Sums>);

struct Sums {
    weight: Tensor,
    dense: Option<Vec<f32>>,
    /// Of a table: the rows that were looked up, and their gradients.
    rows: Vec<(Vec<u32>, Vec<f32>)>,
}

impl Sink {
    pub(crate) fn dense(&mut self, weight: &Tensor) -> &mut [f32] {
        self.sums(weight).dense.get_or_insert_with(|| vec![0.0; weight.elem_count()])
    }

    pub(crate) fn rows(&mut self, table: &Tensor, ids: Vec<u32>, gradients: Vec<f32>) {
        self.sums(table).rows.push((ids, gradients));
    }

    fn sums(&mut self, weight: &Tensor) -> &mut Sums {
        // A model has tens of weights.
        let at = self.0.iter().position(|sums| sums.weight.id() == weight.id());
        let at = at.unwrap_or_else(|| {
            self.0.push(Sums { weight: weight.clone(), dense: None, rows: Vec::new() });
            self.0.len() - 1
        });
        &mut self.0[at]
    }
}

/// Gradients of a loss, by variable.
pub struct Gradients(Source);

enum Source {
    Fused(HashMap<TensorId, Tensor>),
    Candle(GradStore),
}

impl Gradients {
    /// The gradient of a variable, of the same shape.
    pub fn get(&self, var: &Tensor) -> Option<&Tensor> {
        match &self.0 {
            Source::Fused(gradients) => gradients.get(&var.id()),
            Source::Candle(gradients) => gradients.get(var),
        }
    }

    /// The sums over all lanes, in their order.
    fn merge(lanes: Vec<Sink>) -> Result<Self> {
        let mut weights: Vec<(Tensor, Vec<Sums>)> = Vec::new();
        for sums in lanes.into_iter().flat_map(|lane| lane.0) {
            match weights.iter_mut().find(|(weight, _)| weight.id() == sums.weight.id()) {
                Some((_, parts)) => parts.push(sums),
                None => weights.push((sums.weight.clone(), vec![sums])),
            }
        }
        let sums = weights
            .into_par_iter()
            .map(|(weight, parts)| {
                let gradient =
                    Tensor::from_vec(total(&weight, parts)?, weight.shape(), &Device::Cpu)?;
                Ok((weight, gradient))
            })
            .collect::<Result<Vec<_>>>()?;
        let mut gradients: HashMap<TensorId, Tensor> = HashMap::new();
        let mut add = |id, gradient: &Tensor| -> Result<()> {
            let sum = match gradients.get(&id) {
                Some(sum) => (sum + gradient)?,
                None => gradient.clone(),
            };
            gradients.insert(id, sum);
            Ok(())
        };
        for (tensor, gradient) in &sums {
            if tensor.is_variable() {
                add(tensor.id(), gradient)?;
                continue;
            }
            // A weight that was computed from variables by candle.
            let grads = (tensor * gradient)?.sum_all()?.backward()?;
            for var in tensor.sorted_nodes().into_iter().filter(|node| node.is_variable()) {
                if let Some(gradient) = grads.get(var) {
                    add(var.id(), gradient)?;
                }
            }
        }
        Ok(Self(Source::Fused(gradients)))
    }
}

fn total(weight: &Tensor, mut parts: Vec<Sums>) -> Result<Vec<f32>> {
    let mut dense = parts.iter_mut().filter_map(|part| part.dense.take());
    let mut total = dense.next().unwrap_or_else(|| vec![0.0; weight.elem_count()]);
    for part in dense {
        total.iter_mut().zip(part).for_each(|(total, x)| *total += x);
    }
    let width = weight.dim(candle_core::D::Minus1)?;
    for (ids, gradients) in parts.into_iter().flat_map(|part| part.rows) {
        for (&id, gradient) in ids.iter().zip(gradients.chunks_exact(width)) {
            let row = &mut total[id as usize * width..][..width];
            row.iter_mut().zip(gradient).for_each(|(total, x)| *total += x);
        }
    }
    Ok(total)
}

/// A mean over tokens, in nats.
pub struct Loss(Kind);

type Backward = Box<dyn FnOnce(Sink) -> Result<Sink>>;

enum Kind {
    Fused { mean: f64, backward: Option<Backward> },
    Composed(Tensor),
}

impl Loss {
    pub(crate) fn composed(mean: Tensor) -> Self {
        Self(Kind::Composed(mean))
    }

    /// The value, and the sums with its gradients added.
    fn backward(self, sink: Sink) -> Result<(f64, Sink)> {
        match self.0 {
            Kind::Fused { mean, backward: Some(backward) } => Ok((mean, backward(sink)?)),
            _ => bail!("gradients: the loss is of another pass"),
        }
    }

    /// The mean of all `activations`.
    pub fn mean(activations: &Activations) -> Result<Self> {
        fn fused<E: Fused>(x: &Node<E>) -> Result<Loss> {
            let count = x.values().len();
            let sum: f64 = x.values().iter().map(|x| f64::from(x.load())).sum();
            let slope = x.tape.share().unwrap_or(0.0) / count as f64;
            let d_x = move |_: &mut Sink| vec![E::store(slope as f32); count];
            Ok(x.tape.loss(sum / count as f64, x, d_x))
        }
        dispatch!([activations], fused(activations), activations.mean_all().map(Self::composed))
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
    fn new(backward: bool) -> Self {
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
