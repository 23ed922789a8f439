"""The server: a compiled decoder, continuous batching over its slots, tokens streamed as they are made."""

__version__ = "0.1.0"
