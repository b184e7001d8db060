"""llm-templates-fsspec: templates with a system prompt, tools, options and a schema."""

import json
from importlib.metadata import version

from driven_llm import called

WATCH = """
system: You watch $what, and you say so in very few words, since nobody has the time for more.
prompt: 'Look at $what: $input'
defaults:
  what: ships
options:
  max_tokens: 300
tools:
- llm_version
"""
LIST = """
system: You make lists of ships, and nothing else.
schema_object:
  type: object
  properties:
    names: {type: array, items: {type: string}}
    count: {type: integer}
  required: [names, count]
"""
MADE = {"names": ["Ada", "Eve"], "count": 2}


def test_a_template_with_tools(played, user_of):
    user = user_of(
        {
            "Look at ships: at dawn": played.calls(("llm_version", {})),
            version("llm"): played.words("Nothing moves."),
            "Look at ships: at dusk": played.words("Lights."),
            "Look at gulls: at noon": played.words("They sleep."),
            "And now?": played.words("Still nothing."),
        }
    )
    (user.folder / "watch.yaml").write_text(WATCH)
    ask = ("-m", "mlx-cached", "-t", "fsspec:watch.yaml")
    assert user.llm(*ask, "at dawn") == "Nothing moves."
    assert user.llm("-c", "And now?") == "Still nothing."
    assert user.llm(*ask, "at dusk") == "Lights."
    assert user.llm(*ask, "-p", "what", "gulls", "at noon") == "They sleep."
    entries = user.check(answers=5)
    assert called(entries[0]) == [("llm_version", {})]
    assert all(entry["options_json"] == {"max_tokens": 300} for entry in entries[:2])


def test_a_template_with_a_schema(played, user_of):
    other = {**MADE, "count": 1}
    user = user_of(
        {
            "Those in port.": played.words(json.dumps(MADE)),
            "At sea.": played.words(json.dumps(other)),
        }
    )
    (user.folder / "list.yaml").write_text(LIST)
    ask = ("-m", "mlx-cached", "-t", "fsspec:list.yaml")
    assert json.loads(user.llm(*ask, "Those in port.")) == MADE
    assert json.loads(user.llm(*ask, "At sea.", "--no-stream")) == other
    user.check(answers=2)
