//! The trainer as the host sees it: training, the exam, checkpoints.

use super::*;
use overnight_plugin_api::{Setup, Trainer, Windows};
use std::path::PathBuf;

const SETUP: Setup = Setup {
    vocab_size: 300,
    max_seq_len: 24,
    seed: 1,
    threads: 2,
    device: overnight_plugin_api::Device::Cpu,
};

/// Trained a little from scrambled weights, so that every part of the model has its say.
fn trained() -> Gpt {
    let mut gpt = build(&small(), 1, DType::F32);
    scramble(&gpt, 2);
    let text = Numbers(5).tokens(97, gpt.config.vocab_size);
    gpt.train(&mut Text::new(text, 3).session()).unwrap();
    gpt
}

fn score(gpt: &mut Gpt, inputs: &[u32], targets: &[u32], seq_len: usize) -> Vec<f32> {
    let mut nats = vec![f32::NAN; inputs.len()];
    let batch_size = inputs.len() / seq_len;
    gpt.score(Windows { inputs, targets, batch_size, seq_len }, &mut nats).unwrap();
    nats
}

/// The cost of `target` after `prefix`, normalised here as the host would.
fn honest_nats(gpt: &mut Gpt, prefix: &[u32], target: u32) -> f64 {
    let mut logits = vec![f32::NAN; gpt.config.vocab_size];
    gpt.logits(prefix, &mut logits).unwrap();
    let total: f64 = logits.iter().map(|&z| f64::from(z).exp()).sum();
    total.ln() - f64::from(logits[target as usize])
}

fn checkpoint(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("trainer-{}-{name}.safetensors", std::process::id()))
}

#[test]
fn training_on_a_repetitive_text_learns_it() {
    let mut gpt = build(&Config { vocab_size: 16, ..small() }, 1, DType::F32);
    let mut text = Text::new(vec![3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7], 60);
    gpt.train(&mut text.session()).unwrap();
    assert_eq!(text.losses.len(), 60);
    assert!((text.losses[0] - 16f64.ln()).abs() < 0.05, "{:?}", text.losses);
    // Where a window starts, a 1 or a 5 leaves open what follows; the rest is certain.
    let last = text.losses[59];
    assert!(last < 0.25 * 16f64.ln(), "{:?}", text.losses);
}

#[test]
fn two_trainings_from_one_seed_end_with_the_same_bits() {
    let train = |seed, threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut gpt = build(&small(), seed, DType::F32);
            let text = Numbers(5).tokens(97, gpt.config.vocab_size);
            gpt.train(&mut Text::new(text, 5).session()).unwrap();
            weights(&gpt)
        })
    };
    let one = train(1, 1);
    assert_eq!(one, train(1, 1));
    assert_eq!(one, train(1, 3));
    assert_ne!(one, train(2, 1));
}

#[test]
fn score_agrees_with_logits_at_every_cut() {
    let mut gpt = trained();
    let vocab_size = gpt.config.vocab_size;
    // Shorter than the longest window, too.
    for seq_len in [12, 7, 1] {
        let mut numbers = Numbers(seq_len as u64);
        let inputs = numbers.tokens(3 * seq_len, vocab_size);
        let targets = numbers.tokens(3 * seq_len, vocab_size);
        let nats = score(&mut gpt, &inputs, &targets, seq_len);
        for row in 0..3 {
            for cut in 0..seq_len {
                let prefix = &inputs[row * seq_len..][..=cut];
                let honest = honest_nats(&mut gpt, prefix, targets[row * seq_len + cut]);
                let fast = f64::from(nats[row * seq_len + cut]);
                assert!((fast - honest).abs() < 1e-4, "cut {cut} of {seq_len}: {fast}, {honest}");
            }
        }
    }
}

#[test]
fn what_a_window_answers_does_not_depend_on_the_others() {
    let mut gpt = trained();
    let (seq_len, vocab_size) = (12, gpt.config.vocab_size);
    // More than are scored at a time.
    let rows = 800;
    let mut numbers = Numbers(6);
    let inputs = numbers.tokens(rows * seq_len, vocab_size);
    let targets = numbers.tokens(rows * seq_len, vocab_size);
    let together = score(&mut gpt, &inputs, &targets, seq_len);
    for row in [0, 1, 340, 341, 342, 682, 683, rows - 1] {
        let here = row * seq_len..(row + 1) * seq_len;
        let alone = score(&mut gpt, &inputs[here.clone()], &targets[here.clone()], seq_len);
        for (a, b) in alone.iter().zip(&together[here]) {
            assert!((a - b).abs() < 1e-5, "window {row}: {a} alone, {b} among others");
        }
    }
}

