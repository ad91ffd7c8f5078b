//! What activations are stored in: `f32`, or `bf16` with half the memory.

use half::bf16;

/// A stored number. All arithmetic is in `f32`.
pub trait Element: Copy + Default + Send + Sync + 'static {
    fn load(self) -> f32;
    /// Rounded to the nearest, ties to even. NaN stays NaN.
    fn store(x: f32) -> Self;
}

impl Element for f32 {
    #[inline(always)]
    fn load(self) -> f32 {
        self
    }

    #[inline(always)]
    fn store(x: f32) -> f32 {
        x
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn load(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    /// Without branches, so that a loop over it becomes vector code.
    #[inline(always)]
    fn store(x: f32) -> bf16 {
        let bits = x.to_bits();
        // Half of the last place that stays, or just below it where that place is even.
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
        let high = if x.is_nan() { 0x7fc0 } else { rounded >> 16 };
        bf16::from_bits(high as u16)
    }
}

/// Compiles a function for AVX-512, for AVX2 and for any processor, and calls the best that this
/// one can run.
///
/// In the body, `FMA` says whether multiplication and addition in one instruction is cheap.
macro_rules! vectorized {
    (
        $(#[$attribute:meta])*
        $visibility:vis fn $name:ident $(<$element:ident>)? ($($argument:ident: $type:ty),* $(,)?) $body:block
    ) => {
        $(#[$attribute])*
        $visibility fn $name $(<$element: crate::element::Element>)? ($($argument: $type),*) {
            #[allow(clippy::too_many_arguments)]
            #[inline(always)]
            fn any<$($element: crate::element::Element,)? const FMA: bool>($($argument: $type),*) $body

            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code, reason = "functions compiled for one processor")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512 $(<$element: crate::element::Element>)? ($($argument: $type),*) {
                    any::<$($element,)? true>($($argument),*)
                }

                #[target_feature(enable = "avx2,fma")]
                fn avx2 $(<$element: crate::element::Element>)? ($($argument: $type),*) {
                    any::<$($element,)? true>($($argument),*)
                }

                if crate::processor::has_avx512() {
                    // SAFETY: the processor has all the features that the function is compiled for.
                    return unsafe { avx512 $(::<$element>)? ($($argument),*) };
                }
                if crate::processor::has_avx2() {
                    // SAFETY: as above.
                    return unsafe { avx2 $(::<$element>)? ($($argument),*) };
                }
            }
            any::<$($element,)? { cfg!(target_arch = "aarch64") }>($($argument),*)
        }
    };
}
pub(crate) use vectorized;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_that_of_the_half_crate() {
        let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 1e-45, -3.0e-39];
        let many = (0..=u32::MAX).step_by(65_521).map(f32::from_bits);
        for x in special.into_iter().chain(many) {
            let (ours, theirs) = (<bf16 as Element>::store(x), bf16::from_f32(x));
            assert_eq!(ours.is_nan(), theirs.is_nan(), "{x}");
            if !x.is_nan() {
                assert_eq!(ours.to_bits(), theirs.to_bits(), "{x}");
                assert_eq!(ours.load(), theirs.to_f32());
            }
        }
    }
}
