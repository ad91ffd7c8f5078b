//! The trainer, all of it: this is the file to edit.
//!
//! A small GPT as in nanochat, trained with Muon and AdamW. The order is that of autoresearch's
//! train.py: hyperparameters, model, optimizer, schedules, training loop. Whatever is here may
//! change; the rest of the crate may not.

use candle_core::{DType, Device, Tensor, Var, backprop::GradStore, safetensors};
use overnight_kernels as kernels;
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
const WIDTH: usize = 64; // channels of the residual stream  search: choice 64 128 192 256
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
pub(crate) const ADAM_EPS: f64 = 1e-10; // keeps AdamW from dividing by zero
const MUON_MOMENTUM: f64 = 0.95; // memory of Muon's mean gradient  search: uniform 0.85..0.98
const MUON_MOMENTUM_START: f64 = 0.85; // the same at first, when old gradients mislead  search: uniform 0.7..0.95
pub(crate) const MUON_BETA2: f64 = 0.95; // memory of the variance of each neuron's update  search: uniform 0.8..0.99
const WEIGHT_DECAY: f64 = 0.2; // of the matrices, falling to zero  search: log 1e-2..1

// Schedules, in fractions of the budget
const MOMENTUM_WARMUP: f64 = 0.3; // how long the momentum rises (train.py: 300 of about 950 steps)
const WARMUP_RATIO: f64 = 0.0; // how long the learning rates rise  search: uniform 0..0.2
const WARMDOWN_RATIO: f64 = 0.5; // how long they fall at the end  search: uniform 0.1..0.9
const FINAL_LR_FRACTION: f64 = 0.0; // what is left of them  search: uniform 0..0.2

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

/// Where tokens stand: activations are `[batch * time, channel]`, and only attention needs to know
/// how many rows that is.
#[derive(Clone, Copy)]
struct Shape {
    batch: usize,
    time: usize,
}

/// RMS norm without gains: what follows is a matrix, which can scale for itself.
fn norm(x: &Tensor) -> Result<Tensor> {
    Ok(kernels::rms_norm(x)?)
}

/// `weight` is `[out, in]`.
fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    Ok(x.matmul(&weight.t()?)?)
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
    /// `[batch, time, head, channel]`, each head scaled by a gate of 0 to 2 that starts at 1.
    fn forward(&self, x: &Tensor, tokens: &Tensor, like: &Tensor) -> Result<Tensor> {
        let (batch, time, heads, _) = like.dims4()?;
        let seen = x.narrow(1, 0, self.gate.dim(1)?)?;
        // 2 sigmoid(z) = 1 + tanh(z / 2)
        let gate = ((linear(&seen, &self.gate)? * 0.5)?.tanh()? + 1.0)?;
        let values = self.table.index_select(tokens, 0)?.reshape(like.shape())?;
        Ok(values.broadcast_mul(&gate.reshape((batch, time, heads, 1))?)?)
    }
}

impl CausalSelfAttention {
    fn forward(
        &self,
        x: &Tensor,
        tokens: &Tensor,
        shape: Shape,
        (cos, sin): &(Tensor, Tensor),
    ) -> Result<Tensor> {
        let head_dim = 2 * cos.dim(1)?;
        let heads = (shape.batch, shape.time, self.c_q.dim(0)? / head_dim, head_dim);
        let q = linear(x, &self.c_q)?.reshape(heads)?;
        let k = linear(x, &self.c_k)?.reshape(heads)?;
        let mut v = linear(x, &self.c_v)?.reshape(heads)?;
        if let Some(embedding) = &self.value_embedding {
            v = (&v + embedding.forward(x, tokens, &v)?)?;
        }
        let (cos, sin) = (cos.narrow(0, 0, shape.time)?, sin.narrow(0, 0, shape.time)?);
        let (q, k) = (kernels::rotary_norm(&q, &cos, &sin)?, kernels::rotary_norm(&k, &cos, &sin)?);
        let y = kernels::attention(&q, &k, &v, self.window)?;
        linear(&y.reshape(x.shape())?, &self.c_proj)
    }
}

struct Mlp {
    c_fc: Tensor,
    c_proj: Tensor,
}

impl Mlp {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        linear(&kernels::relu_squared(&linear(x, &self.c_fc)?)?, &self.c_proj)
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

    /// What stands before the unembedding, `[batch * time, channel]`.
    fn hidden(&self, tokens: &Tensor, shape: Shape) -> Result<Tensor> {
        let x0 = norm(&self.wte.index_select(tokens, 0)?)?;
        let mut x = x0.clone();
        for (i, Block { attn, mlp }) in self.blocks.iter().enumerate() {
            let (resid, from_x0) =
                (self.resid_lambdas.narrow(0, i, 1)?, self.x0_lambdas.narrow(0, i, 1)?);
            x = (x.broadcast_mul(&resid)? + x0.broadcast_mul(&from_x0)?)?;
            x = (&x + attn.forward(&norm(&x)?, tokens, shape, &self.rotary)?)?;
            x = (&x + mlp.forward(&norm(&x)?)?)?;
        }
        norm(&x)
    }

