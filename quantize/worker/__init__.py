"""The process that runs a quantization library, in the environment that has it."""
