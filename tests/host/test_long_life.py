"""Ten thousand prompts through one host leave it as the first hundred did."""

import os
from pathlib import Path

import pytest
from hosts import descriptors, events, generate

from llm_mlx_promptcache.config import Settings, save_settings

FIRST = 100
PROMPTS = 10_000
LARGEST_GROWTH = 32_000_000  # bytes: of the allocators' own ways; a leak of 5 kB a prompt is more


@pytest.fixture(scope="module")
def folder(tiny_llama):
    return tiny_llama()


def state(pid):
    """The resources of a process: resident bytes, open files, threads."""
    of = Path(f"/proc/{pid}")
    resident = int((of / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    files = min(descriptors(pid) for _ in range(100))  # but for a span that is just written
    return resident, files, len(list((of / "task").iterdir()))


@pytest.mark.soak
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts what Linux tells")
def test_ten_thousand_prompts_leave_memory_files_and_threads_as_they_were(
    place, start, folder, soak_share
):
    # Small enough that the first hundred fill both.
    save_settings(Settings(memory="500kB", disk="1MB"))
    host = start()
    prompts = max(2 * FIRST, int(PROMPTS * soak_share))
    before = None
    for number in range(prompts):
        *frames, end = host.ask(generate(folder, f"{number} is the number", max_tokens=4))
        assert end == {"end": True}
        assert events(frames)[-1].usage.generated  # a beat may come behind it
        if number == FIRST:
            before = state(host.process.pid)
    after = state(host.process.pid)
    assert after[1:] == before[1:]
    assert after[0] - before[0] <= LARGEST_GROWTH, (before, after)
