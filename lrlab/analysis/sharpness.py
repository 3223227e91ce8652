"""Sharpness: the largest eigenvalues of a loss's Hessian, from Hessian-vector products alone.

Gradient descent on a quadratic is stable below lr = 2 / sharpness, and below 2 (1 + m) / sharpness
with momentum m.
Source: Lanczos 1950; full-batch training at this edge: Cohen et al. 2021, arXiv:2103.00065.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

Loss = Callable[[Any], jax.Array]
CLOSED = 1e-5  # of the largest number so far: what is left of a vector is rounding in float32


def sharpness(loss_fn: Loss, params: Any, steps: int = 20, seed: int = 0) -> float:
    """The largest eigenvalue by value, not by magnitude: negative where all curvature is.

    Args: as for `eigenvalues`.
    """
    return float(eigenvalues(loss_fn, params, 1, steps, seed)[0][0])


def eigenvalues(
    loss_fn: Loss, params: Any, count: int = 1, steps: int = 20, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The largest eigenvalues by value, and how far each may be from one of the Hessian.

    An eigenvalue that the Hessian has several times is found once. One compiled program; memory for
    `steps` copies of the parameters.

    Args:
      loss_fn: params -> loss, twice differentiable. params: a tree of float arrays.
      count: of eigenvalues. steps: Hessian-vector products; more of them find more and better ones.
      seed: of the random direction from which the search begins.
    Returns:
      (values, falling; errors), float64 [count], or shorter where there are not so many.
    Raises:
      ValueError: count < 1, or fewer steps than that; a Hessian that is not finite.
    """
    if not 1 <= count <= steps:
        raise ValueError(f"count={count} and steps={steps} must satisfy 1 <= count <= steps")
    flat, _ = ravel_pytree(params)
    steps = min(steps, flat.size)
    with jax.default_matmul_precision("highest"):  # an accelerator's own loses orthogonality
        diagonal, beside = jax.jit(lambda p: _lanczos(loss_fn, p, steps, seed))(params)
    diagonal, beside = np.asarray(diagonal, np.float64), np.asarray(beside, np.float64)
    # Where nothing is left, the directions so far are closed under the Hessian: the rest is noise.
    scale = np.maximum.accumulate(np.maximum(np.abs(diagonal), beside))
    closed = np.flatnonzero(~(beside > CLOSED * scale))
    used = int(closed[0]) + 1 if len(closed) else steps
    if not np.isfinite(diagonal[:used]).all():
        raise ValueError("the Hessian is not finite: has the run diverged?")
    inner = beside[: used - 1]
    values, vectors = np.linalg.eigh(
        np.diag(diagonal[:used]) + np.diag(inner, 1) + np.diag(inner, -1)
    )
    rounding = np.finfo(flat.dtype).eps * scale[used - 1]
    errors = beside[used - 1] * np.abs(vectors[-1]) + rounding
    return values[::-1][:count], errors[::-1][:count]


def _lanczos(loss_fn: Loss, params: Any, steps: int, seed: int) -> tuple[jax.Array, jax.Array]:
    """The Hessian in a basis in which it is tridiagonal: its diagonal and the one beside it.

    The last number beside the diagonal is the norm of what the basis leaves over.
    """
    flat, unravel = ravel_pytree(params)

    def gradient(p: jax.Array) -> jax.Array:
        return ravel_pytree(jax.grad(loss_fn)(unravel(p)))[0]

    def step(i: jax.Array, carry: Any) -> Any:
        basis, diagonal, beside = carry
        w = jax.jvp(gradient, (flat,), (basis[i],))[1]
        diagonal = diagonal.at[i].set(w @ basis[i])
        for _ in range(2):  # once is not enough in float32
            w = w - basis.T @ (basis @ w)
        norm = jnp.linalg.norm(w)
        return basis.at[i + 1].set(w / norm), diagonal, beside.at[i].set(norm)

    start = jax.random.normal(jax.random.key(seed), flat.shape, flat.dtype)
    basis = jnp.zeros((steps + 1, flat.size), flat.dtype).at[0].set(start / jnp.linalg.norm(start))
    zeros = jnp.zeros(steps, flat.dtype)
    return jax.lax.fori_loop(0, steps, step, (basis, zeros, zeros))[1:]
