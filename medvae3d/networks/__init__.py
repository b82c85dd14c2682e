"""Encoder and decoder trunks, their blocks, conditioning and discriminators."""
