"""How our kernels run on Hopper GPUs: two warpgroups compute while a third copies tiles into a ring.

Pallas for Mosaic GPU, nothing of attention. Interpreted on the CPU everything runs as on the GPU, threads,
copies and barriers, but for `product`: the tensor cores compute it on the GPU, XLA when it is interpreted.
"""

import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

ROWS = 64  # rows of a warpgroup's product
WARPGROUPS = 2
BLOCK = ROWS * WARPGROUPS
STAGES = 2  # tiles in the ring


def kernel(body, grid, out_type, scratch, arrivals, interpret):
    """`body` on every (head, task, example), with barriers for what a warpgroup loads and for the ring."""
    mine, ready = arrivals
    return plgpu.kernel(
        body,
        out_type=out_type,
        grid=grid,
        grid_names=("head", "task", "batch"),
        num_threads=WARPGROUPS + 1,
        thread_name="warpgroup",
        scratch_types=[
            *scratch,
            plgpu.Barrier(num_arrivals=mine, num_barriers=WARPGROUPS),
            plgpu.Barrier(num_arrivals=ready, num_barriers=STAGES),
            plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=STAGES),
        ],
        compiler_params=plgpu.CompilerParams(
            approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Warpgroup
        ),
        interpret=interpret,
    )


def where_am_i():
    return (lax.axis_index(name) for name in ("batch", "head", "task", "warpgroup"))


def share(compute, steps, load, used) -> None:
    """Two warpgroups compute; the third loads tiles, as long as there is room in the ring."""
    group = lax.axis_index("warpgroup")

    @pl.when(group < WARPGROUPS)
    def _():
        plgpu.set_max_registers(232, action="increase")
        compute()

    @pl.when(group == WARPGROUPS)
    def _():
        plgpu.set_max_registers(40, action="decrease")

        def one(step, _):
            slot = _slot(step)
            pl.when(step >= STAGES)(lambda: plgpu.barrier_wait(used.at[slot]))
            load(step, slot)

        lax.fori_loop(0, steps, one, None)
        # Nothing may be left unobserved at a barrier when the kernel ends.
        lax.fori_loop(
            jnp.maximum(steps - STAGES, 0),
            steps,
            lambda step, _: plgpu.barrier_wait(used.at[_slot(step)]),
            None,
        )


def _slot(step):
    return lax.rem(step, jnp.int32(STAGES))


def visit_all(steps, visit, state, ready, used):
    """The state after all tiles, each taken from the ring when it is there and given back after."""

    def one(step, state):
        slot = _slot(step)
        plgpu.barrier_wait(ready.at[slot])
        state = visit(step, slot, state)
        plgpu.barrier_arrive(used.at[slot])
        return state

    return lax.fori_loop(0, steps, one, state)


def product(a, b, sums=None, *, transposed=False, interpret=False):
    """`sums` + a · b, or a · bᵀ, with float32 sums; b lies in shared memory, a there or in registers."""
    shape = (a.shape[0], b.shape[0 if transposed else 1])
    if interpret:
        axes = (((1,), (1 if transposed else 0,)), ((), ()))
        product = lax.dot_general(a[...], b[...], axes, preferred_element_type=jnp.float32)
        return product if sums is None else sums + product
    b = b.transpose((1, 0)) if transposed else b
    if sums is not None:
        return pl.run_state(lambda total: plgpu.wgmma(total, a, b))(plgpu.ACC.init(sums))

    def fresh(total):
        plgpu.wgmma(total, a, b)
        return total[...]

    return pl.run_scoped(fresh, plgpu.ACC(shape, jnp.float32))
