"""llm-tools-exa without its key and without a net: a tool that fails is told, and gone on from."""

from driven_llm import called, results

SEARCH = (
    "ExaTools_web_search",
    {"query": 'ships & "sails"', "num_results": 2, "include_domains": ["a.example", "b.example"]},
)
NOWHERE = "http://127.0.0.1:1"


def test_a_search_that_fails(played, user_of, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", NOWHERE)
    user = user_of(
        {
            "Search for ships.": played.calls(SEARCH),
            "Error:": played.words("There is no net."),
            "Then answer it.": played.calls(("ExaTools_get_answer", {"query": "ships?"})),
        }
    )
    ask = ("-m", "mlx-cached", "-T", "Exa")
    assert user.llm(*ask, "Search for ships.") == "There is no net."
    # The plugin's toolbox has one name in its class and another in llm's list of tools.
    assert user.llm("-c", "Then answer it.", status=1) == ""
    assert user.told.pop().startswith("Error: Tool(s) ExaTools not found.")
    assert user.llm("-c", "-T", "Exa", "Then answer it.") == "There is no net."
    entries = user.check(answers=4)
    assert [called(entry) for entry in entries][::2] == [
        [SEARCH],
        [("ExaTools_get_answer", {"query": "ships?"})],
    ]
    assert all(result.startswith("Error: ") for result in results(entries))
