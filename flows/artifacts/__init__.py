"""What a run shows in the Prefect UI: progress, a page a stage, pictures, and the event that automations wait for.

The report that a run writes into its folder is in `flows/report`.
"""
