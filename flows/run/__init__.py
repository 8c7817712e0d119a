"""What every run needs: its folder and records, its config, progress, processes, interruption, errors, time budget.

What is done in a run is in `flows/stages`; who shares the work is in `flows/runners`. Knows no Prefect.
"""
