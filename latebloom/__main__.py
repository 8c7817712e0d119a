"""`python -m latebloom` is the command `latebloom`."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the working directory: a user's `queue.py` there is not ours to import
    from latebloom.flows.cli.app import main

    main()
