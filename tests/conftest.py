"""Before torch is imported: one thread a process, since tests share the cores with each other and with the machine."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
