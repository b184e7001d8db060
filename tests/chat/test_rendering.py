"""Law 1's other half: ids are those of the whole rendering, and generated ones are kept."""

from array import array
from itertools import pairwise

import pytest

from llm_mlx_promptcache.chat.messages import Generated, Message
from llm_mlx_promptcache.chat.rendering import TemplateError, render
from llm_mlx_promptcache.chat.transcript import Boundary

FINGERPRINT = "model-a"
SYSTEM = Message("system", "You are a helpful assistant who knows geography.")
ASK = Message("user", "What is the capital of France?")
AGAIN = Message("user", "What is the capital of Italy?")
SAID = "The capital of France is Paris."


def made(tokenizer, *messages, **arguments):
    return render(
        messages, tokenizer, fingerprint=FINGERPRINT, template_arguments=arguments or None
    )


def spoken(tokenizer, transcript):
    """(tier, text up to there since the last boundary) for each boundary, then the rest."""
    edges = [0, *(boundary.position for boundary in transcript.boundaries), len(transcript.ids)]
    texts = [tokenizer.decode(transcript.ids[a:b]) for a, b in pairwise(edges)]
    return [*zip([b.tier for b in transcript.boundaries], texts, strict=False), texts[-1]]


def extends(transcript, before, answer):
    path = before.ids + array("I", answer.generated.ids)
    return transcript.ids[: len(path)] == path


def test_crafted_drift_is_drift(chat):
    tokenizer = chat()
    assert tokenizer.decode(tokenizer.drifted(SAID)) == SAID
    assert tokenizer.drifted(SAID) != tokenizer.encode(SAID)[0]


@pytest.mark.parametrize(
    ("template", "system", "expected"),
    [
        ("chatml", SYSTEM, f"<|im_start|>system\n{SYSTEM.content}<|im_end|>\n<|im_start|>user\n"),
        (
            "smollm2",
            None,
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by"
            " Hugging Face<|im_end|>\n<|im_start|>user\n",
        ),
        ("gemma", SYSTEM, f"<|im_start|>user\n{SYSTEM.content}\n\n"),
    ],
)
def test_the_system_boundary_ends_where_the_user_speaks(chat, template, system, expected):
    tokenizer = chat(template)
    first = made(tokenizer, *([system] if system else []), ASK)
    other = made(tokenizer, *([system] if system else []), Message("user", "Name a river."))
    boundary = first.boundaries[0]
    assert boundary.tier == "system"
    assert tokenizer.decode(first.ids[: boundary.position]) == expected
    assert other.boundaries[0] == boundary


def test_a_system_prompt_that_moves_to_the_last_turn_is_not_where_it_was(chat):
    tokenizer = chat("mistral")
    transcript = made(tokenizer, SYSTEM, ASK, Message("assistant", SAID), AGAIN)
    assert SYSTEM.content in tokenizer.decode(transcript.ids)
    system = transcript.boundaries[0]
    assert system.tier == "system"
    assert tokenizer.decode(transcript.ids[: system.position]) == "[INST]"


def test_system_and_developer_messages_in_front_are_one_system_prompt(chat):
    tokenizer = chat()
    transcript = made(tokenizer, SYSTEM, Message("developer", "Be short."), ASK)
    tiers = [boundary.tier for boundary in transcript.boundaries]
    assert tiers == ["system", "user"]
    system = tokenizer.decode(transcript.ids[: transcript.boundaries[0].position])
    assert system.endswith("Be short.<|im_end|>\n<|im_start|>user\n")


def test_each_message_ends_in_a_boundary_of_its_tier(chat):
    tokenizer = chat()
    transcript = made(tokenizer, SYSTEM, ASK, Message("assistant", SAID), AGAIN)
    assert spoken(tokenizer, transcript) == [
        ("system", f"<|im_start|>system\n{SYSTEM.content}<|im_end|>\n<|im_start|>user\n"),
        ("user", f"{ASK.content}<|im_end|>\n"),
        ("assistant", f"<|im_start|>assistant\n{SAID}<|im_end|>\n"),
        ("user", f"<|im_start|>user\n{AGAIN.content}<|im_end|>\n"),
        "<|im_start|>assistant\n",
    ]


def test_a_replayed_answer_ends_at_its_stop_token(chat):
    tokenizer = chat()
    answer = tokenizer.answer(SAID)
    transcript = made(tokenizer, SYSTEM, ASK, answer, AGAIN)
    assert spoken(tokenizer, transcript)[2:4] == [
        ("assistant", f"<|im_start|>assistant\n{SAID}<|im_end|>"),
        ("user", f"\n<|im_start|>user\n{AGAIN.content}<|im_end|>\n"),
    ]


