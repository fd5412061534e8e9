"""One thread a test process: the models are tiny, and two OpenMP threads on a busy machine wait for each other."""

from __future__ import annotations

import os

import torch

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
os.environ.setdefault("HICACHE_VERIFY", "1")  # every graph is checked after every pass

if not torch.cuda.is_available():
    # Triton's kernels are interpreted where there is no GPU. It has to know before it is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")
