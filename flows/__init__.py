"""Everything that is run: the stages of a run folder, the flows that string them together, and who starts them.

A room imports only from rooms below it (import-linter has the order, `pyproject.toml`): cli, server, pipeline, tasks,
artifacts, runners and report, stages, run, config. The algorithms are in `train/` and `synth/`, the data in `data/`.
"""
