"""Readers of data sets, one for each layout, and `load`, which picks the reader and checks what it found.

Every source becomes the same `Splits` of `LabeledImages`. Nothing is decoded or changed here but by an image size.
"""
