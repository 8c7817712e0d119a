"""Who makes the parts of a synthetic data set, and who has to wait: processes, Dask, Ray, or runs of a deployment.

Limits of jobs on a GPU, locks of run folders and retries of tasks are here too. How a part is made is in
`flows/stages/synthesis.py`.
"""
