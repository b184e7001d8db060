"""deepagents: plans, files and sub-agents, over turns of one thread."""

import base64

import pytest
from deepagents import create_deep_agent
from deepagents.backends import FilesystemBackend
from driven_agents import Drive, texts
from langchain.agents.middleware import TodoListMiddleware
from langgraph.checkpoint.sqlite import SqliteSaver
from real_families import Played, every_family
from scripted_model import RUNS, SPLIT

pytestmark = pytest.mark.usefixtures("shared_views")

# One grey dot.
PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
TODOS = [
    {"content": "Find the capitals", "status": "in_progress"},
    {"content": "Write them down", "status": "pending"},
]
CAPITALS = f"Nor{SPLIT}way: Oslo\nFrance: Paris\n"


def task(country):
    asked = f"Find the capital of {country}."
    return ("task", {"description": asked, "subagent_type": "general-purpose"})


def script(played):
    """A plan, sub-agents side by side, a file; then it is changed, and a picture looked at."""
    tasks = [task("Norway"), task("France")]
    return {
        "List two capitals.": played.calls(("write_todos", {"todos": TODOS})),
        "Updated todo list": played.calls(*(tasks if played.parallel else tasks[:1])),
        "Find the capital of Norway.": played.calls(("ls", {"path": "/atlas"})),
        "/atlas/norway.txt": played.words("Oslo it is."),
        "Find the capital of France.": played.words("Paris it is."),
        "Oslo it is.": played.calls(
            ("write_file", {"file_path": "/list.txt", "content": CAPITALS})
        ),
        "Paris it is.": played.calls(
            ("write_file", {"file_path": "/list.txt", "content": CAPITALS})
        ),
        "Updated file /list.txt": played.words(f"The list is wri{SPLIT}tten."),
        "Make it Rome.": played.calls(("read_file", {"file_path": "/list.txt"})),
        "Norway: Oslo": played.calls(
            (
                "edit_file",
                {
                    "file_path": "/list.txt",
                    "old_string": "France: Paris",
                    "new_string": "Italy: Rome",
                    "replace_all": False,
                },
            )
        ),
        "Successfully replaced": played.words("Rome it is."),
        "Look at the picture.": played.calls(("read_file", {"file_path": "/dot.png"})),
        "does not support image content": played.words("I can't see it."),
    }


def deep_agent(chat, folder, saver):
    return create_deep_agent(
        chat,
        system_prompt="You know the world.",
        middleware=[TodoListMiddleware()],
        backend=FilesystemBackend(root_dir=folder, virtual_mode=True),
        checkpointer=saver,
    )


@pytest.mark.parametrize("family", every_family())
def test_a_plan_sub_agents_and_files(family, tmp_path, own_cache, monkeypatch):
    monkeypatch.setenv(RUNS, str(tmp_path / "runs"))
    played = Played(family)
    drive = Drive(played, played.folder(tmp_path / "model", script(played)), tmp_path / "runs")
    files = tmp_path / "files"
    (files / "atlas").mkdir(parents=True)
    (files / "atlas" / "norway.txt").write_text("Oslo")
    (files / "dot.png").write_bytes(PICTURE)
    thread = {"configurable": {"thread_id": "1"}}
    for words, last in (
        ("List two capitals.", "The list is written."),
        ("Make it Rome.", "Rome it is."),
        ("Look at the picture.", "I can't see it."),
    ):
        with SqliteSaver.from_conn_string(str(tmp_path / "agent.db")) as saver:
            agent = deep_agent(drive.chat, files, saver)
            state = agent.invoke({"messages": [("user", words)]}, thread)
        assert state["messages"][-1].text == last
    assert [one["content"] for one in state["todos"]] == [one["content"] for one in TODOS]
    assert (files / "list.txt").read_text() == "Norway: Oslo\nItaly: Rome\n"
    assert len(texts(state["messages"], "tool")) == (7 if played.parallel else 6)
    drive.check(calls=12 if played.parallel else 11, continued=9)
