"""Measures the running stack beside bare vLLM and an empty handler, interleaved in one run."""
