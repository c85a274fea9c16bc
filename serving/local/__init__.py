"""The local engine: vLLM behind Ray Serve, label scoring, micro-batches, the bundled model."""
