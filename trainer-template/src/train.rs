//! The trainer, all of it: this is the file to edit.
//!
//! A small GPT as in nanochat, trained with Muon and AdamW. The order is that of autoresearch's
//! train.py: hyperparameters, model, optimizer, schedules, training loop. Whatever is here may
//! change; the rest of the crate may not.

use candle_core::{DType, Device, Tensor, Var, safetensors};
use overnight_kernels::{
    self as kernels, Activations, AdamW, AdamWStep, Compute, Gradients, Heads, Loss, Muon,
    MuonStep, Pass,
};
use overnight_plugin_api::{Batch, Error, Result, Session, Setup, Trainer, Windows};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::collections::{BTreeMap, HashMap};
use std::f64::consts::PI;
use std::path::Path;

// ---------------------------------------------------------------------------
// Hyperparameters
// ---------------------------------------------------------------------------
// `search:` tells the built-in tuner what it may try; any combination must be a valid model.

// Model
const DEPTH: usize = 4; // number of layers  search: choice 2 3 4 5 6 8
const WIDTH: usize = 128; // channels of the residual stream  search: choice 64 128 192 256
const HEAD_DIM: usize = 32; // channels of one attention head  search: choice 16 32 64
const WINDOW_PATTERN: &str = "SSSL"; // layer by layer, repeated: S sees half the context, L all of it
const MLP_RATIO: usize = 4; // hidden channels of the MLP per channel  search: choice 2 3 4 6
const GATE_CHANNELS: usize = 32; // channels that the value embeddings' gates look at
const ROTARY_BASE: f64 = 10_000.0; // longest wavelength of the positions  search: log 1e3..1e5
const SOFT_CAP: f64 = 15.0; // logits stay within plus and minus this  search: log 5..50

// Batch
const BATCH_ROWS: usize = 8; // sequences a step  search: choice 4 8 16 32
const SEQUENCE_LEN: usize = 256; // tokens a sequence, or fewer if windows are shorter  search: choice 64 128 256

// Optimization
const EMBEDDING_LR: f64 = 0.6; // token and value embeddings (AdamW)  search: log 0.03..3
const UNEMBEDDING_LR: f64 = 0.004; // lm_head (AdamW)  search: log 4e-4..4e-2
const MATRIX_LR: f64 = 0.04; // everything inside the layers (Muon)  search: log 4e-3..0.2
const SCALAR_LR: f64 = 0.5; // lambdas of the residual stream (AdamW)  search: log 0.02..2
const ADAM_BETA1: f64 = 0.8; // memory of AdamW's mean gradient  search: uniform 0.5..0.95
const ADAM_BETA2: f64 = 0.95; // memory of its mean square  search: uniform 0.9..0.999
const X0_BETA1: f64 = 0.96; // the same as ADAM_BETA1 for x0_lambdas, which every token pulls at
const ADAM_EPS: f64 = 1e-10; // keeps AdamW from dividing by zero
const MUON_MOMENTUM: f64 = 0.95; // memory of Muon's mean gradient  search: uniform 0.85..0.98
const MUON_MOMENTUM_START: f64 = 0.85; // the same at first, when old gradients mislead  search: uniform 0.7..0.95
const MUON_BETA2: f64 = 0.95; // memory of the variance of each neuron's update  search: uniform 0.8..0.99
const WEIGHT_DECAY: f64 = 0.2; // of the matrices, falling to zero  search: log 1e-2..1

// Schedules, in fractions of the budget
const MOMENTUM_WARMUP: f64 = 0.3; // how long the momentum rises (train.py: 300 of about 950 steps)
const WARMUP_RATIO: f64 = 0.0; // how long the learning rates rise  search: uniform 0..0.2
const WARMDOWN_RATIO: f64 = 0.5; // how long they fall at the end  search: uniform 0.1..0.9
const FINAL_LR_FRACTION: f64 = 0.0; // what is left of them  search: uniform 0..0.2

// Arithmetic
const BF16: bool = true; // activations and products in bf16, where the processor or card multiplies it

// Answering
const SCORE_TOKENS: usize = 4096; // tokens scored at a time, which bounds the memory of logits

const _: () = assert!(WIDTH.is_multiple_of(HEAD_DIM), "WIDTH must be a multiple of HEAD_DIM");
const _: () = assert!(HEAD_DIM.is_multiple_of(2), "rotary embeddings need an even HEAD_DIM");

