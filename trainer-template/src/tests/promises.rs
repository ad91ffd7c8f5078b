//! What the trait promises: one model, whoever asks and however.

use super::{Counting, Numbers, VOCAB, random_batch, small_gpt};
use crate::train::Gpt;
use candle_core::DType;
use overnight_plugin_api::{Device, Setup, Trainer, Windows};

fn score(gpt: &mut Gpt, inputs: &[u32], targets: &[u32], seq_len: usize) -> Vec<f32> {
    let batch_size = inputs.len() / seq_len;
    let mut nats = vec![f32::NAN; inputs.len()];
    gpt.score(Windows { inputs, targets, batch_size, seq_len }, &mut nats).unwrap();
    nats
}

fn nats_of_logits(gpt: &mut Gpt, prefix: &[u32], target: u32) -> f64 {
    let mut logits = vec![f32::NAN; VOCAB];
    gpt.logits(prefix, &mut logits).unwrap();
    let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
    total.ln() - f64::from(logits[target as usize])
}

/// The default model, as a study would build it.
fn default_gpt(seed: u64) -> Gpt {
    let setup =
        Setup { vocab_size: VOCAB, max_seq_len: 24, seed, threads: 2, device: Device::Cpu };
    Gpt::new(&setup).unwrap()
}

fn weights(gpt: &Gpt) -> Vec<f32> {
    let vars = gpt.parameters.vars.values();
    vars.flat_map(|var| var.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect()
}

#[test]
fn scores_and_logits_agree_at_every_cut() {
    let mut gpt = small_gpt(1, DType::F32);
    let batch = random_batch(3, 16);
    let nats = score(&mut gpt, &batch.inputs, &batch.targets, 16);
    for place in 0..nats.len() {
        let row = place - place % 16;
        let honest = nats_of_logits(&mut gpt, &batch.inputs[row..=place], batch.targets[place]);
        assert!((f64::from(nats[place]) - honest).abs() < 1e-4, "{place}: {} {honest}", nats[place]);
    }
}

#[test]
fn an_answer_depends_on_nothing_but_its_prefix() {
    let mut gpt = small_gpt(2, DType::F32);
    let batch = random_batch(2, 16);
    let before = score(&mut gpt, &batch.inputs, &batch.targets, 16);
    // Another second row, and another end of the first one.
    let mut inputs = batch.inputs.clone();
    let mut numbers = Numbers(99);
    inputs[9..].fill_with(|| numbers.token(VOCAB));
    let after = score(&mut gpt, &inputs, &batch.targets, 16);
    assert_eq!(before[..9], after[..9]);
    assert_ne!(before[9..16], after[9..16]);
}

#[test]
fn training_lowers_the_loss_of_a_text_that_repeats_itself() {
    let mut gpt = default_gpt(0);
    let losses = Counting::train(&mut gpt, 30).unwrap();
    assert_eq!(losses.len(), 30);
    let uniform = (VOCAB as f64).ln();
    assert!((losses[0] - uniform).abs() < 0.1, "starts at {}, not {uniform}", losses[0]);
    assert!(losses[29] < 0.3 * uniform, "{losses:?}");
}

#[test]
fn one_seed_trains_to_one_set_of_weights_and_another_seed_to_others() {
    let train = |seed| {
        let mut gpt = default_gpt(seed);
        Counting::train(&mut gpt, 3).unwrap();
        weights(&gpt)
    };
    let first = train(1);
    assert_eq!(first, train(1));
    assert_ne!(first, train(2));
}

#[test]
fn a_loaded_model_answers_as_the_saved_one() {
    let folder = std::env::temp_dir().join(format!("overnight-trainer-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let checkpoint = folder.join("model.safetensors");
    let mut saved = small_gpt(3, DType::F32);
    saved.save(&checkpoint).unwrap();
    let mut loaded = small_gpt(4, DType::F32);
    let batch = random_batch(2, 16);
    let answer = |gpt: &mut Gpt| score(gpt, &batch.inputs, &batch.targets, 16);
    assert_ne!(answer(&mut saved), answer(&mut loaded));
    loaded.load(&checkpoint).unwrap();
    assert_eq!(answer(&mut saved), answer(&mut loaded));

    // A model of other shapes, and what is no checkpoint at all.
    let error = default_gpt(0).load(&checkpoint).unwrap_err().to_string();
    assert!(error.contains("model.safetensors"), "{error}");
    std::fs::write(&checkpoint, "nothing").unwrap();
    assert!(loaded.load(&checkpoint).is_err());
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_loss_that_is_no_number_ends_training_at_once() {
    let mut gpt = default_gpt(0);
    let head = &gpt.parameters.vars["lm_head"];
    head.set(&(head.as_tensor() * f64::NAN).unwrap()).unwrap();
    let error = Counting::train(&mut gpt, 10).unwrap_err().to_string();
    assert!(error.contains("step 0"), "{error}");
}
