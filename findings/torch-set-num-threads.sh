#!/usr/bin/env bash
# torch.set_num_threads is neither the process's setting nor quite the thread's: it changes the calling thread and the
# default that each thread takes up when it first computes or asks. A thread that has set 2 but has not computed yet
# loses its own setting to a later set(1) of another thread; one that has asked once keeps it. And a pool whose workers
# each set 1 leaves 1 as the default of every thread that begins later (a data loader's, for instance).
#
# torch 2.13.0 (Linux, libgomp). Seen:
#   main set 2, worker set 1: main says 1 if it had not asked before, 2 if it had; a thread begun later: 1
#   main sets 2 again: worker 1, main 2, a thread begun later: 2
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'numpy==2.4.6' 'torch==2.13.0'
"$work/venv/bin/python" - <<'PY'
import threading
from concurrent.futures import ThreadPoolExecutor

import torch


def later() -> int:
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


def set_one() -> int:
    torch.get_num_threads()
    torch.set_num_threads(1)
    return torch.get_num_threads()


torch.set_num_threads(2)
with ThreadPoolExecutor(1) as pool:
    worker = pool.submit(set_one).result()
    not_asked = (worker, torch.get_num_threads(), later())
    torch.set_num_threads(2)
    again = (pool.submit(torch.get_num_threads).result(), torch.get_num_threads(), later())
with ThreadPoolExecutor(1) as pool:
    asked = (pool.submit(set_one).result(), torch.get_num_threads(), later())
print("worker, main, later thread; main had only set 2:", *not_asked)
print("the same after main set 2 again:", *again)
print("another worker sets 1; main had asked before:", *asked)
assert not_asked == (1, 1, 1), not_asked
assert again == (1, 2, 2), again
assert asked == (1, 2, 1), asked
PY