// ---------------------------------------------------------------------------
// GPT model
// ---------------------------------------------------------------------------

#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub vocab_size: usize,
    pub sequence_len: usize,
    pub n_layer: usize,
    pub n_embd: usize,
    pub head_dim: usize,
    pub window_pattern: String,
}

impl Config {
    fn new(setup: &Setup) -> Self {
        Self {
            vocab_size: setup.vocab_size,
            sequence_len: setup.max_seq_len,
            n_layer: DEPTH,
            n_embd: WIDTH,
            head_dim: HEAD_DIM,
            window_pattern: WINDOW_PATTERN.to_owned(),
        }
    }

    /// How far back each layer sees. The last one always sees everything.
    fn windows(&self) -> Result<Vec<usize>> {
        let long = self.sequence_len;
        let letters = self.window_pattern.chars().cycle().take(self.n_layer);
        let mut windows = letters
            .map(|letter| match letter {
                'S' => Ok(long / 2),
                'L' => Ok(long),
                _ => Err(Error::msg(format!("WINDOW_PATTERN has an {letter:?}: S or L"))),
            })
            .collect::<Result<Vec<_>>>()?;
        match windows.last_mut() {
            Some(last) => *last = long,
            None => return Err(Error::msg("a model needs a layer and a WINDOW_PATTERN")),
        }
        Ok(windows)
    }

    /// Value embeddings on every other layer, the last included.
    fn has_value_embedding(&self, layer: usize) -> bool {
        layer % 2 == (self.n_layer - 1) % 2
    }
}

/// RMS norm without gains: what follows is a matrix, which can scale for itself.
fn norm(x: &Activations) -> Result<Activations> {
    Ok(kernels::rms_norm(x)?)
}

/// `weight` is `[out, in]`.
fn linear(x: &Activations, weight: &Tensor) -> Result<Activations> {
    Ok(kernels::linear(x, weight)?)
}

/// What a pass through the model starts from: sequences of `time` tokens, one after another.
struct Input<'a> {
    pass: &'a Pass,
    tokens: &'a [u32],
    time: usize,
}

struct CausalSelfAttention {
    c_q: Tensor,
    c_k: Tensor,
    c_v: Tensor,
    c_proj: Tensor,
    value_embedding: Option<ValueEmbedding>,
    window: usize,
}

/// A second embedding of the tokens, mixed into the values (ResFormer, arXiv 2410.17897).
struct ValueEmbedding {
    table: Tensor,
    gate: Tensor,
}

impl ValueEmbedding {
    /// The values and what is looked up, each head of that scaled by a gate of 0 to 2 that starts
    /// at 1.
    fn add(&self, v: &Activations, x: &Activations, input: &Input<'_>) -> Result<Activations> {
        let seen = kernels::first_channels(x, self.gate.dim(1)?)?;
        let values = input.pass.embedding(&self.table, input.tokens)?;
        Ok(kernels::gated_add(v, &values, &linear(&seen, &self.gate)?)?)
    }
}

impl CausalSelfAttention {
    /// `residual` and what the layer has to add to it.
    fn forward(
        &self,
        residual: &Activations,
        input: &Input<'_>,
        (cos, sin): &(Tensor, Tensor),
    ) -> Result<Activations> {
        let x = norm(residual)?;
        let heads = Heads { time: input.time, channels: 2 * cos.dim(1)?, window: self.window };
        let q = kernels::rotary_norm(&linear(&x, &self.c_q)?, (cos, sin), input.time)?;
        let k = kernels::rotary_norm(&linear(&x, &self.c_k)?, (cos, sin), input.time)?;
        let mut v = linear(&x, &self.c_v)?;
        if let Some(embedding) = &self.value_embedding {
            v = embedding.add(&v, &x, input)?;
        }
        let y = kernels::attention(&q, &k, &v, heads)?;
        Ok(kernels::linear_add(&y, &self.c_proj, residual)?)
    }
}

struct Mlp {
    c_fc: Tensor,
    c_proj: Tensor,
}

impl Mlp {
    fn forward(&self, residual: &Activations) -> Result<Activations> {
        let hidden = kernels::relu_squared(&linear(&norm(residual)?, &self.c_fc)?)?;
        Ok(kernels::linear_add(&hidden, &self.c_proj, residual)?)
    }
}

