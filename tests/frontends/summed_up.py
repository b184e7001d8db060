"""Questions that tests of summaries ask agents, and readers of the answers."""

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import HumanMessage

from langchain_mlx_cached import PrefixKeepingSummarization

SYSTEM = "You keep a lighthouse, and write down which ships you see. " * 8
SUMMARY = "Ships were seen."
QUESTION = "Write down what is needed."
CALL = '<tool_call>\n{"name": "tide", "arguments": {"place": "Dover"}}\n</tool_call>'
ANSWERS = {"": "Aye.", QUESTION: SUMMARY, "Ask the tide": CALL, "high at six": "At six."}


def tide(place: str) -> str:
    """Tell when the tide is high."""
    return f"At {place} it is high at six."


class Calls(BaseCallbackHandler):
    """The answers of all that models are asked, the summaries among them."""

    def __init__(self):
        self.answers = []

    def on_llm_end(self, response, **given):
        self.answers.append(response.generations[0][0].message)

    @property
    def summaries(self):
        return [one for one in self.answers if one.text.startswith(SUMMARY[:4])]


def read(answer):
    return answer.usage_metadata["input_token_details"]["cache_read"]


def prefilled(answer):
    return answer.usage_metadata["input_tokens"] - read(answer)


def shortened(**given):
    return PrefixKeepingSummarization(
        **{"trigger": ("messages", 9), "keep": ("messages", 3), "summary_prompt": QUESTION, **given}
    )


def asked(number):
    return HumanMessage(f"Question {number}: which ships, from where, and how many? " * 3)


def talk(agent, questions, config=None):
    """A conversation, question by question; its messages, and all that the models answered."""
    calls, messages = Calls(), []
    for question in questions:
        given = {"messages": [*messages, question]}
        messages = agent.invoke(given, {"callbacks": [calls], **(config or {})})["messages"]
    return messages, calls


def alone(chat, question=QUESTION):
    """Tokens of a question that is a whole conversation."""
    return chat.get_num_tokens_from_messages([HumanMessage(question)])
