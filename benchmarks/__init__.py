"""Benchmarks that compare the pipeline with plain Keras and PyTorch scripts for the same task."""