struct Block {
    attn: CausalSelfAttention,
    mlp: Mlp,
}

pub(crate) struct Model {
    wte: Tensor,
    blocks: Vec<Block>,
    resid_lambdas: Tensor,
    x0_lambdas: Tensor,
    lm_head: Tensor,
    rotary: (Tensor, Tensor),
}

impl Model {
    /// Every tensor of the model by name, shape and first value. `parameter` supplies them: to be
    /// trained, or only to be read.
    fn new(
        config: &Config,
        mut parameter: impl FnMut(&str, &[usize], Init) -> Result<Tensor>,
    ) -> Result<Self> {
        let Config { vocab_size, n_layer, n_embd, head_dim, .. } = *config;
        // A uniform distribution with the standard deviation of 1 / sqrt(width).
        let uniform = Init::Uniform((3.0 / n_embd as f64).sqrt());
        let square = &[n_embd, n_embd];
        let mut blocks = Vec::with_capacity(n_layer);
        for (i, window) in config.windows()?.into_iter().enumerate() {
            let value_embedding = if config.has_value_embedding(i) {
                let gate = [n_embd / head_dim, GATE_CHANNELS.min(n_embd)];
                Some(ValueEmbedding {
                    table: parameter(&format!("value_embeds.{i}"), &[vocab_size, n_embd], uniform)?,
                    gate: parameter(&format!("h.{i}.attn.ve_gate"), &gate, Init::Constant(0.0))?,
                })
            } else {
                None
            };
            let mut layer = |name: &str, shape: &[usize], init| {
                parameter(&format!("h.{i}.{name}"), shape, init)
            };
            blocks.push(Block {
                attn: CausalSelfAttention {
                    c_q: layer("attn.c_q", square, uniform)?,
                    c_k: layer("attn.c_k", square, uniform)?,
                    c_v: layer("attn.c_v", square, uniform)?,
                    c_proj: layer("attn.c_proj", square, Init::Constant(0.0))?,
                    value_embedding,
                    window,
                },
                mlp: Mlp {
                    c_fc: layer("mlp.c_fc", &[MLP_RATIO * n_embd, n_embd], uniform)?,
                    c_proj: layer(
                        "mlp.c_proj",
                        &[n_embd, MLP_RATIO * n_embd],
                        Init::Constant(0.0),
                    )?,
                },
            });
        }
        let wte = parameter("wte", &[vocab_size, n_embd], Init::Normal(1.0))?;
        Ok(Self {
            blocks,
            resid_lambdas: parameter("resid_lambdas", &[n_layer], Init::Constant(1.0))?,
            x0_lambdas: parameter("x0_lambdas", &[n_layer], Init::Constant(0.1))?,
            lm_head: parameter("lm_head", &[vocab_size, n_embd], Init::Normal(0.001))?,
            rotary: rotary_tables(config, &wte)?,
            wte,
        })
    }

    /// What stands before the unembedding.
    fn hidden(&self, input: &Input<'_>) -> Result<Activations> {
        let x0 = norm(&input.pass.embedding(&self.wte, input.tokens)?)?;
        let mut x = x0.clone();
        for (i, Block { attn, mlp }) in self.blocks.iter().enumerate() {
            x = kernels::mix((&x, &x0), (&self.resid_lambdas, &self.x0_lambdas), i)?;
            x = attn.forward(&x, input, &self.rotary)?;
            x = mlp.forward(&x)?;
        }
        norm(&x)
    }

    /// The mean cost of a target, in nats.
    fn loss(&self, input: &Input<'_>, targets: &[u32]) -> Result<Loss> {
        Ok(kernels::cross_entropy(&self.hidden(input)?, &self.lm_head, targets, SOFT_CAP)?)
    }

    /// The loss of a batch, in nats a target, and its gradients.
    pub(crate) fn gradients(&self, batch: &Batch, compute: Compute) -> Result<(f64, Gradients)> {
        let time = batch.seq_len;
        kernels::gradients(compute, (batch.batch_size, time), |pass, rows| {
            let part = rows.start * time..rows.end * time;
            let input = Input { pass, tokens: &batch.inputs[part.clone()], time };
            self.loss(&input, &batch.targets[part])
        })
    }

