//! Backward passes against finite differences, in 64 bits.

use super::{random_batch, small_gpt};
use candle_core::{DType, Tensor, Var};

/// Half the distance between the two losses of a difference. In f64 that leaves an error of about
/// 1e-10 of rounding and as much of the third derivative.
const STEP: f64 = 1e-5;
const TOLERANCE: f64 = 1e-7;

fn flat(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn gradients_agree_with_finite_differences() {
    let gpt = small_gpt(0, DType::F64);
    let batch = random_batch(2, 13);
    let loss = || gpt.model.loss(&batch).unwrap().to_scalar::<f64>().unwrap();
    let grads = gpt.model.loss(&batch).unwrap().backward().unwrap();
    let mut checked = 0;
    for (name, var) in &gpt.parameters.vars {
        let grad = flat(grads.get(var).unwrap_or_else(|| panic!("{name} has no gradient")));
        let original = flat(var.as_tensor());
        // The entries that matter most, and others from all over.
        let mut entries: Vec<usize> = (0..grad.len()).collect();
        entries.sort_by(|&a, &b| grad[b].abs().total_cmp(&grad[a].abs()));
        assert!(grad[entries[0]].abs() > 1e-4, "{name}: nothing to compare");
        let stride = entries.len().div_ceil(6);
        for &entry in entries[..entries.len().min(4)].iter().chain(entries.iter().step_by(stride)) {
            let loss_at = |offset: f64| {
                let mut values = original.clone();
                values[entry] += offset;
                set(var, values);
                loss()
            };
            let difference = (loss_at(STEP) - loss_at(-STEP)) / (2.0 * STEP);
            let error = (difference - grad[entry]).abs();
            assert!(error < TOLERANCE, "{name}[{entry}]: {difference} by difference, {}", grad[entry]);
            checked += 1;
        }
        set(var, original);
    }
    assert!(checked > 100);
}

fn set(var: &Var, values: Vec<f64>) {
    var.set(&Tensor::from_vec(values, var.shape(), var.device()).unwrap()).unwrap();
}

#[test]
fn every_parameter_of_the_default_model_receives_a_gradient() {
    use crate::train::Gpt;
    use overnight_plugin_api::{Device, Setup, Trainer};
    let setup =
        Setup { vocab_size: 23, max_seq_len: 16, seed: 0, threads: 1, device: Device::Cpu };
    let gpt = Gpt::new(&setup).unwrap();
    let grads = gpt.model.loss(&random_batch(2, 16)).unwrap().backward().unwrap();
    gpt.parameters.check_gradients(&grads).unwrap();
    // The check itself: a gradient that is missing is named.
    let other = Gpt::new(&setup).unwrap();
    let error = other.parameters.check_gradients(&grads).unwrap_err().to_string();
    assert!(error.contains("lm_head") && error.contains("wte"), "{error}");
}
