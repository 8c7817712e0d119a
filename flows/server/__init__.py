"""The Prefect server: what its UI offers, who runs it, and how it is started and ended.

Deployments with their forms, automations, `serve`, `latebloom up` and `down`. The flows themselves are in
`flows/pipeline.py`, what a run shows in the UI in `flows/artifacts`.
"""
