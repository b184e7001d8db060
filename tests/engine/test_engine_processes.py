"""A process with an engine: its end, whatever is not read, and its forks."""

import os
import subprocess
import sys

import forks
import pytest

SOAK = """
import sys
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine.pool import engine_for
from llm_mlx_promptcache.engine.request import GenerationRequest
for event in engine_for(sys.argv[1]).generate(GenerationRequest((Message("user", "One?"),), 4)):
    pass
"""


def test_the_process_ends_with_status_0_every_time(folder, tmp_path):
    environment = {**os.environ, "LLM_MLX_CACHED_HOME": str(tmp_path)}
    command = [sys.executable, "-c", SOAK, str(folder)]
    codes = [subprocess.run(command, env=environment).returncode for _ in range(3)]
    assert codes == [0] * 3


UNREAD = """
import sys
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine.pool import engine_for
from llm_mlx_promptcache.engine.request import GenerationRequest, Sampling
never_ends = Sampling(logit_bias=((2, -1000.0),))
request = GenerationRequest((Message("user", "One?"),), 1 << 20, never_ends)
events = engine_for(sys.argv[1]).generate(request)
for _ in range(8):
    next(events)
"""


def test_an_answer_that_nobody_reads_does_not_keep_the_process(tiny_llama, tmp_path):
    folder = tiny_llama(context=1 << 21)
    environment = {**os.environ, "LLM_MLX_CACHED_HOME": str(tmp_path)}
    command = [forks.python(), "-c", UNREAD, str(folder)]
    assert subprocess.run(command, env=environment, timeout=60).returncode == 0


FORKED = """
import os, signal, sys
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine.pool import engine_for
from llm_mlx_promptcache.engine.request import GenerationRequest
engine = engine_for(sys.argv[1])
request = GenerationRequest((Message("user", "One?"),), 4)
list(engine.generate(request))
if not (child := os.fork()):
    signal.alarm(30)
    try:
        list(engine.generate(request))
    except RuntimeError as error:
        print(error, flush=True)
        os._exit(7)
    os._exit(8)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
list(engine.generate(request))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform can't fork")
def test_a_forked_child_is_told_at_once(folder, tmp_path):
    environment = {**os.environ, "LLM_MLX_CACHED_HOME": str(tmp_path)}
    command = [forks.python(), "-c", FORKED, str(folder)]
    run = subprocess.run(command, env=environment, timeout=60, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "belongs to the process that forked" in run.stdout
