//! Byte-level BPE, trained on the corpus and kept as a standard `tokenizer.json`.

use crate::error::{Error, Result};
use std::{fmt::Display, path::Path};
use tokenizers::{
    AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior, TokenizerBuilder, TokenizerImpl,
    decoders::byte_level::ByteLevel as Decoder,
    models::bpe::{BPE, BpeTrainerBuilder},
    normalizers::NormalizerWrapper,
    pre_tokenizers::{
        byte_level::ByteLevel,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
    processors::PostProcessorWrapper,
};

type Inner =
    TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, Decoder>;

/// Text to tokens. Every byte has a token of its own, so every text can be written.
pub(super) struct Tokenizer(Inner);

/// What stands at the beginning of every document and of every row.
const BOS: &str = "<|bos|>";

/// The 256 bytes and BOS: with fewer tokens not every text can be written.
pub(super) const SMALLEST_VOCABULARY: usize = 257;

/// Token files hold 16 bits a token.
pub(super) const LARGEST_VOCABULARY: usize = 1 << 16;

/// GPT-4's split pattern, with numbers cut after two digits instead of three, as nanochat does for
/// small vocabularies.
const PATTERN: &str = concat!(
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}",
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
);

impl Tokenizer {
    /// Learns `vocab_size` tokens, BOS among them, or fewer where `texts` have too few pairs that
    /// occur twice.
    pub(super) fn train<'a>(
        texts: impl Iterator<Item = &'a str> + Send,
        vocab_size: usize,
    ) -> Result<Self> {
        let split = Split::new(
            SplitPattern::Regex(PATTERN.to_owned()),
            SplitDelimiterBehavior::Isolated,
            false,
        )
        .map_err(failed("compile the split pattern"))?;
        let bytes = ByteLevel::new(false, false, false);
        let mut tokenizer: Inner = TokenizerBuilder::new()
            .with_model(BPE::default())
            .with_normalizer(None)
            .with_pre_tokenizer(Some(PreTokenizerWrapper::Sequence(Sequence::new(vec![
                split.into(),
                bytes.into(),
            ]))))
            .with_post_processor(None)
            .with_decoder(Some(bytes))
            .build()
            .map_err(failed("assemble"))?;
        let mut trainer = BpeTrainerBuilder::new()
            .show_progress(false)
            .vocab_size(vocab_size)
            .min_frequency(2)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(vec![AddedToken::from(BOS, true)])
            .build();
        tokenizer.train(&mut trainer, texts).map_err(failed("train"))?;
        // A text that spells BOS is text: as the token it would have no bytes, and vanish from the score.
        tokenizer.set_encode_special_tokens(true);
        Ok(Self(tokenizer))
    }

    /// Writes `tokenizer.json`, in the format of the `tokenizers` library.
    pub(super) fn save(&self, path: &Path) -> Result<()> {
        let save = self.0.save(path, true);
        save.map_err(|error| Error::io("write", path)(std::io::Error::other(error.to_string())))
    }

    /// Distinct tokens, BOS included.
    pub(super) fn vocab_size(&self) -> usize {
        self.0.get_vocab_size(true)
    }

    /// The token that begins every document.
    pub(super) fn bos(&self) -> Result<u32> {
        self.0.token_to_id(BOS).ok_or_else(|| failed("find BOS in")("it has none"))
    }

    /// Bytes of text that each token stands for; 0 for BOS.
    pub(super) fn token_bytes(&self) -> Vec<u32> {
        let mut bytes = vec![0; self.vocab_size()];
        for (token, id) in self.0.get_vocab(true) {
            if token != BOS {
                // In a byte-level vocabulary each byte is written as one character.
                bytes[id as usize] = token.chars().count() as u32;
            }
        }
        bytes
    }

    /// The tokens of each text, without BOS, on all cores.
    pub(super) fn encode(&self, texts: &[String]) -> Result<Vec<Vec<u16>>> {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let encoded = self.0.encode_batch_fast(texts, false).map_err(failed("encode with"))?;
        // No vocabulary is larger than `LARGEST_VOCABULARY`.
        Ok(encoded
            .iter()
            .map(|text| text.get_ids().iter().map(|&id| id as u16).collect())
            .collect())
    }
}

fn failed<E: Display>(action: &'static str) -> impl FnOnce(E) -> Error {
    move |error| Error::Data {
        what: "the tokenizer".to_owned(),
        problem: format!("cannot {action} it: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "the cat and the hat and the bat: 1234, naïve\n\n  indented\tÅ 漢字\0";

    #[test]
    fn the_bytes_of_a_texts_tokens_are_the_bytes_of_the_text() {
        let tokenizer = Tokenizer::train([TEXT, TEXT].into_iter(), 300).unwrap();
        assert!(tokenizer.vocab_size() > SMALLEST_VOCABULARY);
        let bytes = tokenizer.token_bytes();
        let text = format!("{TEXT} and what it has never seen: <|bos|> \u{1F980} zzz");
        let tokens = &tokenizer.encode(std::slice::from_ref(&text)).unwrap()[0];
        let bos = tokenizer.bos().unwrap();
        assert!(tokens.iter().all(|&token| u32::from(token) != bos));
        let total: u32 = tokens.iter().map(|&token| bytes[token as usize]).sum();
        assert_eq!(total as usize, text.len());
    }

    #[test]
    fn training_twice_gives_the_same_tokenizer() {
        let texts: Vec<String> = (0..200).map(|i| format!("{TEXT} {}", i * i)).collect();
        let train = || {
            let tokenizer = Tokenizer::train(texts.iter().map(String::as_str), 400).unwrap();
            serde_json::to_string(&tokenizer.0).unwrap()
        };
        assert_eq!(train(), train());
    }
}
