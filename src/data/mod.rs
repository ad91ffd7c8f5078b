//! What prepare.py is: corpus, tokenizer, token files, packing.