    /// The mean cost of a target, in nats.
    pub(crate) fn loss(&self, batch: &Batch) -> Result<Tensor> {
        let shape = Shape { batch: batch.batch_size, time: batch.seq_len };
        let logits = linear(&self.hidden(&self.ids(&batch.inputs)?, shape)?, &self.lm_head)?;
        Ok(kernels::cross_entropy(&logits, &self.ids(&batch.targets)?, SOFT_CAP)?)
    }

    /// The cost of each target, in nats.
    fn nats(&self, inputs: &[u32], targets: &[u32], shape: Shape) -> Result<Vec<f32>> {
        let logits = linear(&self.hidden(&self.ids(inputs)?, shape)?, &self.lm_head)?;
        let nats = kernels::token_nats(&logits, &self.ids(targets)?, SOFT_CAP)?;
        Ok(nats.to_dtype(DType::F32)?.to_vec1()?)
    }

    /// The logits of the token after `prefix`.
    fn next_logits(&self, prefix: &[u32]) -> Result<Vec<f32>> {
        let hidden = self.hidden(&self.ids(prefix)?, Shape { batch: 1, time: prefix.len() })?;
        let last = hidden.narrow(0, prefix.len() - 1, 1)?;
        let logits = ((linear(&last, &self.lm_head)? / SOFT_CAP)?.tanh()? * SOFT_CAP)?;
        Ok(logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    }

    fn ids(&self, tokens: &[u32]) -> Result<Tensor> {
        Ok(Tensor::from_slice(tokens, tokens.len(), self.wte.device())?)
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
    pub(crate) fn check_gradients(&self, grads: &GradStore) -> Result<()> {
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

/// `a + weight * (b - a)`
fn lerp(a: &Tensor, b: &Tensor, weight: f64) -> Result<Tensor> {
    Ok(((a * (1.0 - weight))? + (b * weight)?)?)
}

/// AdamW without decay (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1).
pub(crate) struct AdamW {
    pub var: Var,
    pub lr: f64,
    pub betas: (f64, f64),
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    steps: i32,
}

impl AdamW {
    pub(crate) fn new(var: &Var, lr: f64, betas: (f64, f64)) -> Result<Self> {
        let zeros = var.zeros_like()?;
        let (exp_avg, exp_avg_sq) = (zeros.clone(), zeros);
        Ok(Self { var: var.clone(), lr, betas, exp_avg, exp_avg_sq, steps: 0 })
    }

    pub(crate) fn step(&mut self, grad: &Tensor, lr_multiplier: f64) -> Result<()> {
        let (beta1, beta2) = self.betas;
        self.steps += 1;
        self.exp_avg = lerp(&self.exp_avg, grad, 1.0 - beta1)?;
        self.exp_avg_sq = lerp(&self.exp_avg_sq, &grad.sqr()?, 1.0 - beta2)?;
        // Both averages started at zero; what they lack is made up for.
        let (bias1, bias2) = (1.0 - beta1.powi(self.steps), 1.0 - beta2.powi(self.steps));
        let denominator = ((&self.exp_avg_sq / bias2)?.sqrt()? + ADAM_EPS)?;
        let update = ((&self.exp_avg / denominator)? * (self.lr * lr_multiplier / bias1))?;
        Ok(self.var.set(&(self.var.as_tensor() - update)?)?)
    }
}

/// Coefficients of the five polynomials of Polar Express (Amsel et al. 2025, arXiv 2505.16932),
/// computed for singular values from 1e-3 to 1 with the paper's safety factor, as in nanochat.
const POLAR_EXPRESS: [(f64, f64, f64); 5] = [
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
];

/// Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for matrices of one shape.
pub(crate) struct Muon {
    pub vars: Vec<Var>,
    pub lr: f64,
    momentum_buffer: Tensor,
    second_momentum_buffer: Tensor,
}

impl Muon {
    pub(crate) fn new(vars: &[Var], lr: f64) -> Result<Self> {
        let (rows, columns) = vars[0].dims2()?;
        let zeros = |rows, columns| {
            Tensor::zeros((vars.len(), rows, columns), vars[0].dtype(), vars[0].device())
        };
        // One number a neuron: a row of a tall matrix, a column of a wide one.
        let neurons = if rows >= columns { zeros(rows, 1)? } else { zeros(1, columns)? };
        Ok(Self {
            vars: vars.to_vec(),
            // A tall matrix needs a longer step to change its output as much.
            lr: lr * (rows as f64 / columns as f64).max(1.0).sqrt(),
            momentum_buffer: zeros(rows, columns)?,
            second_momentum_buffer: neurons,
        })
    }

    pub(crate) fn step(
        &mut self,
        grads: &[&Tensor],
        lr_multiplier: f64,
        momentum: f64,
        weight_decay: f64,
    ) -> Result<()> {
        let grads = Tensor::stack(grads, 0)?;
        let params: Vec<&Tensor> = self.vars.iter().map(|var| var.as_tensor()).collect();
        let params = Tensor::stack(&params, 0)?.detach();
        let lr = self.lr * lr_multiplier;
        // Nesterov momentum
        self.momentum_buffer = lerp(&self.momentum_buffer, &grads, 1.0 - momentum)?;
        let update = lerp(&grads, &self.momentum_buffer, momentum)?;
        let update = self.even_out(&polar_express(&update)?)?;
        // Cautious decay: only where it pulls the same way as the update.
        let agree = (&update * &params)?.ge(0.0)?.to_dtype(params.dtype())?;
        let decay = ((&params * agree)? * weight_decay)?;
        let params = (params - ((update + decay)? * lr)?)?;
        for (i, var) in self.vars.iter().enumerate() {
            var.set(&params.get(i)?)?;
        }
        Ok(())
    }

    /// Gives every neuron an update of about the same size, and leaves the size of the whole as it
    /// was (NorMuon, arXiv 2510.05491, algorithm 1).
    fn even_out(&mut self, update: &Tensor) -> Result<Tensor> {
        let (_, rows, columns) = update.dims3()?;
        let (across, width) = if rows >= columns { (2, columns) } else { (1, rows) };
        let mean_square = update.sqr()?.mean_keepdim(across)?;
        self.second_momentum_buffer =
            lerp(&self.second_momentum_buffer, &mean_square, 1.0 - MUON_BETA2)?;
        let step_size = self.second_momentum_buffer.maximum(1e-10)?.sqrt()?.recip()?;
        let total = |squares: &Tensor| (squares.sum_keepdim((1, 2))? * width as f64)?.sqrt();
        let before = total(&mean_square)?;
        let after = total(&(mean_square * step_size.sqr()?)?)?.maximum(1e-10)?;
        Ok(update.broadcast_mul(&step_size.broadcast_mul(&(before / after)?)?)?)
    }
}

/// The nearest matrix with all singular values one, roughly, of each of a stack.
fn polar_express(xs: &Tensor) -> Result<Tensor> {
    let (_, rows, columns) = xs.dims3()?;
    let norms = xs.sqr()?.sum_keepdim((1, 2))?.sqrt()?;
    let xs = xs.broadcast_div(&((norms * 1.02)? + 1e-6)?)?;
    // Lying down, so that the products of rows are the smaller square.
    let mut xs = if rows > columns { xs.t()?.contiguous()? } else { xs };
    for (a, b, c) in POLAR_EXPRESS {
        let gram = xs.matmul(&xs.t()?)?;
        let polynomial = ((&gram * b)? + (gram.matmul(&gram)? * c)?)?;
        xs = ((&xs * a)? + polynomial.matmul(&xs)?)?;
    }
    Ok(if rows > columns { xs.t()?.contiguous()? } else { xs })
}

struct Optimizer {
    adamw: Vec<(String, AdamW)>,
    muon: Vec<(Vec<String>, Muon)>,
}

impl Optimizer {
    fn new(parameters: &Parameters, config: &Config) -> Result<Self> {
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
            adamw.push((name.clone(), AdamW::new(var, lr, betas)?));
        }
        let stack = |named: Vec<(String, Var)>| {
            let (names, vars): (Vec<_>, Vec<_>) = named.into_iter().unzip();
            Ok((names, Muon::new(&vars, MATRIX_LR)?))
        };
        Ok(Self { adamw, muon: matrices.into_values().map(stack).collect::<Result<_>>()? })
    }

    fn step(&mut self, grads: &GradStore, progress: f64) -> Result<()> {
        let lr_multiplier = lr_multiplier(progress);
        let gradient = |name: &str, var: &Var| {
            grads.get(var).ok_or_else(|| Error::msg(format!("no gradient reached {name}")))
        };
        for (name, adamw) in &mut self.adamw {
            let grad = gradient(name, &adamw.var)?;
            adamw.step(grad, lr_multiplier)?;
        }
        for (names, muon) in &mut self.muon {
            let named = names.iter().zip(&muon.vars);
            let grads = named.map(|(name, var)| gradient(name, var)).collect::<Result<Vec<_>>>()?;
            muon.step(&grads, lr_multiplier, muon_momentum(progress), weight_decay(progress))?;
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
}

impl Gpt {
    pub(crate) fn build(config: Config, seed: u64, dtype: DType, device: &Device) -> Result<Self> {
        let parameters = Parameters::new(&config, seed, dtype, device)?;
        let (model, frozen) = (parameters.trainable(&config)?, parameters.frozen(&config)?);
        Ok(Self { config, parameters, model, frozen })
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
        let mut optimizer = Optimizer::new(&self.parameters, &self.config)?;
        let mut step = 0;
        while let Some(batch) = session.next_batch(BATCH_ROWS, seq_len) {
            let loss = self.model.loss(&batch)?;
            let grads = loss.backward()?;
            let loss = loss.to_dtype(DType::F64)?.to_scalar::<f64>()?;
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
            let shape = Shape { batch: inputs.len() / time, time };
            nats.copy_from_slice(&self.frozen.nats(inputs, targets, shape)?);
        }
        Ok(())
    }

    fn logits(&mut self, prefix: &[u32], logits: &mut [f32]) -> Result<()> {
        logits.copy_from_slice(&self.frozen.next_logits(prefix)?);
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