#[test]
fn what_comes_later_changes_nothing_before_it() {
    let mut gpt = trained();
    let (seq_len, vocab_size) = (12, gpt.config.vocab_size);
    let mut numbers = Numbers(7);
    let inputs = numbers.tokens(seq_len, vocab_size);
    let targets = numbers.tokens(seq_len, vocab_size);
    let before = score(&mut gpt, &inputs, &targets, seq_len);
    for cut in 1..seq_len {
        let mut changed = inputs.clone();
        for token in &mut changed[cut..] {
            *token = (*token + 1) % vocab_size as u32;
        }
        let after = score(&mut gpt, &changed, &targets, seq_len);
        for i in 0..cut {
            assert!((before[i] - after[i]).abs() < 1e-6, "token {cut} is seen from {i}");
        }
        assert_ne!(before[cut..], after[cut..], "token {cut} is not seen at all");
    }
}

#[test]
fn a_loaded_checkpoint_answers_like_the_trainer_that_saved_it() {
    let path = checkpoint("roundtrip");
    let mut gpt = trained();
    gpt.save(&path).unwrap();
    let mut fresh = build(&gpt.config, 99, DType::F32);
    fresh.load(&path).unwrap();
    assert_eq!(weights(&gpt), weights(&fresh));
    let inputs = Numbers(8).tokens(24, 11);
    assert_eq!(score(&mut gpt, &inputs, &inputs, 12), score(&mut fresh, &inputs, &inputs, 12));
    let logits = |gpt: &mut Gpt| {
        let mut logits = vec![f32::NAN; 11];
        gpt.logits(&inputs[..5], &mut logits).unwrap();
        logits
    };
    assert_eq!(logits(&mut gpt), logits(&mut fresh));
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_checkpoint_of_another_model_is_refused() {
    let path = checkpoint("other");
    let save = |config: &Config| build(config, 1, DType::F32).save(&path).unwrap();
    let refusal =
        |config: &Config| build(config, 1, DType::F32).load(&path).unwrap_err().to_string();
    save(&small());
    let wider = refusal(&Config { n_embd: 32, ..small() });
    assert!(wider.contains("[16, 16]") && wider.contains("[32, 32]"), "{wider}");
    assert!(wider.contains(path.to_str().unwrap()), "{wider}");
    let deeper = refusal(&Config { n_layer: 5, ..small() });
    assert!(deeper.contains("there is no h.3."), "{deeper}");
    // One layer fewer would also have fewer lambdas; take one tensor away instead.
    save(&Config { n_layer: 5, ..small() });
    let shallower = refusal(&small());
    assert!(shallower.contains("resid_lambdas") || shallower.contains("has no"), "{shallower}");
    std::fs::write(&path, b"not a checkpoint").unwrap();
    let garbage = refusal(&small());
    assert!(garbage.contains(path.to_str().unwrap()), "{garbage}");
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_loss_that_is_not_a_number_ends_the_training() {
    let mut gpt = build(&small(), 1, DType::F32);
    let wte = &gpt.parameters.vars["wte"];
    wte.set(&(wte.as_tensor() * f64::NAN).unwrap()).unwrap();
    let mut text = Text::new(vec![1, 2, 3], 10);
    let error = gpt.train(&mut text.session()).unwrap_err().to_string();
    assert!(error.contains("the loss is not a number at step 0"), "{error}");
    assert!(text.losses.is_empty());
}

#[test]
fn the_shipped_model_runs_with_any_setup() {
    for (vocab_size, max_seq_len) in [(300, 24), (2, 1), (65, 3), (1000, 600)] {
        let mut gpt = Gpt::new(&Setup { vocab_size, max_seq_len, ..SETUP }).unwrap();
        let text = Numbers(9).tokens(1000, vocab_size);
        // The largest windows are for the exam alone: training on them would take a while.
        let steps = if max_seq_len < 100 { 2 } else { 1 };
        let mut text = Text::new(text, steps);
        gpt.train(&mut text.session()).unwrap();
        assert_eq!(text.losses.len(), steps);
        let inputs = &text.tokens[..max_seq_len];
        let nats = score(&mut gpt, inputs, inputs, max_seq_len);
        let honest = honest_nats(&mut gpt, inputs, inputs[max_seq_len - 1]);
        let fast = f64::from(nats[max_seq_len - 1]);
        assert!((fast - honest).abs() < 1e-4, "vocabulary {vocab_size}: {fast}, {honest}");
    }
}

#[test]
fn a_budget_of_nothing_leaves_the_weights_alone() {
    let mut gpt = build(&small(), 1, DType::F32);
    let before = weights(&gpt);
    gpt.train(&mut Text::new(vec![1, 2, 3], 0).session()).unwrap();
    assert_eq!(before, weights(&gpt));
}

#[cfg(not(feature = "cuda"))]
#[test]
fn cuda_without_the_feature_is_a_clear_error() {
    let device = overnight_plugin_api::Device::Cuda(0);
    let error = Gpt::new(&Setup { device, ..SETUP }).err().unwrap().to_string();
    assert_eq!(error, "this trainer was built without CUDA");
}
