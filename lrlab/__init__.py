"""lrlab: a laboratory for learning rates on JAX and Optax."""

__version__ = "0.1.0"
