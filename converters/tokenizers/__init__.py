"""Tokenizers: DNA letters, byte pairs and word pieces, with the same ids as transformers' own."""
