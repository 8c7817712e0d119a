"""What a run found, for people: values, sentences, charts, the page; a closer look at one image; the lineage.

Reads what the stages wrote and changes none of it. What the Prefect UI shows is in `flows/artifacts`.
"""
