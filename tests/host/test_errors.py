"""Errors survive the way between two processes as far as a caller can tell."""

import json

import pytest

from llm_mlx_promptcache.chat.template_work import TemplateError
from llm_mlx_promptcache.host.errors import HostStopped, error_from_json, error_to_json
from llm_mlx_promptcache.models import errors


def through(error):
    return error_from_json(json.loads(json.dumps(error_to_json(error))))


@pytest.mark.parametrize(
    "error",
    [
        *(kind("no model 'x'") for kind in vars(errors).values() if isinstance(kind, type)),
        HostStopped("it was stopped"),
        ValueError("top_p is 3"),
        RuntimeError("the engine is closed"),
        MemoryError(),
        OSError(28, "No space left on device", "/x"),
        FileNotFoundError(2, "No such file or directory", "/x"),
        PermissionError("/x"),
    ],
)
def test_law_15_a_known_error_has_its_class_and_its_text(error):
    told = through(error)
    assert (type(told), str(told)) == (type(error), str(error))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TemplateError("a template does too much"), ValueError),
        (UnicodeEncodeError("utf-8", "x", 0, 1, "surrogates"), ValueError),
        (KeyError("x"), LookupError),
        (SystemExit("a model's own code"), RuntimeError),
    ],
)
def test_law_15_any_other_has_the_nearest_class_and_its_text(error, kind):
    told = through(error)
    assert (type(told), str(told)) == (kind, str(error))


@pytest.mark.parametrize(
    "data", [None, [], "x", {}, {"kind": ["x"], "text": 1}, {"kind": "SystemExit", "text": ""}]
)
def test_anything_else_is_a_plain_error(data):
    assert type(error_from_json(data)) is RuntimeError
