//! Which of candle-nn's layers can be trained through, as proposers are told in `src/candle_nn.md` of the library.

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{
    Conv1d, Conv1dConfig, Dropout, Embedding, LayerNorm, Linear, Module, ModuleT, RmsNorm, loss,
    ops, rotary_emb,
};

type Layer = fn(&Tensor) -> Result<Tensor>;

/// What is told of candle-nn.
const TOLD: &str = include_str!("../../../src/candle_nn.md");

fn ones(shape: &[usize]) -> Tensor {
    Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap()
}

fn targets() -> Tensor {
    Tensor::new(&[0u32, 1, 2, 3], &Device::Cpu).unwrap()
}

/// Cosines and sines for two positions of heads that are four wide.
fn turns() -> (Tensor, Tensor) {
    (ones(&[2, 2]), ones(&[2, 2]))
}

/// Whether a gradient reaches what `layer` is given.
fn passes(layer: Layer, shape: &[usize]) -> bool {
    let numbers = (0..shape.iter().product()).map(|n: usize| (n % 7) as f32 / 7.0 + 0.1);
    let x = Tensor::from_iter(numbers, &Device::Cpu).unwrap().reshape(shape).unwrap();
    let x = Var::from_tensor(&x).unwrap();
    // Its own gradient is found anyhow; it is what lies before the layer that can lose it.
    let before = (x.as_tensor() * 2.0).unwrap();
    let Ok(y) = layer(&before) else { return false };
    let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    grads.get(&x).is_some()
}

const TRAINED: &[(&str, &[usize], Layer)] = &[
    ("Linear", &[4, 4], |x| Linear::new(ones(&[3, 4]), None).forward(x)),
    ("Embedding", &[4, 4], |x| Embedding::new(x.clone(), 4).forward(&targets())),
    ("Conv1d", &[1, 4, 4], |x| {
        Conv1d::new(ones(&[2, 4, 3]), None, Conv1dConfig::default()).forward(x)
    }),
    ("Dropout", &[4, 4], |x| Dropout::new(0.1).forward_t(x, true)),
    ("ops::softmax", &[4, 4], |x| ops::softmax(x, 1)),
    ("ops::log_softmax", &[4, 4], |x| ops::log_softmax(x, 1)),
    ("ops::silu", &[4, 4], ops::silu),
    ("ops::swiglu", &[4, 4], ops::swiglu),
    ("ops::sigmoid", &[4, 4], ops::sigmoid),
    ("ops::leaky_relu", &[4, 4], |x| ops::leaky_relu(x, 0.1)),
    ("ops::rms_norm_slow", &[4, 4], |x| ops::rms_norm_slow(x, &ones(&[4]), 1e-5)),
    ("ops::layer_norm_slow", &[4, 4], |x| ops::layer_norm_slow(x, &ones(&[4]), &ones(&[4]), 1e-5)),
    ("rotary_emb::rope_slow", &[1, 1, 2, 4], |x| rotary_emb::rope_slow(x, &turns().0, &turns().1)),
    ("rotary_emb::rope_i_slow", &[1, 1, 2, 4], |x| {
        rotary_emb::rope_i_slow(x, &turns().0, &turns().1)
    }),
    ("loss::cross_entropy", &[4, 4], |x| loss::cross_entropy(x, &targets())),
    ("loss::nll", &[4, 4], |x| loss::nll(x, &targets())),
    ("loss::mse", &[4, 4], |x| loss::mse(x, &ones(&[4, 4]))),
    ("loss::huber", &[4, 4], |x| loss::huber(x, &ones(&[4, 4]), 1.0)),
];

const CUT: &[(&str, &[usize], Layer)] = &[
    ("ops::softmax_last_dim", &[4, 4], ops::softmax_last_dim),
    ("ops::rms_norm", &[4, 4], |x| ops::rms_norm(x, &ones(&[4]), 1e-5)),
    ("RmsNorm", &[4, 4], |x| RmsNorm::new(ones(&[4]), 1e-5).forward(x)),
    ("ops::layer_norm", &[4, 4], |x| ops::layer_norm(x, &ones(&[4]), &ones(&[4]), 1e-5)),
    ("LayerNorm", &[4, 4], |x| LayerNorm::new(ones(&[4]), ones(&[4]), 1e-5).forward(x)),
    ("rotary_emb::rope", &[1, 1, 2, 4], |x| rotary_emb::rope(x, &turns().0, &turns().1)),
    ("rotary_emb::rope_i", &[1, 1, 2, 4], |x| rotary_emb::rope_i(x, &turns().0, &turns().1)),
];

#[test]
fn what_is_told_of_candle_nns_layers_is_true() {
    let (trained, cut) = TOLD.split_once("No gradient passes:").unwrap();
    for (name, shape, layer) in TRAINED {
        assert!(passes(*layer, shape), "no gradient passes {name}");
        assert!(trained.contains(&format!("`{name}`")), "{name}");
    }
    for (name, shape, layer) in CUT {
        assert!(!passes(*layer, shape), "a gradient passes {name}");
        assert!(cut.contains(&format!("`{name}`")), "{name}");
    }
    let other_way = |x: &Tensor| RmsNorm::new(ones(&[4]), 1e-5).forward(&x.t()?);
    assert!(passes(other_way, &[4, 4]));
}
