"""Other plugins of llm, driven in an environment that has them over this one's.

`make llm-plugins` runs these; each installs one plugin, outside the tree, and takes a minute.
What is done with a plugin is in llm_plugins/.
"""

from pathlib import Path

import pytest
from package_environments import Package, drive, installed

pytestmark = pytest.mark.soak

PLUGINS = (
    Package("llm-tools-sqlite", ">=0.1,<0.2"),
    Package("llm-tools-quickjs", ">=0.1,<0.2"),
    Package("llm-tools-simpleeval", ">=0.1.1,<0.2"),
    Package("llm-tools-exa", ">=0.5,<0.6"),
    Package("llm-fragments-symbex", ">=0.1,<0.2"),
    Package("llm-fragments-dir", ">=0.1,<0.2"),
    Package("llm-templates-fsspec", ">=0.1.1,<0.2"),
    Package("llm-jq", ">=0.1.1,<0.2"),
    Package("llm-cmd", "==0.2a0"),
    Package("datasette-enrichments-llm", "==0.2a1", ("Passing SelectField choices as tuples",)),
    Package("datasette-extract", "==0.3a0"),
    Package("llm-chat-completions-server", "==0.1a0"),
    Package("llm-coding-agent", "==0.1a0"),
)


@pytest.mark.parametrize("plugin", PLUGINS, ids=[plugin.name for plugin in PLUGINS])
def test_a_plugin_beside_ours(plugin, tmp_path):
    python = installed(plugin, tmp_path / "env")
    drive(plugin, python, Path(__file__).parent / "llm_plugins", tmp_path / "tests")
