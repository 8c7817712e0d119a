"""The synthetic data set on disk: its parts and manifest, its export to other formats, its card.

How the images are made and scored is in `synth/`; here they are only stored, read and handed on.
"""
