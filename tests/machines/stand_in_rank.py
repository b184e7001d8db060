"""A rank that does what its first argument says; what it was started with goes into a file."""

import json
import logging
import os
import sys
import time
from pathlib import Path

from llm_mlx_promptcache.host import log
from llm_mlx_promptcache.machines.orders import said

kind, record = sys.argv[1:3]
line = sys.stdin.buffer.readline()
told = {"argv": sys.argv, "environ": dict(os.environ), "order": json.loads(line)}
Path(record).write_text(json.dumps(told))
if kind == "shell noise":
    print("Welcome to mac1!\nYou have mail.", flush=True)
if kind in ("hello", "shell noise"):
    sys.stdout.buffer.write(said({"versions": {}}))
    sys.stdout.flush()
if kind == "endless noise":
    while sys.stdout.write("noise " * 1000 + "\n"):
        pass
if kind == "dies":
    os.write(2, b"some library's remark\nllm-mlx-promptcache: it has no model x\n\n")
    os.write(2, b"\x1b[31mBus error\x1b[0m " + b"y" * 9000 + b"\n")
    sys.exit(3)
if kind == "warns":
    log.take_over()
    warned = logging.getLogger("llm_mlx_promptcache.cache.disk.store")
    warned.warning("%s can't be written\n\x1b[31m", "/its/cache")
    warned.error("no warning")
if kind == "killed":
    os.kill(os.getpid(), 9)
if kind == "deaf":
    time.sleep(600)
sys.stdin.buffer.read()  # to the end of who started it
