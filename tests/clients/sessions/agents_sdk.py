"""A session of the OpenAI Agents SDK: parallel tools, an agent as a tool, and a handoff. `OPENAI_BASE_URL` names the proxy."""

import asyncio
import sys

from agents import Agent, Runner, function_tool, set_default_openai_api, set_tracing_disabled

FACTS = "The archive has forty rooms, and each of them has a list of its own. " * 80  # long enough for the prompt cache


@function_tool
def look(place: str) -> str:
    """Look at a place."""
    return f"There is a list at {place}."


@function_tool
def count(things: str) -> str:
    """Count things."""
    return f"There are 42 {things}."


@function_tool
def note(text: str) -> str:
    """Write a note."""
    return f"Noted: {text}"


def main() -> None:
    set_tracing_disabled(disabled=True)
    set_default_openai_api(sys.argv[1])
    helper = Agent(name="Helper", instructions="You check lists.", model="gpt-4.1-mini")
    writer = Agent(name="writer", instructions=f"You write notes. {FACTS}", tools=[note], model="gpt-4o")
    first = Agent(
        name="first",
        instructions=f"You find things. {FACTS}",
        tools=[look, count, helper.as_tool("ask_helper", "Ask the helper.")],
        handoffs=[writer],
        model="gpt-4o",
    )
    plan = "{look:shelf count:boxes} {ask_helper:Check_the_list_of_boxes} {transfer_to_writer} {note:forty-two_boxes}"
    asyncio.run(Runner.run(first, f"Find out how many boxes there are. {plan}"))


main()
