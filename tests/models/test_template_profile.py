"""A template's profile is stored as plain data, and nothing else is read as one."""

import json
import random

import chatlint.render
import form_cases
import pytest

from llm_mlx_promptcache.chat.form_learning import learned_form
from llm_mlx_promptcache.chat.form_probes import Probe
from llm_mlx_promptcache.chat.forms import NoForm
from llm_mlx_promptcache.chat.mends import Mend
from llm_mlx_promptcache.chat.reasoning_learning import shown_reasoning
from llm_mlx_promptcache.chat.template import ChatTemplate
from llm_mlx_promptcache.chat.template_work import TooMuchWork
from llm_mlx_promptcache.models.facts import ModelFacts
from llm_mlx_promptcache.models.probes import find_prompt_form
from llm_mlx_promptcache.models.template_profile import TemplateProfile, learn_profile, learner

SWITCH = "enable_thinking"
SAMPLE = 24


class Counted:
    """A template as the product renders it, and a count of its renderings."""

    def __init__(self, template):
        self.template, self.count = ChatTemplate(template.source, template.name), 0

    def __call__(self, messages, *, add_generation_prompt, **arguments):
        self.count += 1
        return self.template.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            **{"bos_token": "<s>", "eos_token": "</s>", **arguments},
        )


def through_json(profile):
    return TemplateProfile.from_json(json.loads(json.dumps(profile.to_json())))


@pytest.fixture(scope="module")
def templates():
    return chatlint.render.load_all()


@pytest.fixture(scope="module")
def learned(templates):
    """Profiles of a sample, by name."""
    chosen = templates[7::SAMPLE]
    return {one.name: learn_profile(Counted(one), SWITCH) for one in chosen}


def test_a_profile_is_what_each_of_its_learners_finds_alone(templates):
    for template in templates[7 :: 4 * SAMPLE]:
        profile = learn_profile(Counted(template), SWITCH)
        try:
            form = learned_form(Probe(Counted(template)))
        except NoForm:
            form = None
        assert profile.form == form
        assert profile.reasoning == shown_reasoning(Probe(Counted(template)), SWITCH)
        assert profile.prompt == find_prompt_form(Counted(template))


def test_a_profile_is_the_same_behind_json_and_fits_among_the_facts(learned, tmp_path):
    facts = ModelFacts(tmp_path / "facts.json")
    for number, profile in enumerate(learned.values()):
        assert through_json(profile) == profile
        facts.put(f"{number:064x}", "template", profile.to_json())
    late = ModelFacts(tmp_path / "facts.json")
    kinds = {(p.form is None, p.reasoning is None, not p.prompt.mends) for p in learned.values()}
    assert len(kinds) > 3
    for number, profile in enumerate(learned.values()):
        assert TemplateProfile.from_json(late.get(f"{number:064x}", "template")) == profile


@pytest.mark.soak
def test_the_profiles_of_all_real_templates_are_the_same_behind_json_and_fit(templates, tmp_path):
    facts = ModelFacts(tmp_path / "facts.json")
    for template in templates:
        profile = learn_profile(Counted(template), SWITCH)
        assert through_json(profile) == profile, template.name
        facts.put("a" * 64, "template", profile.to_json())


def test_no_conversation_is_rendered_twice(templates):
    for template in templates[3::SAMPLE]:
        apply, seen = Counted(template), []

        def asked(messages, apply=apply, seen=seen, **arguments):
            seen.append(json.dumps([messages, arguments], sort_keys=True))
            return apply(messages, **arguments)

        learn_profile(asked, SWITCH)
        # Probes of the prompt ask with tools of their own.
        assert len(set(seen)) == len(seen), template.name


def test_a_template_without_end_is_asked_for_no_more():
    count = 0

    def endless(messages, **arguments):
        nonlocal count
        count += 1
        raise TooMuchWork("stopped")

    profile = learn_profile(endless, SWITCH)
    assert profile == TemplateProfile()
    assert count == 3  # for its form, for its prompt, and for the generic prompt in its place


