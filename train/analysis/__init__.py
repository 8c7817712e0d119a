"""What augmentation does to training, measured: gradient variance and spectra of the network's Jacobian.

Analysis of models that exist; nothing is trained or selected here.
"""
