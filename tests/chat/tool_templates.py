"""Chat templates with tools, thinking and dates, that behave like the families people run."""

_PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
_LAST_QUERY = """\
{% set ns = namespace(last=0) %}
{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{% endfor %}
"""
_TOOLS = """\
{% if tools %}{{ '<|im_start|>system\\n' }}
{% if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif %}
{{ '# Tools' }}{% for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor %}{{ '<|im_end|>\\n' }}
{% elif messages[0].role == 'system' %}
{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{% endif %}
"""
# Results stand inside user turns, neighbours in one of them.
_RESULT = """\
{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
{{ '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
"""
_JSON_CALLS = """\
{% for call in m.tool_calls or [] %}
{% if (loop.first and m.content) or not loop.first %}{{ '\\n' }}{% endif %}
{{ '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{ (call.function.arguments | tojson) + '}\\n</tool_call>' }}{% endfor %}
"""
_XML_CALLS = """\
{% for call in m.tool_calls or [] %}{{ '\\n<function=' + call.function.name + '>\\n' }}
{% for name, value in call.function.arguments | items %}
{{ '<parameter=' + name + '>\\n' + (value if value is string else value | tojson) }}
{{ '\\n</parameter>\\n' }}{% endfor %}{{ '</function>' }}{% endfor %}
"""


def _chatml(answer, calls, prompt=_PROMPT):
    """System and tools first, results in user turns; `answer` writes an answer's text."""
    return (
        f"{_LAST_QUERY}{_TOOLS}"
        "{% for m in messages %}{% if m.role == 'tool' %}\n"
        f"{_RESULT}"
        "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant\\n' }}\n"
        f"{answer}{calls}"
        "{{ '<|im_end|>\\n' }}\n"
        "{% elif m.role != 'system' or not loop.first %}\n"
        "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endif %}"
        f"{{% endfor %}}{prompt}"
    )


_CONTENT = "{{ m.content }}"
_THINKING = """\
{% if loop.index0 > ns.last and (m.reasoning_content or loop.last) %}
{{ '<think>\\n' + (m.reasoning_content or '') | trim + '\\n</think>\\n\\n' }}{% endif %}
{{ m.content }}
"""
_ALWAYS_THINKING = """\
{% if m.reasoning_content %}{{ '<think>\\n' + m.reasoning_content | trim + '\\n</think>\\n\\n' }}
{% endif %}{{ m.content }}
"""
_OFF = """\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}
{% endif %}{% endif %}
"""
_ON = _OFF.replace("{% endif %}{% endif %}", "{% else %}{{ '<think>\\n' }}{% endif %}{% endif %}")
_EMPTY_KEPT = "{{ '<think>\\n\\n</think>\\n\\n' + m.content }}"
_DATE = """\
{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}
{{ '<|im_start|>system\\nToday: ' + date_string + '\\n' }}
{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}{{ '<|im_end|>\\n' }}
{% for m in messages %}{% if m.role != 'system' %}
{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}
"""
# Mistral: tools in front of the last question, ids of nine characters, answers end a turn.
_MISTRAL = """\
{% set ns = namespace(last=0) %}
{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{% for call in m.tool_calls or [] %}{% if call.id | length != 9 %}
{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}
{% endfor %}{% endfor %}
{% for m in messages %}{% if m.role == 'user' %}
{% if loop.index0 == ns.last and tools %}{{ '[TOOLS]' + (tools | tojson) + '[/TOOLS]' }}{% endif %}
{{ '[INST]' + m.content + '[/INST]' }}{% elif m.role == 'tool' %}
{{ '[RESULT]{"content": ' + m.content + ', "id": "' + m.tool_call_id + '"}[/RESULT]' }}
{% elif m.tool_calls %}{{ '[CALLS][' }}{% for call in m.tool_calls %}
{{ (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' }}
{{ ']<|im_end|>' if loop.last else ', ' }}{% endfor %}
{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{% endfor %}
"""
# Arguments as the text that OpenAI's clients send, copied as it stands.
_TEXT_ARGUMENTS = """\
{% for call in m.tool_calls or [] %}
{{ '<tool_call>' + call.function.name + ' ' + call.function.arguments }}
{{ '</tool_call>' }}{% endfor %}
"""

TEMPLATES = {
    "tool_json": _chatml(_CONTENT, _JSON_CALLS),
    "tool_xml": _chatml(_CONTENT, _XML_CALLS),
    "tool_text_arguments": _chatml(_CONTENT, _TEXT_ARGUMENTS),
    "tool_mistral": _MISTRAL,
    "tool_hidden": _chatml(_CONTENT, ""),
    # Thinking is kept while tools are called, and dropped behind the next question.
    "think_loop": _chatml(_THINKING, _JSON_CALLS),
    "think_loop_off": _chatml(_THINKING, _JSON_CALLS, _OFF),
    "think_loop_on": _chatml(_THINKING, _JSON_CALLS, _ON),
    "think_kept": _chatml(_ALWAYS_THINKING, _JSON_CALLS),
    "empty_think_kept": _chatml(_EMPTY_KEPT, _JSON_CALLS, _OFF),
    "dated": _DATE + _PROMPT,
}
# Lines above are for reading: what a template writes stands in quotes.
TEMPLATES = {name: template.replace("\n", "") for name, template in TEMPLATES.items()}
