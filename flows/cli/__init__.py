"""The command line: commands, options made of settings, what is typed as nested settings, tables on a terminal.

What a setting means and its default are in `flows/config`, how settings become the config of a run in
`flows/run/resolve.py`. Nothing here imports torch, numpy or Prefect before a command needs it.
"""