def pieces(data, path=()):
    """Every place in JSON data."""
    yield path
    items = data.items() if isinstance(data, dict) else ()
    for key, value in enumerate(data) if isinstance(data, list) else items:
        yield from pieces(value, (*path, key))


def with_other(data, path, other):
    """A copy with something else at a place; `other` None takes it away."""
    copy = json.loads(json.dumps(data))
    if not path:
        return other
    at = copy
    for key in path[:-1]:
        at = at[key]
    if other is None:
        del at[path[-1]]
    else:
        at[path[-1]] = other
    return copy


ODD = [None, 7, 1.5, True, "", [], {}, [None], {"is": "name"}, {"is": []}, {"x": 1}, ["a"] * 99]


def test_what_is_no_profile_is_none_or_one_that_reads_on(learned):
    """Whatever stands at any place: no error, and a form that is taken reads without one."""
    [profile] = [p for p in learned.values() if p.form is not None and p.form.tags is not None][:1]
    data = profile.to_json()
    taken = 0
    for path in pieces(data):
        for odd in ODD:
            made = TemplateProfile.from_json(with_other(data, path, odd))
            if made is not None and made.form is not None:
                taken += 1
                form_cases.read(made.form, "<tool_call>x(a=1)</tool_call>", form_cases.TOOLS)
    assert 0 < taken < len(ODD) * len(list(pieces(data))) / 4
    for odd in ODD:
        assert TemplateProfile.from_json(odd) is None


def test_a_form_that_lacks_what_reading_needs_is_learned_again(learned):
    [profile] = [p for p in learned.values() if p.form is not None and p.form.tags is not None][:1]
    data = profile.to_json()
    holes = [
        at for at, piece in enumerate(data["shown"]["form"]["call"]) if isinstance(piece, dict)
    ]
    lacking = [with_other(data, ("shown", "form", "call", at), "x") for at in holes]
    lacking.append(with_other(data, ("shown", "form", "tags"), None))
    lacking.append(with_other(data, ("shown", "form", "layout"), {"is": "object"}))
    lacking.append(with_other(data, ("shown", "form", "native"), False))
    lacking.append(with_other(data, ("shown", "form", "special"), [["</s>", 2]]))
    lacking.append({**data, "more": 1})
    assert [TemplateProfile.from_json(one) for one in lacking] == [None] * len(lacking)


def test_deep_data_is_no_profile():
    deep = json.loads("[" * 900 + "]" * 900)
    data = TemplateProfile().to_json()
    for path in (("shown", "form"), ("shown", "marks"), ("prompt",), ("generic",)):
        assert TemplateProfile.from_json(with_other(data, path, deep)) is None


def test_random_damage_raises_nothing(learned):
    seed = random.randrange(1 << 30)
    print("seed", seed)
    chosen = random.Random(seed)
    known = [profile.to_json() for profile in learned.values()]
    for _ in range(400):
        data = chosen.choice(known)
        for _ in range(chosen.randrange(1, 4)):
            path = chosen.choice(list(pieces(data)))
            data = with_other(data, path, chosen.choice(ODD))
        TemplateProfile.from_json(data)


def test_another_learner_asks_again(monkeypatch, tmp_path):
    """Its name is a digest of the sources."""
    from llm_mlx_promptcache.chat import forms

    (tmp_path / "forms.py").write_text("changed")
    before = learner()
    assert before == learner()
    with monkeypatch.context() as patched:
        patched.setattr(forms, "__file__", str(tmp_path / "forms.py"))
        assert learner.__wrapped__() != before
    assert learner.__wrapped__() == before


def test_mends_stand_in_the_profile():
    source = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    profile = learn_profile(Counted(chatlint.render.Template("t", source)), SWITCH)
    assert Mend.SYSTEM_IN_USER in {mend for one in profile.prompt.mends.values() for mend in one}
