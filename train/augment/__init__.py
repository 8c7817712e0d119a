"""How images of a batch are changed: weak (crop, flip), strong (policies of image_ops), and for which rows (mixing).

Everything is drawn on the CPU from a seeded generator and applied on the images' device.
No synthetic images (`synth`), and no batches or epochs of training (`loop.epoch`).
"""
