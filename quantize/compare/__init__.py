"""Measures the effect of quantization on a model, in the serving engine, against the baseline."""
