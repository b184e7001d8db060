"""llm-tools-quickjs: programs as arguments, in a toolbox that remembers and in a plain tool."""

from driven_llm import called, results

DEFINE = 'var counter = 40;\nfunction next() { return ++counter; } // "up"\nnext();'
AGAIN = "if (counter > 0 && true) { next() }"
PROGRAM = "function execute() {\n  const all = [1, 2, 3].map(x => x * 7);\n  return all[1];\n}"


def test_programs(played, user_of):
    user = user_of(
        {
            "Count on.": played.calls(("QuickJS_execute_javascript", {"javascript": DEFINE})),
            "41": played.calls(("QuickJS_execute_javascript", {"javascript": AGAIN})),
            "42": played.words("It counts."),
            "Twice seven?": played.calls(("quickjs", {"javascript": PROGRAM})),
            "14": played.words("Fourteen."),
            "Break it.": played.calls(("quickjs", {"javascript": "function execute( {"})),
            "SyntaxError": played.words("That was no program."),
        }
    )
    tools = ("-T", "QuickJS", "-T", "quickjs")
    assert user.llm("-m", "mlx-cached", *tools, "Count on.") == "It counts."
    assert user.llm("-c", "Twice seven?") == "Fourteen."
    assert user.llm("-c", "Break it.") == "That was no program."
    entries = user.check(answers=7)
    programs = [arguments["javascript"] for entry in entries for _, arguments in called(entry)]
    assert programs == [DEFINE, AGAIN, PROGRAM, "function execute( {"]
    assert results(entries)[:3] == ["41", "42", "14"]
