"""The stages of a run, one file a stage: check, train early, select, plan, make images, retrain, coreset, export.

A stage opens one `RunContext`, skips itself where its record is still right, and writes files into the run folder.
No Prefect in here. Algorithms are in `train/` and `synth/`; what is shown of a run is in `flows/report`.
"""