    /// The cost of each target, in nats.
    fn nats(&self, windows: Windows<'_>, compute: Compute) -> Result<Vec<f32>> {
        let time = windows.seq_len;
        kernels::infer(compute, (windows.inputs.len() / time, time), |pass, rows| {
            let part = rows.start * time..rows.end * time;
            let input = Input { pass, tokens: &windows.inputs[part.clone()], time };
            let targets = &windows.targets[part];
            Ok(kernels::token_nats(&self.hidden(&input)?, &self.lm_head, targets, SOFT_CAP)?)
        })
    }

    /// The logits of the token after `prefix`.
    fn next_logits(&self, prefix: &[u32], compute: Compute) -> Result<Vec<f32>> {
        kernels::infer(compute, (1, prefix.len()), |pass, _| {
            let input = Input { pass, tokens: prefix, time: prefix.len() };
            Ok(kernels::last_logits(&self.hidden(&input)?, &self.lm_head, SOFT_CAP)?)
        })
    }
}

/// Cosines and sines, `[time, head_dim / 2]`.
fn rotary_tables(config: &Config, like: &Tensor) -> Result<(Tensor, Tensor)> {
    let half = config.head_dim / 2;
    let angles: Vec<f64> = (0..config.sequence_len * half)
        .map(|n| (n / half) as f64 * ROTARY_BASE.powf(-((n % half) as f64) / half as f64))
        .collect();
    // Computed in f64: in f32, late positions would be off by more than the rounding of a cosine.
    let angles = Tensor::from_vec(angles, (config.sequence_len, half), &Device::Cpu)?;
    let table = |xs: Tensor| xs.to_dtype(like.dtype())?.to_device(like.device());
    Ok((table(angles.cos()?)?, table(angles.sin()?)?))
}

// ---------------------------------------------------------------------------
// Parameters
// ---------------------------------------------------------------------------

/// How a parameter starts.
#[derive(Clone, Copy)]
pub(crate) enum Init {
    Constant(f64),
    /// With this standard deviation.
    Normal(f64),
    /// Between plus and minus this.
    Uniform(f64),
}

impl Init {
    /// Each tensor draws from its own stream, named after it: one more tensor does not change what
    /// the others start from, so that two trials differ only where their sources do.
    fn values(self, seed: u64, name: &str, count: usize) -> Vec<f64> {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        // FNV-1a, 64 bits.
        generator.set_stream(name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        }));
        // In (0, 1], so that its logarithm is finite.
        let mut unit = || ((generator.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64;
        let mut draw = || match self {
            Init::Constant(value) => value,
            // Box and Muller 1958
            Init::Normal(std) => std * (-2.0 * unit().ln()).sqrt() * (2.0 * PI * unit()).cos(),
            Init::Uniform(limit) => limit * (2.0 * unit() - 1.0),
        };
        (0..count).map(|_| draw()).collect()
    }
}

/// The variables of the model, in the order of their names.
pub(crate) struct Parameters {
    pub vars: BTreeMap<String, Var>,
}

impl Parameters {
    fn new(config: &Config, seed: u64, dtype: DType, device: &Device) -> Result<Self> {
        let mut vars = BTreeMap::new();
        Model::new(config, |name, shape, init| {
            let values = init.values(seed, name, shape.iter().product());
            let values = Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?;
            let var = Var::from_tensor(&values.to_device(device)?)?;
            let tensor = var.as_tensor().clone();
            match vars.insert(name.to_owned(), var) {
                None => Ok(tensor),
                Some(_) => Err(Error::msg(format!("two parameters are called {name}"))),
            }
        })?;
        Ok(Self { vars })
    }

    /// The model whose loss has gradients.
    fn trainable(&self, config: &Config) -> Result<Model> {
        Model::new(config, |name, _, _| Ok(self.vars[name].as_tensor().clone()))
    }

    /// The same weights, of which nothing is recorded for a backward pass.
    fn frozen(&self, config: &Config) -> Result<Model> {
        Model::new(config, |name, _, _| Ok(self.vars[name].as_detached_tensor()))
    }

    /// An operation without a backward pass takes the gradient from everything before it, silently.
    pub(crate) fn check_gradients(&self, grads: &Gradients) -> Result<()> {
        let without: Vec<_> = self
            .vars
            .iter()
            .filter(|(_, var)| grads.get(var).is_none())
            .map(|(name, _)| name.as_str())
            .collect();
        if without.is_empty() {
            return Ok(());
        }
        let names = without.join(", ");
        Err(Error::msg(format!("no gradient reached {names}: is each operation differentiable?")))
    }
}

