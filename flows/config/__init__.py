"""The configs of flows, composed of those of data, train and synth; arms by name, presets, and settings as described.

No command-line library, no files, nothing heavy: importing a config takes pydantic alone. The config of a stage's own
is beside its code, in `data/config.py`, `train/config.py` and `synth/config.py`.
"""