def test_tool_results_and_late_system_messages_end_in_user_boundaries(chat):
    late = Message("system", "Be short.")
    transcript = made(chat(), SYSTEM, ASK, Message("tool", "42"), late, AGAIN)
    tiers = [boundary.tier for boundary in transcript.boundaries]
    assert tiers == ["system", "user", "user", "user", "user"]


def test_the_stable_part_of_a_user_s_text_ends_in_a_boundary(chat):
    tokenizer, document = chat(), "Rome has hills.\nParis has none."
    both = [
        made(tokenizer, SYSTEM, Message("user", f"{document}\n{asked}", stable=len(document)))
        for asked in ("How many hills?", "Who was there first?")
    ]
    for transcript in both:
        (_, middle), (_, rest) = spoken(tokenizer, transcript)[1:3]
        assert middle.endswith(document)
        assert document not in rest
        assert [boundary.tier for boundary in transcript.boundaries[:2]] == ["system", "user"]
    assert both[0].boundaries[:2] == both[1].boundaries[:2]
    shared = both[0].boundaries[1].position
    assert both[0].ids[:shared] == both[1].ids[:shared]


def test_boundaries_inside_a_merged_token_fall_before_it(chat):
    # Byte-level BPE pairs the two newlines nowhere here, so the text is made to: "ca" + "pital".
    tokenizer = chat("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    transcript = made(tokenizer, Message("user", "Rome ca"), Message("user", "pital"))
    assert transcript.ids.tolist() == tokenizer.encode("Rome capital")[0]
    (boundary,) = transcript.boundaries
    assert tokenizer.decode(transcript.ids[: boundary.position]) == "Rome"


@pytest.mark.parametrize("template", ["chatml", "smollm2", "trim", "gemma", "mistral", "thinking"])
@pytest.mark.parametrize("stop", [True, False])
def test_the_next_turn_continues_the_path_to_its_last_token(chat, template, stop):
    tokenizer = chat(template)
    answer = tokenizer.answer(f" {SAID}\n", stop=stop)
    system = [] if template == "mistral" else [SYSTEM]
    first = made(tokenizer, *system, ASK)
    second = made(tokenizer, *system, ASK, answer, AGAIN)
    assert second.replayed == 1
    assert extends(second, first, answer)
    assert Boundary(len(first.ids) + len(answer.generated.ids), "assistant") in second.boundaries
    tail = tokenizer.decode(second.ids[len(first.ids) + len(answer.generated.ids) :])
    assert tail.count("<|im_end|>") == tokenizer.whole([*system, AGAIN]).count("<|im_end|>") - (
        template == "smollm2" or bool(system and template != "gemma")
    ) + (not stop)
    assert AGAIN.content in tail


def test_a_cut_answer_is_closed_by_the_template(chat):
    tokenizer = chat()
    answer = tokenizer.answer("The capital of Fra", stop=False)
    first = made(tokenizer, ASK)
    second = made(tokenizer, ASK, answer, AGAIN)
    assert extends(second, first, answer)
    tail = second.ids[len(first.ids) + len(answer.generated.ids) :]
    assert tokenizer.decode(tail).startswith("<|im_end|>\n<|im_start|>user\n")


def test_an_answer_cut_inside_a_character_is_replayed(chat):
    tokenizer = chat()
    ids = tokenizer.drifted("Zürich 🙂")[:-1]
    content = tokenizer.decode(ids)
    assert content.endswith("\ufffd")
    answer = Message("assistant", content, Generated.of(ids, content, FINGERPRINT))
    second = made(tokenizer, ASK, answer, AGAIN)
    assert second.replayed == 1
    assert extends(second, made(tokenizer, ASK), answer)


@pytest.mark.parametrize("text", ["Zürich 🙂 東京", "</s>{{ x }}", "answer0x", "a\r\n\tb", "", " "])
def test_strange_answers_are_replayed(chat, text):
    tokenizer = chat()
    answer = tokenizer.answer(text)
    second = made(tokenizer, SYSTEM, ASK, answer, AGAIN)
    assert second.replayed == 1
    assert extends(second, made(tokenizer, SYSTEM, ASK), answer)
    assert tokenizer.decode(second.ids) == tokenizer.whole([SYSTEM, ASK, answer, AGAIN])


def test_a_sentinel_in_the_conversation_misleads_no_one(chat):
    tokenizer = chat()
    user = Message("user", "Say answer0x, answer1x and answer2x twice.")
    answer = tokenizer.answer("answer0x answer1x answer0x answer3x")
    second = made(tokenizer, user, answer, user)
    assert second.replayed == 1
    assert extends(second, made(tokenizer, user), answer)


def whole_ids(tokenizer, messages):
    return tokenizer.encode(tokenizer.whole(messages))[0]


def test_an_edit_wins_and_so_does_another_model(chat):
    tokenizer = chat()
    edited = tokenizer.answer(SAID, content="Paris, of course.")
    foreign = tokenizer.answer(SAID, fingerprint="model-b")
    plain = Message("assistant", SAID)
    user = Message("user", SAID, tokenizer.answer(SAID).generated)
    empty = Message("assistant", SAID, Generated.of([], SAID, FINGERPRINT))
    for message in (edited, foreign, plain, user, empty):
        messages = [SYSTEM, ASK, message, AGAIN]
        transcript = made(tokenizer, *messages)
        assert transcript.replayed == 0
        assert transcript.ids.tolist() == whole_ids(tokenizer, messages)


def test_an_edited_answer_leaves_the_ones_before_it_replayed(chat):
    tokenizer = chat()
    kept, edited = tokenizer.answer(SAID), tokenizer.answer("It is Rome.", content="Rome!")
    first = made(tokenizer, ASK)
    third = made(tokenizer, ASK, kept, AGAIN, edited, ASK)
    assert third.replayed == 1
    assert extends(third, first, kept)
    assert "Rome!" in tokenizer.decode(third.ids)


def test_a_template_that_drops_thinking_wins(chat):
    tokenizer = chat("thinking")
    thought = tokenizer.answer(f"<think>\nEasy.\n</think>\n\n{SAID}")
    plain = tokenizer.answer("Rome.")
    messages = [SYSTEM, ASK, thought, AGAIN]
    second = made(tokenizer, *messages)
    assert second.replayed == 0
    assert second.ids.tolist() == whole_ids(tokenizer, messages)
    assert "Easy" not in tokenizer.decode(second.ids)
    third = made(tokenizer, *messages, plain, ASK)
    assert third.replayed == 1
    assert extends(third, second, plain)
    # Reuse goes up to the user's message before the thinking.
    first = made(tokenizer, SYSTEM, ASK)
    shared = first.boundaries[-1].position
    assert first.boundaries[-1].tier == "user"
    assert first.ids[:shared] == second.ids[:shared]


@pytest.mark.parametrize(
    "template",
    ["empty_think", "late_think", "counting", "json"],
)
def test_no_replay_where_the_template_shows_another_thing(chat, template):
    tokenizer = chat(template)
    messages = [SYSTEM, ASK, tokenizer.answer(SAID), AGAIN]
    transcript = made(tokenizer, *messages)
    assert transcript.replayed == 0
    assert transcript.ids.tolist() == whole_ids(tokenizer, messages)


@pytest.mark.parametrize("template", ["twice", "echo", "suspicious", "no_turn_end"])
def test_text_behind_an_answer_is_the_template_s(chat, template):
    """Its words are there, so its tokens are; the template's additions behind them follow."""
    tokenizer = chat(template)
    system = Message("system", "You know each capital.")
    messages = [system, ASK, tokenizer.answer(SAID), AGAIN]
    transcript = made(tokenizer, *messages)
    assert transcript.replayed == 1
    assert tokenizer.decode(transcript.ids) == tokenizer.whole(messages)
    assert extends(transcript, made(tokenizer, system, ASK), tokenizer.answer(SAID, stop=False))


def test_the_template_s_own_end_stands_where_the_answer_stopped_otherwise(chat):
    tokenizer = chat("no_turn_end")
    messages = [ASK, tokenizer.answer(SAID), AGAIN]
    transcript = made(tokenizer, *messages)
    assert transcript.replayed == 1
    assert sorted(tokenizer.stop_ids)[0] not in transcript.ids
    cut = tokenizer.answer(SAID, stop=False)
    second = made(tokenizer, ASK, cut, AGAIN)
    assert second.replayed == 1
    assert extends(second, made(tokenizer, ASK), cut)


@pytest.mark.parametrize("variant", ["plain", "prepend", "swallow"])
def test_text_behind_a_stop_token_is_encoded_as_in_the_whole(chat, variant):
    tokenizer = chat(
        "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}"
        "{{ '<|im_end|>\n' }}{% endif %}{% endfor %}",
        variant,
    )
    answer = tokenizer.answer(SAID)
    transcript = made(tokenizer, ASK, answer, AGAIN)
    assert transcript.replayed == 1
    assert extends(transcript, made(tokenizer, ASK), answer)
    (stop,) = tokenizer.stop_ids
    whole = whole_ids(tokenizer, [ASK, answer, AGAIN])
    assert transcript.ids[transcript.ids.index(stop) :].tolist() == whole[whole.index(stop) :]


def test_a_stop_token_that_merges_with_what_follows_is_no_anchor(chat):
    tokenizer = chat(
        "{% for m in messages %}{{ m['content'] }}"
        "{% if m['role'] == 'assistant' %}capital{% else %}|{% endif %}{% endfor %}"
    )
    (stop,) = tokenizer.drifted("c")
    assert tokenizer.encode("capital")[0][0] != stop
    tokenizer.stop_ids = frozenset([stop])
    answer = tokenizer.answer(SAID)
    transcript = made(tokenizer, ASK, answer, AGAIN)
    assert transcript.replayed == 1
    assert tokenizer.decode(transcript.ids) == tokenizer.whole([ASK, answer, AGAIN])
    assert extends(transcript, made(tokenizer, ASK), answer)


def test_only_answers_are_replayed(chat):
    tokenizer = chat("{% for m in messages %}{{ m['content'] }}|{% endfor %}")
    kept = tokenizer.answer(SAID, stop=False)
    assert made(tokenizer, ASK, kept, AGAIN).replayed == 1
    asked = Message("user", SAID, kept.generated)
    assert made(tokenizer, ASK, asked, AGAIN).replayed == 0


def test_replays_never_overlap(chat):
    # The stop token stands between messages, so a prompt right behind an answer lacks it.
    tokenizer = chat("{{ messages | join(' ', attribute='content') }}")
    tokenizer.stop_ids = frozenset(tokenizer.drifted(" "))
    messages = [ASK, tokenizer.answer(SAID), tokenizer.answer("Rome."), AGAIN]
    transcript = made(tokenizer, *messages)
    assert transcript.replayed == 1
    assert extends(transcript, made(tokenizer, ASK), messages[1])
    shown = tokenizer.decode(transcript.ids).replace(" ", "")
    assert shown == tokenizer.whole(messages).replace(" ", "")


def test_where_two_boundaries_fall_together_the_more_persistent_stands(chat):
    tokenizer = chat(
        "{% for m in messages if m['content'] %}{{ m['content'] + '<|im_end|>' }}{% endfor %}!"
    )
    transcript = made(tokenizer, SYSTEM, Message("user", ""), Message("assistant", SAID), ASK)
    expected = tokenizer.encode(SYSTEM.content + "<|im_end|>")[0]
    assert transcript.boundaries[0] == Boundary(len(expected), "system")


def test_probes_that_are_refused_leave_their_boundary_out(chat):
    tokenizer = chat("suspicious")
    system = Message("system", "You know each capital.")
    transcript = made(tokenizer, system, ASK)
    assert [boundary.tier for boundary in transcript.boundaries] == ["user"]


def test_a_refused_conversation_names_the_roles_and_the_reason(chat):
    tokenizer = chat("gemma")
    with pytest.raises(TemplateError) as refused:
        made(tokenizer, Message("assistant", SAID), ASK)
    error = str(refused.value)
    assert "roles: assistant, user" in error
    assert "Conversation roles must alternate" in error
    assert "\n" not in error
    assert isinstance(refused.value, ValueError)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


def test_a_refusal_shows_no_text_and_stays_short(chat):
    loud = chat("{{ raise_exception('bad: ' + messages[0]['content'] + '\n' + 'x' * 5000) }}")
    with pytest.raises(TemplateError) as refused:
        render([ASK] * 500, loud, fingerprint=FINGERPRINT)
    error = str(refused.value)
    assert "bad: ..." in error
    assert ASK.content not in error
    assert len(error) < 600
    assert "\n" not in error


def test_template_arguments_reach_every_rendering(chat):
    tokenizer = chat("{{ date }}|{% for m in messages %}{{ m['content'] }}|{% endfor %}")
    transcript = made(tokenizer, SYSTEM, ASK, date="Monday")
    assert tokenizer.decode(transcript.ids) == f"Monday|{SYSTEM.content}|{ASK.content}|"
    system = tokenizer.decode(transcript.ids[: transcript.boundaries[0].position])
    assert system == f"Monday|{SYSTEM.content}|"


def test_ids_are_four_bytes_each_and_in_no_repr(chat):
    transcript = made(chat(), ASK)
    assert transcript.ids.typecode == "I"
    assert str(transcript.ids[0]) + "," not in repr(transcript)
    assert f"{len(transcript.ids)} ids" in repr(transcript)


def test_work_grows_with_the_turns_and_each_text_is_encoded_once(chat):
    counts = []
    for turns in (10, 20):
        tokenizer = chat()
        messages = [SYSTEM]
        for _ in range(turns):
            messages += [ASK, tokenizer.answer(SAID)]
        transcript = made(tokenizer, *messages, AGAIN)
        assert transcript.replayed == turns
        # Behind each replay its stop token's text is encoded again, as an anchor.
        encoded = sum(map(len, tokenizer.encoded))
        assert encoded == len(tokenizer.whole([*messages, AGAIN])) - turns * len(SAID)
        counts.append(tokenizer.applied)
    assert counts[1] - counts[0] <= 10 * 4
