"""Diffusion models behind the interfaces of `synth/sampling/denoiser.py`, one kind a file; `load` finds the right one.

All that knows diffusers is here (and `synth/fit.py`, which trains one). Noise levels and loops are in `sampling/`.
"""
