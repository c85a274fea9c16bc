"""Quantizes a 16-bit checkpoint to an INT8 or INT4 artifact."""
