"""Settings of the whole suite."""

import os

import torch

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes: their threads would wait for each other's
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
