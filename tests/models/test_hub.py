"""A model fetched by the hub's real client, from a hub on this machine, with its progress told."""

import hashlib
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

COMMIT = "c" * 40
SCRIPT = (
    "import sys\n"
    "from llm_mlx_promptcache.models.here import folder_here\n"
    "from llm_mlx_promptcache.models.loading import model_folder\n"
    "from llm_mlx_promptcache.models.progress import ProgressLine\n"
    "assert folder_here('somebody/small') is None\n"
    "folder = model_folder('somebody/small', ProgressLine())\n"
    "assert folder_here('somebody/small') == folder\n"
    "print(folder)\n"
)


class Hub(BaseHTTPRequestHandler):
    """The parts of a hub that its client asks for one model."""

    files: ClassVar = {}
    told: ClassVar = {}  # what the hub says beside them

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        path = self.path.partition("?")[0]
        name = path.rpartition("/")[2]
        if path.startswith("/api/models/somebody/small"):
            siblings = [{"rfilename": n, "size": len(c)} for n, c in self.files.items()]
            if "/tree/" in path:
                found = [
                    {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                    for n, c in self.files.items()
                ]
            else:
                found = {"id": "somebody/small", "sha": COMMIT, "siblings": siblings, **self.told}
            content, headers = json.dumps(found).encode(), {"Content-Type": "application/json"}
        elif path.startswith("/somebody/small/resolve/") and name in self.files:
            content = self.files[name]
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        else:
            self.send_error(404)
            return
        self.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(tiny_llama):
    """The address of a hub that has somebody/small, and the model's files."""
    folder = tiny_llama()
    Hub.told = {}
    Hub.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_model_of_the_hub_is_fetched_once_and_progress_is_one_line(hub, tmp_path, monkeypatch):
    address, folder = hub
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("LLM_MLX_CACHED_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == ["Fetching small"]
    fetched = tmp_path.joinpath(done.stdout.strip())
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (fetched / name).read_bytes() == (folder / name).read_bytes()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody is there
    again = SCRIPT.replace("assert folder_here('somebody/small') is None\n", "")
    done = subprocess.run([sys.executable, "-c", again], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


CHECK = (
    "import sys\n"
    "from llm_mlx_promptcache.models import usable\n"
    "usable.budget = lambda: 1 << 40\n"
    "for name in map(str.strip, sys.stdin):\n"
    "    try:\n"
    "        print(usable.check_hub(name), flush=True)\n"
    "    except ValueError as error:\n"
    "        print('refused', error, flush=True)\n"
)


@pytest.fixture
def check_at(tmp_path, monkeypatch):
    """`check_at(hub)`: a process that reports names' checks, and has fetched nothing yet."""
    started = []

    def start(hub):
        monkeypatch.setenv("HF_ENDPOINT", hub)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("LLM_MLX_CACHED_HOME", str(tmp_path / "home"))
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen([sys.executable, "-c", CHECK], text=True, **pipes)
        started.append(process)

        def check(name="somebody/small"):
            process.stdin.write(f"{name}\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        return check

    yield start
    for process in started:
        assert process.communicate() == ("", "")
        assert process.returncode == 0
    assert not list((tmp_path / "hf").glob("hub/models--*/snapshots/*/model*"))


def test_a_hubs_model_is_checked_by_its_list_of_files(hub, check_at):
    checked = check_at(hub[0])
    assert checked() == "[]"
    Hub.told = {"config": {"tokenizer_config": {"eos_token": "x"}}}
    assert "seems to have no chat template" in checked()
    Hub.files["chat_template.jinja"] = b""
    assert checked() == "[]"
    del Hub.files["config.json"]
    assert "has no config.json on the hub" in checked()
    del Hub.files["model.safetensors"]
    assert "has no model*.safetensors on the hub" in checked()
    Hub.files["small-Q4_K_M.gguf"] = b""
    told = checked()
    assert told.startswith("refused somebody/small has GGUF files and nothing that mlx-lm reads")
    assert "hf download somebody/small small-Q4_K_M.gguf" in told
    told = checked("somebody/else")
    assert told.startswith("refused there is no folder 'somebody/else' here, and the hub has no")


def test_a_hub_that_can_not_be_asked_costs_nothing(check_at):
    told = check_at("http://127.0.0.1:9")()
    assert told.startswith("[\"the hub can't be asked about somebody/small now, so it is not")