// ---------------------------------------------------------------------------
// Optimizer: Muon for the matrices, AdamW for everything else
// ---------------------------------------------------------------------------

// Both are fused in `kernels`, and written out in candle's operations in `kernels::composed`, from
// where a variant can start.

struct Optimizer {
    adamw: Vec<(String, AdamW, AdamWStep)>,
    muon: Vec<(Vec<String>, Muon)>,
}

impl Optimizer {
    fn new(parameters: &Parameters, config: &Config, compute: Compute) -> Result<Self> {
        // AdamW's rates were tuned at width 768 and go with 1 / sqrt(width).
        let scale = (config.n_embd as f64 / 768.0).powf(-0.5);
        let betas = (ADAM_BETA1, ADAM_BETA2);
        let mut adamw = Vec::new();
        let mut matrices: BTreeMap<Vec<usize>, Vec<(String, Var)>> = BTreeMap::new();
        for (name, var) in &parameters.vars {
            let (lr, betas) = match name.split('.').next() {
                Some("wte" | "value_embeds") => (EMBEDDING_LR * scale, betas),
                Some("lm_head") => (UNEMBEDDING_LR * scale, betas),
                // A factor on everything that passes: it has to move slowly.
                Some("resid_lambdas") => (SCALAR_LR * 0.01, betas),
                Some("x0_lambdas") => (SCALAR_LR, (X0_BETA1, ADAM_BETA2)),
                // All of a layer's parameters are matrices. The gates are, too, if small ones: Muon
                // gives them steps of a size that does not depend on how faint their gradients are.
                Some("h") => {
                    let of_shape = matrices.entry(var.dims().to_vec()).or_default();
                    of_shape.push((name.clone(), var.clone()));
                    continue;
                }
                _ => return Err(Error::msg(format!("the optimizer does not know {name}"))),
            };
            adamw.push((name.clone(), AdamW::new(var)?, AdamWStep { lr, betas, eps: ADAM_EPS }));
        }
        let stack = |named: Vec<(String, Var)>| {
            let (names, vars): (Vec<_>, Vec<_>) = named.into_iter().unzip();
            Ok((names, Muon::new(&vars, compute)?))
        };
        Ok(Self { adamw, muon: matrices.into_values().map(stack).collect::<Result<_>>()? })
    }

    fn step(&mut self, grads: &Gradients, progress: f64) -> Result<()> {
        let lr_multiplier = lr_multiplier(progress);
        let gradient = |name: &str, var: &Var| {
            grads.get(var).ok_or_else(|| Error::msg(format!("no gradient reached {name}")))
        };
        for (name, adamw, step) in &mut self.adamw {
            let grad = gradient(name, adamw.var())?;
            adamw.step(grad, AdamWStep { lr: step.lr * lr_multiplier, ..*step })?;
        }
        let step = MuonStep {
            lr: MATRIX_LR * lr_multiplier,
            momentum: muon_momentum(progress),
            beta2: MUON_BETA2,
            weight_decay: weight_decay(progress),
        };
        for (names, muon) in &mut self.muon {
            let named = names.iter().zip(muon.vars());
            let grads = named.map(|(name, var)| gradient(name, var)).collect::<Result<Vec<_>>>()?;
            muon.step(&grads, step)?;
        }
        Ok(())
    }
}

// ---------------------------------------------------------------------------
// Schedules, by progress: the part of the budget that is spent, from 0 to 1
// ---------------------------------------------------------------------------

fn lr_multiplier(progress: f64) -> f64 {
    if progress < WARMUP_RATIO {
        progress / WARMUP_RATIO
    } else if progress < 1.0 - WARMDOWN_RATIO {
        1.0
    } else {
        let left = (1.0 - progress) / WARMDOWN_RATIO;
        left + (1.0 - left) * FINAL_LR_FRACTION
    }
}

fn muon_momentum(progress: f64) -> f64 {
    let risen = (progress / MOMENTUM_WARMUP).min(1.0);
    MUON_MOMENTUM_START + risen * (MUON_MOMENTUM - MUON_MOMENTUM_START)
}

fn weight_decay(progress: f64) -> f64 {
    WEIGHT_DECAY * (1.0 - progress)
}

