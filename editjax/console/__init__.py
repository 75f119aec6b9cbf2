"""A mixing console that gradients pass through: its filters, dynamics and meters, of one sound (C, S) each.

Settings are scalars; several sounds or settings go through `jax.vmap`. `stream` mixes and measures what is
longer than memory, block by block.
"""
