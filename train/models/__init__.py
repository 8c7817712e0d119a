"""The classifiers: `build` makes one by name, from our own (resnets, vit, SmallCNN), torchvision's and timm's.

It also reads published weights. No training (`loop`), no forward passes over a data set (`train.evaluate`), and no
diffusion models (`synth.generators`).
"""
