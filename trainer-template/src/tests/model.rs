//! The model: its gradients, and where its weights start.

use super::*;
use candle_core::Var;
use overnight_kernels::{self as kernels, Compute};
use overnight_plugin_api::{Batch, Error};

fn batch(config: &Config) -> Batch {
    let (batch_size, seq_len) = (3, config.sequence_len - 1);
    let mut numbers = Numbers(17);
    Batch {
        inputs: numbers.tokens(batch_size * seq_len, config.vocab_size),
        targets: numbers.tokens(batch_size * seq_len, config.vocab_size),
        batch_size,
        seq_len,
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    const STEP: f64 = 1e-5;
    // The differences are off by about STEP² from curvature and 1e-16 / STEP from rounding.
    const TOLERANCE: f64 = 1e-8;
    let gpt = build(&small(), 1, DType::F64);
    scramble(&gpt, 2);
    let batch = batch(&gpt.config);
    let gradients = || gpt.model.gradients(&batch, gpt.compute).unwrap();
    let grads = gradients().1;
    let mut numbers = Numbers(3);
    for (name, var) in &gpt.parameters.vars {
        let gradient = values(grads.get(var).unwrap());
        assert!(gradient.iter().any(|g| g.abs() > 1e-5), "{name}: the test shows nothing");
        let before = values(var);
        // The steepest entry, and some others.
        let steepest =
            (0..before.len()).max_by(|&i, &j| gradient[i].abs().total_cmp(&gradient[j].abs()));
        let others = numbers.tokens(6, before.len()).into_iter().map(|i| i as usize);
        for entry in steepest.into_iter().chain(others) {
            let moved = |by: f64| {
                let mut after = before.clone();
                after[entry] += by;
                var.set(&Tensor::from_vec(after, var.shape(), &Device::Cpu).unwrap()).unwrap();
                gradients().0
            };
            let difference = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
            moved(0.0);
            let error = (difference - gradient[entry]).abs();
            assert!(
                error < TOLERANCE * gradient[entry].abs().max(1.0),
                "{name}[{entry}]: gradient {}, difference {difference}",
                gradient[entry]
            );
        }
    }
}

#[test]
fn every_variable_receives_a_gradient() {
    // With the weights that training starts from, and with one layer as well.
    for n_layer in [1, 2, 3, 4] {
        let gpt = build(&Config { n_layer, ..small() }, 1, DType::F32);
        let (_, grads) = gpt.model.gradients(&batch(&gpt.config), gpt.compute).unwrap();
        gpt.parameters.check_gradients(&grads).unwrap();
        for (name, var) in &gpt.parameters.vars {
            assert_eq!(grads.get(var).unwrap().shape(), var.shape(), "{name}");
        }
    }
}

#[test]
fn a_variable_without_a_gradient_is_named() {
    let gpt = build(&small(), 1, DType::F32);
    let wte = gpt.parameters.vars["wte"].as_tensor();
    let only = kernels::gradients::<Error>(gpt.compute, (1, 2), |pass, _| {
        Ok(kernels::Loss::mean(&pass.embedding(wte, &[0, 1])?)?)
    });
    let error = gpt.parameters.check_gradients(&only.unwrap().1).unwrap_err().to_string();
    assert!(error.contains("h.0.attn.c_q") && error.contains("lm_head"), "{error}");
    assert!(!error.contains("wte"), "{error}");
}

#[test]
fn fused_gradients_are_those_of_candles_own_operations() {
    let gradients = |dtype, compute| {
        let mut gpt = build(&small(), 1, dtype);
        gpt.compute = compute;
        scramble(&gpt, 2);
        let (loss, grads) = gpt.model.gradients(&batch(&gpt.config), compute).unwrap();
        let vars = gpt.parameters.vars.iter();
        let named = |(name, var): (&String, &Var)| (name.clone(), values(grads.get(var).unwrap()));
        (loss, vars.map(named).collect::<Vec<_>>())
    };
    let (expected_loss, expected) = gradients(DType::F64, Compute::Composed);
    // Of a loss, and of a gradient as a vector: rounding of activations to 2^-9, over a dozen of
    // operations, some of which one gradient averages over few tokens here.
    let mut ways = vec![(Compute::Composed, 1e-5), (Compute::F32, 1e-5)];
    if kernels::multiplies_bf16() {
        ways.push((Compute::Bf16, 0.1));
    }
    for (compute, tolerance) in ways {
        let (loss, got) = gradients(DType::F32, compute);
        let error = (loss - expected_loss).abs();
        assert!(error < tolerance * expected_loss, "{compute:?}: {loss}, not {expected_loss}");
        for ((name, got), (_, expected)) in got.iter().zip(&expected) {
            let length = |xs: &mut dyn Iterator<Item = f64>| xs.map(|x| x * x).sum::<f64>().sqrt();
            let error = length(&mut got.iter().zip(expected).map(|(a, b)| a - b));
            let error = error / length(&mut expected.iter().copied());
            assert!(error < tolerance, "{compute:?}, {name}: off by {error} of its length");
        }
    }
}

#[test]
fn an_untrained_model_knows_nothing() {
    let gpt = build(&small(), 1, DType::F32);
    let (loss, _) = gpt.model.gradients(&batch(&gpt.config), gpt.compute).unwrap();
    // The unembedding starts near zero, so all tokens are about as likely.
    assert!((loss - 11f64.ln()).abs() < 0.01, "{loss}");
}

#[test]
fn a_seed_gives_the_same_weights_and_another_seed_gives_others() {
    let (one, same, other) = (
        weights(&build(&small(), 1, DType::F32)),
        weights(&build(&small(), 1, DType::F32)),
        weights(&build(&small(), 2, DType::F32)),
    );
    assert_eq!(one, same);
    for ((name, one), (_, other)) in one.iter().zip(&other) {
        let constant = one.iter().all(|x| *x == one[0]);
        assert_eq!(one == other, constant, "{name}");
    }
}

#[test]
fn another_layer_does_not_move_where_the_others_start() {
    let shallow = weights(&build(&Config { n_layer: 2, ..small() }, 1, DType::F32));
    let deep = build(&Config { n_layer: 4, ..small() }, 1, DType::F32);
    for (name, shallow) in shallow.iter().filter(|(name, _)| !name.ends_with("lambdas")) {
        assert_eq!(shallow, &values(&deep.parameters.vars[name]), "{name}");
    }
}

#[test]
fn weights_start_with_the_spread_that_they_should() {
    let config = Config { vocab_size: 1000, n_embd: 64, ..small() };
    let gpt = build(&config, 1, DType::F32);
    let spread = |name: &str| {
        let xs = values(&gpt.parameters.vars[name]);
        let mean = xs.iter().sum::<f64>() / xs.len() as f64;
        (xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / xs.len() as f64).sqrt()
    };
    let expected = [
        ("wte", 1.0),
        ("lm_head", 0.001),
        ("h.0.attn.c_q", 0.125),
        ("h.0.mlp.c_fc", 0.125),
        ("value_embeds.0", 0.125),
        ("h.0.attn.c_proj", 0.0),
        ("h.0.mlp.c_proj", 0.0),
        ("h.0.attn.ve_gate", 0.0),
    ];
    for (name, expected) in expected {
        let spread = spread(name);
        // 4096 numbers or more: their spread is known to about a hundredth.
        assert!((spread - expected).abs() <= 0.05 * expected, "{name}: {spread}");
    }
    assert_eq!(values(&gpt.parameters.vars["resid_lambdas"]), [1.0; 3]);
    assert!(values(&gpt.parameters.vars["x0_lambdas"]).iter().all(|x| (x - 0.1).abs() < 1e-7));
}

#[test]
fn a_window_pattern_with_other_letters_is_refused() {
    let config = Config { window_pattern: "SXL".to_owned(), ..small() };
    let error = Gpt::build(config, 1, DType::F32, &Device::Cpu).err().unwrap().to_string();
    assert!(error.contains("'X'"), "{error}");
}
