"""What the pipeline costs, measured against a plain Keras script of the same job."""
