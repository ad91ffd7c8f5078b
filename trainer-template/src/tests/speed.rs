//! A measurement, not a test: how fast the shipped model trains on this machine.

use super::*;
use overnight_plugin_api::{Setup, Trainer};
use std::time::Instant;

#[test]
#[ignore = "a measurement: cargo test --release --lib tokens_per_second -- --ignored --nocapture"]
fn tokens_per_second_of_the_shipped_model() {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let (vocab_size, max_seq_len) = (2048, 256);
    let device = overnight_plugin_api::Device::Cpu;
    let setup = Setup { vocab_size, max_seq_len, seed: 1, threads, device };
    let mut gpt = Gpt::new(&setup).unwrap();
    let parameters: usize = gpt.parameters.vars.values().map(|var| var.elem_count()).sum();
    let text = Numbers(1).tokens(100_003, vocab_size);
    // Memory is fetched from the system in the first steps.
    gpt.train(&mut Text::new(text.clone(), 5).session()).unwrap();
    let steps = 50;
    let mut text = Text::new(text, steps);
    let start = Instant::now();
    gpt.train(&mut text.session()).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    // Every step reads its whole batch from the text.
    let tokens = 16 * max_seq_len * steps;
    println!(
        "{parameters} parameters, {threads} threads: {:.1} ms a step, {:.0} tokens a second",
        1e3 * seconds / steps as f64,
        tokens as f64 / seconds
    );
}
