"""What quantization did to a model: measured in the serving engine, beside the baseline."""
