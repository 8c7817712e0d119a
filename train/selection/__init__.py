"""Which examples: slow-learned ones (slow), coresets by one function for all methods (coreset), and their algorithms.

Scores, greedy methods and facility location take arrays and give rows and weights. No models are run here
(`train.evaluate`), and nothing is read or written; how a selection is trained on is `augment.mixing`.
"""
