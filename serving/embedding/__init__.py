"""Texts as vectors: a small sentence encoder on the processor, off the event loop."""
