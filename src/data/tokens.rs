//! A file of tokens, mapped into memory.

use crate::error::{Error, Result};
use memmap2::Mmap;
use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
    sync::Arc,
};

/// Documents as tokens, on disk: mapped, so that a gigabyte of them costs a process nothing.
///
/// Little-endian throughout: 8 bytes of magic, the number of documents and of tokens as `u64`, the
/// end of every document as `u64`, counted in tokens, then the tokens as `u16`. Documents stand
/// without their BOS.
#[derive(Debug, Clone)]
pub struct TokenFile {
    map: Arc<Mmap>,
    documents: usize,
    tokens: usize,
}

const MAGIC: &[u8; 8] = b"ovntok01";
const HEADER: usize = 24;

impl TokenFile {
    /// Maps the file at `path`, and checks that it is whole.
    #[expect(unsafe_code, reason = "a mapping is a promise about other processes")]
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        // SAFETY: a prepared data set is written once, under another name, and never changed; a
        // process that truncates it all the same breaks the studies that use it, not memory safety
        // beyond a bus error.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))?;
        let refuse = |problem: &str| Error::Data {
            what: path.display().to_string(),
            problem: format!("{problem}; delete its folder, and it will be prepared anew"),
        };
        if map.len() < HEADER || &map[..8] != MAGIC {
            return Err(refuse("it is not a file of tokens"));
        }
        let count = |at: usize| usize::try_from(number(&map, at)).unwrap_or(usize::MAX);
        let (documents, tokens) = (count(8), count(16));
        let length = documents
            .checked_mul(8)
            .and_then(|ends| ends.checked_add(tokens.checked_mul(2)?))
            .and_then(|body| body.checked_add(HEADER));
        if length != Some(map.len()) {
            return Err(refuse("it is shorter or longer than it says"));
        }
        let file = Self { map: Arc::new(map), documents, tokens };
        let mut last = 0;
        for document in 0..documents {
            let end = file.end(document);
            if end < last || end > tokens {
                return Err(refuse("its documents overlap"));
            }
            last = end;
        }
        if last != tokens {
            return Err(refuse("its documents are not all its tokens"));
        }
        Ok(file)
    }

    /// Writes `documents`.
    pub(super) fn write(path: &Path, documents: &[Vec<u16>]) -> Result<()> {
        let write = || -> std::io::Result<()> {
            let mut file = BufWriter::new(File::create(path)?);
            file.write_all(MAGIC)?;
            file.write_all(&(documents.len() as u64).to_le_bytes())?;
            let tokens: usize = documents.iter().map(Vec::len).sum();
            file.write_all(&(tokens as u64).to_le_bytes())?;
            let mut end = 0u64;
            for document in documents {
                end += document.len() as u64;
                file.write_all(&end.to_le_bytes())?;
            }
            for token in documents.iter().flatten() {
                file.write_all(&token.to_le_bytes())?;
            }
            file.into_inner().map_err(|error| error.into_error())?.sync_all()
        };
        write().map_err(Error::io("write", path))
    }

    /// How many documents there are.
    pub fn documents(&self) -> usize {
        self.documents
    }

    /// How many tokens there are, without any BOS.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Tokens in a document, without its BOS.
    pub fn len_of(&self, document: usize) -> usize {
        self.end(document) - self.start(document)
    }

    /// The tokens of a document, without its BOS.
    pub fn document(&self, document: usize) -> impl Iterator<Item = u32> + '_ {
        let base = HEADER + 8 * self.documents;
        let bytes = &self.map[base + 2 * self.start(document)..base + 2 * self.end(document)];
        bytes.as_chunks::<2>().0.iter().map(|&token| u32::from(u16::from_le_bytes(token)))
    }

    fn start(&self, document: usize) -> usize {
        if document == 0 { 0 } else { self.end(document - 1) }
    }

    fn end(&self, document: usize) -> usize {
        number(&self.map, HEADER + 8 * document) as usize
    }
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn documents_come_back_and_a_damaged_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.bin");
        let documents = vec![vec![1, 2, 3], vec![], vec![65535]];
        TokenFile::write(&path, &documents).unwrap();
        let file = TokenFile::open(&path).unwrap();
        assert_eq!((file.documents(), file.tokens()), (3, 4));
        for (i, document) in documents.iter().enumerate() {
            let read: Vec<_> = file.document(i).collect();
            assert!(read.iter().copied().eq(document.iter().map(|&token| u32::from(token))));
        }
        let whole = fs::read(&path).unwrap();
        drop(file);
        for damaged in
            [&whole[..whole.len() - 1], &whole[..10], b"", &[whole.clone(), vec![0]].concat()]
        {
            fs::write(&path, damaged).unwrap();
            assert!(TokenFile::open(&path).is_err(), "{} bytes", damaged.len());
        }
        let mut overlapping = whole.clone();
        overlapping[HEADER] = 200;
        fs::write(&path, overlapping).unwrap();
        assert!(TokenFile::open(&path).unwrap_err().to_string().contains("overlap"));
    }
}