// ---------------------------------------------------------------------------
// The trainer: training loop, answers, checkpoint
// ---------------------------------------------------------------------------

pub struct Gpt {
    pub(crate) config: Config,
    pub(crate) parameters: Parameters,
    pub(crate) model: Model,
    frozen: Model,
    pub(crate) compute: Compute,
}

impl Gpt {
    pub(crate) fn build(config: Config, seed: u64, dtype: DType, device: &Device) -> Result<Self> {
        let compute = match Compute::fastest(device, dtype) {
            Compute::Bf16 if !BF16 => Compute::F32,
            Compute::Card if !BF16 => Compute::Composed,
            fastest => fastest,
        };
        let parameters = Parameters::new(&config, seed, dtype, device)?;
        let (model, frozen) = (parameters.trainable(&config)?, parameters.frozen(&config)?);
        Ok(Self { config, parameters, model, frozen, compute })
    }
}

impl Trainer for Gpt {
    fn new(setup: &Setup) -> Result<Self> {
        kernels::use_threads(setup.threads);
        let device = match setup.device {
            overnight_plugin_api::Device::Cpu => Device::Cpu,
            overnight_plugin_api::Device::Cuda(n) if cfg!(feature = "cuda") => Device::new_cuda(n)?,
            overnight_plugin_api::Device::Cuda(_) => {
                return Err(Error::msg("this trainer was built without CUDA"));
            }
        };
        Self::build(Config::new(setup), setup.seed, DType::F32, &device)
    }

    fn train(&mut self, session: &mut Session<'_>) -> Result<()> {
        let seq_len = SEQUENCE_LEN.min(self.config.sequence_len);
        let mut optimizer = Optimizer::new(&self.parameters, &self.config, self.compute)?;
        let mut step = 0;
        while let Some(batch) = session.next_batch(BATCH_ROWS, seq_len) {
            let (loss, grads) = self.model.gradients(&batch, self.compute)?;
            if step == 0 {
                self.parameters.check_gradients(&grads)?;
            }
            // What comes after would be lost: better to give the machine to the next trial.
            if !loss.is_finite() {
                return Err(Error::msg(format!("the loss is not a number at step {step}")));
            }
            optimizer.step(&grads, session.progress())?;
            session.report(loss);
            step += 1;
        }
        Ok(())
    }

    fn score(&mut self, windows: Windows<'_>, nats: &mut [f32]) -> Result<()> {
        let time = windows.seq_len;
        let chunk = (SCORE_TOKENS / time).max(1) * time;
        let rows = windows.inputs.chunks(chunk).zip(windows.targets.chunks(chunk));
        for ((inputs, targets), nats) in rows.zip(nats.chunks_mut(chunk)) {
            let batch_size = inputs.len() / time;
            let windows = Windows { inputs, targets, batch_size, seq_len: time };
            nats.copy_from_slice(&self.frozen.nats(windows, self.compute)?);
        }
        Ok(())
    }

    fn logits(&mut self, prefix: &[u32], logits: &mut [f32]) -> Result<()> {
        logits.copy_from_slice(&self.frozen.next_logits(prefix, self.compute)?);
        Ok(())
    }

    fn save(&mut self, checkpoint: &Path) -> Result<()> {
        let tensors: HashMap<_, _> = self
            .parameters
            .vars
            .iter()
            .map(|(name, var)| (name, var.as_detached_tensor()))
            .collect();
        Ok(safetensors::save(&tensors, checkpoint)?)
    }

    fn load(&mut self, checkpoint: &Path) -> Result<()> {
        let refuse = |problem: String| Error::msg(format!("{}: {problem}", checkpoint.display()));
        let mut tensors = safetensors::load(checkpoint, &Device::Cpu)
            .map_err(|error| refuse(Error::from(error).to_string()))?;
        for (name, var) in &self.parameters.vars {
            let Some(tensor) = tensors.remove(name) else {
                return Err(refuse(format!("there is no {name}")));
            };
            if tensor.shape() != var.shape() {
                let (there, here) = (tensor.shape(), var.shape());
                return Err(refuse(format!("{name} is {there:?} there and {here:?} here")));
            }
            var.set(&tensor.to_dtype(var.dtype())?.to_device(var.device())?)?;
        }
        match tensors.keys().min() {
            None => Ok(()),
            Some(name) => Err(refuse(format!("this model has no {name}"))),
        }
    }
}
