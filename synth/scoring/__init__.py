"""Scores of synthetic images: one by one (quality, clip), with the state that follows, and of a whole set (fidelity).

Nothing is dropped here: an image keeps its scores and state, and thresholds can move later.
"""
