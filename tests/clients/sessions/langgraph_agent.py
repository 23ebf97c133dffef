"""A session of LangChain's agent with tools, streamed. `OPENAI_BASE_URL` names the proxy."""

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.prebuilt import create_react_agent

FACTS = "The archive has forty rooms, and each of them has a list of its own. " * 80


@tool
def look(place: str) -> str:
    """Look at a place."""
    return f"There is a list at {place}."


@tool
def count(things: str) -> str:
    """Count things."""
    return f"There are 42 {things}."


agent = create_react_agent(ChatOpenAI(model="gpt-4o", streaming=True), [look, count], prompt=f"You find things. {FACTS}")
question = {"messages": [("user", "How many boxes are there? {look:shelf count:boxes} {count:rooms}")]}
for _ in agent.stream(question):
    pass
second = {"messages": [*agent.invoke(question)["messages"], ("user", "And how many rooms? Thank you.")]}
agent.invoke(second)
