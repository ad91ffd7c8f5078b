//! The trainer on a card, whose kernels run in this process.

#[path = "../../kernels/tests/support/host.rs"]
mod host;

use super::*;
use overnight_kernels::{Compute, card::emulate};
use overnight_plugin_api::{Trainer, Windows};
use std::{path::Path, rc::Rc};

/// What a few steps of training cost, and what windows cost afterwards.
fn trained() -> (Compute, Vec<f64>, Vec<f32>) {
    let mut gpt = build(&small(), 1, DType::F32);
    scramble(&gpt, 2);
    let text = Numbers(5).tokens(97, gpt.config.vocab_size);
    let mut text = Text::new(text, 4);
    gpt.train(&mut text.session()).unwrap();
    let tokens = Numbers(6).tokens(25, gpt.config.vocab_size);
    let mut nats = vec![f32::NAN; 24];
    let windows =
        Windows { inputs: &tokens[..24], targets: &tokens[1..], batch_size: 2, seq_len: 12 };
    gpt.score(windows, &mut nats).unwrap();
    (gpt.compute, text.losses, nats)
}

#[test]
fn a_card_trains_as_the_processor_does() {
    let (_, expected, expected_nats) = trained();
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/cuda");
    let Some(host) = host::Host::new(&kernels) else { return };
    let (compute, losses, nats) = emulate(Rc::new(host), trained);
    assert_eq!(compute, Compute::Card);
    let near = |a: f64, b: f64, tolerance: f64| (a - b).abs() < tolerance;
    // Before the first step only rounding differs; then Muon's, of which a few hundredths are left.
    assert!(near(losses[0], expected[0], 0.01), "{losses:?} instead of {expected:?}");
    for (loss, expected) in losses.iter().zip(&expected) {
        assert!(near(*loss, *expected, 0.1), "{loss} instead of {expected}");
    }
    for (nats, expected) in nats.iter().zip(&expected_nats) {
        assert!(near(f64::from(*nats), f64::from(*expected), 0.5), "{nats} and {expected}");
    }
}
