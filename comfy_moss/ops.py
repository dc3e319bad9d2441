"""The only door to kernels/.  Every operation here has a plain torch twin, which is also the CPU path."""

from .kernels.reference import cosine_rope2d, cross_scale_attention, modulated_norm

__all__ = ["cosine_rope2d", "cross_scale_attention", "modulated_norm"]
