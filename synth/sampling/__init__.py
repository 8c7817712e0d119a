"""Noise levels, the denoising loop with its samplers, and the interfaces `Generator` and `Denoiser`.

Knows no file format and no model of its own; those are in `generators/`.
"""
