"""Settings of the whole suite."""

import os
import signal

import torch

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes: their threads would wait for each other's
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in whatever a shell starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
