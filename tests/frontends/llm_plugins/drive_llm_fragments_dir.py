"""llm-fragments-dir: a fragment for each file of a folder, in the prompt and as system prompt."""


def test_files_as_fragments(played, user_of):
    user = user_of(
        {
            "What lies in port?": played.words("Two ships."),
            "Which one is older?": played.words("The Ada."),
            "Who sails her?": played.words("Nobody does."),
        }
    )
    port = user.folder / "port"
    (port / "inner").mkdir(parents=True)
    for name in ("ada.md", "eve.txt", "inner/log.md"):
        (port / name).write_text(f"# {name}\n" + "The sails are grey, the masts are two.\n" * 9)
    (port / "picture.bin").write_bytes(b"\xff\xfe\x00")
    ask = ("-m", "mlx-cached")
    for kind, first, other in (
        ("-f", "What lies in port?", "Which one is older?"),
        ("--sf", "Which one is older?", "What lies in port?"),
    ):
        user.llm(*ask, kind, "dir:port", first)
        user.llm(*ask, kind, "dir:port", other)
    assert user.llm("-c", "Who sails her?") == "Nobody does."
    entries = user.check(answers=5)
    prefilled = [entry["details"]["prefilled"] for entry in entries]
    assert min(prefilled[0], prefilled[2]) > 200
    assert max(prefilled[1], *prefilled[3:]) < 30
