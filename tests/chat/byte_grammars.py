"""The texts that a grammar takes, by the grammar engine itself with a token a byte."""

from llguidance import LLMatcher, LLTokenizer

BYTES = LLTokenizer("byte")


def verdict(rules, text):
    """The word "whole" if `rules` take `text`, "begun" if they take it as a start, else "no"."""
    matcher = LLMatcher(BYTES, rules, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = BYTES.tokenize_str(text)
    if matcher.try_consume_tokens(tokens) < len(tokens):
        return "no"
    return "whole" if matcher.is_accepting() else "begun"


def takes(grammar, text):
    """The verdict of a `Grammar`."""
    return verdict(grammar.text, text)
