"""Tokenizers: SentencePiece, byte-level BPE and WordPiece vocabularies, and `tokenizer.Tokenizer` over them."""
