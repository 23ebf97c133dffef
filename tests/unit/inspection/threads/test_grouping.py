"""Which calls belong to one thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from azure_openai_proxy.inspection.threads import grouping
from azure_openai_proxy.inspection.threads.store import Threads
from support.conversations import Json, assistant, chat, failed, responses, tool_call, user

if TYPE_CHECKING:
    from mitmproxy import http

SYSTEM = {"role": "system", "content": "be good"}
SESSION = {"x-session-id": "s-1"}


def shape(*flows: http.HTTPFlow) -> list[list[Any]]:
    """The threads as lists of the places of their calls, a child as a list of its parent's number and the list."""
    threads = Threads()
    list(threads.load(flows))
    ids = [flow.id for flow in flows]
    found = threads.report()["threads"]
    numbers = {thread["id"]: number for number, thread in enumerate(found)}
    return [
        [*([f"child of {numbers[thread['parent']]}"] if thread["parent"] else []), *(ids.index(call["id"]) for call in thread["calls"])]
        for thread in found
    ]


def result(id: str, text: str = "found") -> Json:
    return {"role": "tool", "tool_call_id": id, "content": text}


def test_messages_that_go_on_are_one_thread() -> None:
    """A request with all earlier messages and more of them continues the earlier one, whatever its answer was."""
    first = [SYSTEM, user("one")]
    second = [*first, assistant("not what was answered"), user("two")]
    assert [[0, 1]] == shape(chat(first), chat(second, at=5))


@pytest.mark.parametrize(
    "second",
    [
        {"messages": [{"role": "system", "content": "be bad"}, user("one"), assistant("fine"), user("two")]},
        {"messages": [SYSTEM, user("one"), assistant("fine"), user("two")], "model": "o3-mini"},
        {"messages": [SYSTEM, user("one"), assistant("fine"), user("two")], "extra": {"tools": [{"type": "function"}]}},
        {"messages": [user("one"), assistant("fine"), user("two")], "extra": {"prompt_cache_key": "new"}},
    ],
    ids=["system", "model", "tools", "key"],
)
def test_a_change_leaves_a_conversation_one_thread(second: Json) -> None:
    """A changed system prompt, model, tool set or cache key does not start another thread."""
    messages = second.pop("messages")
    assert [[0, 1]] == shape(chat([SYSTEM, user("one")]), chat(messages, at=5, **second))


def test_an_edited_message_leaves_a_conversation_one_thread() -> None:
    """A request that repeats an answer continues its call, though an earlier message was edited."""
    long = "an answer that is long enough to be recognised by itself"
    first = chat([SYSTEM, user("at 10:00")], assistant(long))
    assert [[0, 1]] == shape(first, chat([SYSTEM, user("at 10:01"), assistant(long), user("two")], at=5))


def test_an_edited_message_is_recognised_by_the_last_one() -> None:
    """Without the answer, the last message and half of the others show that a conversation goes on."""
    first = chat([user("at 10:00"), assistant("x"), user("two")])
    again = chat([user("at 10:01"), assistant("x"), user("two"), assistant("y"), user("three")], at=5)
    assert [[0, 1]] == shape(first, again)
    other = chat([user("at 10:01"), assistant("x"), user("another question"), assistant("y"), user("three")], at=5)
    assert [[0], [1]] == shape(chat([user("at 10:00"), assistant("x"), user("two")]), other)


def test_a_short_answer_alone_is_no_evidence() -> None:
    """Two conversations with the same short answer are two threads."""
    assert [[0], [1]] == shape(chat([user("ping")], assistant("OK")), chat([user("pong"), assistant("OK"), user("more")], at=5))


def test_a_short_answer_after_the_same_system_prompt() -> None:
    """With the same system prompt even a short answer shows that a conversation goes on, though its question was edited."""
    assert [[0, 1]] == shape(chat([SYSTEM, user("one")]), chat([SYSTEM, user("one, edited"), assistant("fine"), user("two")], at=5))


def test_the_programs_of_a_session_may_differ() -> None:
    """A session is one of several programs, as with a synchronous and an asynchronous client."""
    more = [user("one"), assistant("fine"), user("two")]
    one, two = ({**SESSION, "user-agent": agent} for agent in ("OpenAI/Python 3", "AsyncOpenAI/Python 3"))
    assert [[0, 1]] == shape(chat([user("one")], headers=one), chat(more, at=5, headers=two))


def test_tool_calls_connect_a_conversation() -> None:
    """A request with the result of a tool call continues the call that asked for it, though all else was dropped."""
    first = chat([user("one")], assistant(None, tool_call("c9")))
    assert [[0, 1]] == shape(first, chat([user("summary"), assistant(None, tool_call("c9")), result("c9")], at=5))


def test_independent_conversations_are_threads_of_their_own() -> None:
    """The same question, asked anew after an answer, starts another thread, and so does that of another client."""
    assert [[0], [1]] == shape(chat([user("one")]), chat([user("one")], at=5))
    messages = [user("one"), assistant("fine"), user("two")]
    assert [[0], [1]] == shape(chat([user("one")]), chat(messages, at=5, headers={"user-agent": "other/1"}))


def test_a_few_examples_in_common_are_no_conversation() -> None:
    """Requests that share examples but ask different questions are threads of their own."""
    examples = [user("2+2"), assistant("4")]
    assert [[0], [1]] == shape(chat([*examples, user("3+3")]), chat([*examples, user("5+5")], at=5))


def test_a_retry_after_a_failure() -> None:
    """The same request after a failure is in the same thread; one that was sent before the failure is not."""
    assert [[0, 1]] == shape(failed([user("one")]), chat([user("one")], at=5))
    assert [[0], [1]] == shape(failed([user("one")], took=10), chat([user("one")], at=5))


def test_a_retry_that_the_client_announces() -> None:
    """The same request with the SDK's count of retries is in the same thread, though the first one was answered."""
    assert [[0, 1]] == shape(chat([user("one")]), chat([user("one")], at=5, headers={"x-stainless-retry-count": "1"}))


def test_a_retry_whose_first_call_is_unknown() -> None:
    """A call with the SDK's count of retries is marked, though the failed call was not recorded."""
    threads = Threads()
    made = chat([user("one")], headers={"x-stainless-retry-count": "2"})
    threads.update(made)
    assert threads.thread(made.id)["calls"][0]["retry"]


def test_a_session_has_children() -> None:
    """A new conversation within a session is a child, and two with the same prompt are two children."""
    main = chat([SYSTEM, user("main")], assistant(None, tool_call("c1"), tool_call("c2")), headers=SESSION)
    helpers = [chat([user("help")], assistant(f"answer {n}, long enough to be known"), at=2 + n / 10, headers=SESSION) for n in range(2)]
    later = [
        chat([user("help"), assistant(f"answer {n}, long enough to be known"), user("more")], at=4 + n, headers=SESSION) for n in range(2)
    ]
    assert [[0], ["child of 0", 1, 3], ["child of 0", 2, 4]] == shape(main, *helpers, *later)


def test_the_argument_of_a_tool_call_makes_a_child() -> None:
    """Without a session, a conversation that begins with the argument of a recent tool call is a child."""
    main = chat([user("main")], assistant(None, tool_call("c1", "ask", '{"input": "find it", "n": 1}')))
    assert [[0], ["child of 0", 1]] == shape(main, chat([user("find it")], at=2))
    assert [[0], [1]] == shape(main, chat([user("find it")], at=2 + grouping.CHILD_WITHIN))


@pytest.mark.parametrize("arguments", ["find it", "[1]", '"find it"', "{", '{"input": ""}', "x" * 2_000_000])
def test_arguments_of_any_form(arguments: str) -> None:
    """Arguments that are no object of texts make a child only if they are the message itself."""
    main = chat([user("main")], assistant(None, tool_call("c1", "ask", arguments)))
    expected = ["child of 0", 1] if arguments == "find it" else [1]
    assert [[0], expected] == shape(main, chat([user("find it")], at=2))


def test_responses_that_name_the_one_before() -> None:
    """`previous_response_id` continues the call with that response, whatever the input is."""
    first = responses("one", [assistant("fine")], id="resp_a")
    second = responses("two", [assistant("fine")], id="resp_b", at=2, extra={"previous_response_id": "resp_a"})
    third = responses("two", [], at=4, extra={"previous_response_id": "resp_b", "instructions": "another agent"})
    assert [[0, 1, 2]] == shape(first, second, third)


def test_responses_whose_first_one_is_unknown() -> None:
    """Calls that name the same unknown response are one thread, and those of a conversation too."""
    unknown = [responses(text, [], at=at, extra={"previous_response_id": "resp_x"}) for at, text in enumerate("ab")]
    assert [[0, 1]] == shape(*unknown)
    talks = [responses(text, [], at=at, extra={"conversation": name}) for at, (text, name) in enumerate([("a", {"id": "c"}), ("b", "c")])]
    assert [[0, 1], [2]] == shape(*talks, responses("c", [], at=9, extra={"conversation": "d"}))


def test_ids_that_refer_to_each_other_in_a_circle() -> None:
    """Responses that name each other, or themselves, end in threads."""
    circle = [
        responses("a", [], id="resp_a", extra={"previous_response_id": "resp_b"}),
        responses("b", [], id="resp_b", at=1, extra={"previous_response_id": "resp_a"}),
        responses("c", [], id="resp_c", at=2, extra={"previous_response_id": "resp_c"}),
    ]
    assert [[0, 1], [2]] == shape(*circle)


def test_calls_without_messages() -> None:
    """Requests without messages, or with only system messages, are threads of their own."""
    assert [[0], [1], [2]] == shape(chat([]), chat("no list", at=1), chat([SYSTEM], at=2))


def test_flows_that_arrive_late() -> None:
    """A call that began earlier than one already read takes its place before it."""
    first, second = chat([user("one")]), chat([user("one"), assistant("fine"), user("two")], at=5)
    third = chat([user("one"), assistant("fine"), user("two"), assistant("fine"), user("three")], at=3)
    threads = Threads()
    for flow in (first, second, third):
        threads.update(flow)
    assert [first.id, third.id, second.id] == [call["id"] for call in threads.thread(first.id)["calls"]]


def test_removed_flows_leave_nothing() -> None:
    """After the removal of all its flows the index is empty, and a child stays without its parent."""
    main = chat([user("main")], assistant(None, tool_call("c1", "ask", '{"input": "find it"}')), headers=SESSION)
    more = chat([user("main"), assistant(None, tool_call("c1")), result("c1")], at=3, headers=SESSION)
    helper = chat([user("find it")], at=2, headers=SESSION)
    other = responses("x", [assistant("fine")], id="resp_a", at=9)
    threads = Threads()
    list(threads.load([main, more, helper, other]))
    threads.remove(main.id)
    assert [more.id] == [call["id"] for call in threads.thread(main.id)["calls"]]
    threads.remove(more.id)
    assert threads.thread(helper.id)["parent"] is None
    for flow in (helper, other, other):
        threads.remove(flow.id)
    groups = threads._groups
    left = (groups._chains, groups._answers, groups._lasts, groups._arguments, groups._responses, groups._sessions)
    assert ([{}] * 6, [], {"threads": []}) == ([dict(index) for index in left], threads.thread_ids, threads.report())


def test_a_child_is_removed_from_its_parent() -> None:
    """A parent does not list a child that is gone."""
    main, helper = (chat([user(text)], at=at, headers=SESSION) for at, text in enumerate(("main", "help")))
    threads = Threads()
    list(threads.load([main, helper]))
    assert [helper.id] == threads.thread(main.id)["children"]
    threads.remove(helper.id)
    assert [] == threads.thread(main.id)["children"]


def test_repeated_updates_and_removals() -> None:
    """A call that is updated without a change is indexed once, and unknown calls are removed without effect."""
    made = chat([user("main")], assistant("fine", tool_call("c1", "ask", '{"input": "find it"}')))
    running = chat([user("other")], at=3, running=True)
    threads = Threads()
    list(threads.load([made, made, running, running]))
    assert {1} == {len(known) for known in threads._groups._answers.values()}
    assert threads._groups.remove("unknown") is None
    threads.remove(running.id)
    assert [made.id] == threads.thread_ids


def test_little_in_common_is_no_conversation() -> None:
    """The last message alone is no evidence if most others differ."""
    first = chat([user("a"), assistant("b"), user("c"), assistant("d"), user("go on")])
    other = chat([user("1"), assistant("2"), user("go on"), assistant("4"), user("5"), assistant("6"), user("7")], at=5)
    assert [[0], [1]] == shape(first, other)


def test_the_work_for_a_call_is_bounded() -> None:
    """Thousands of equal calls and answers give each call a bounded number of candidates."""
    threads = Threads()
    for n in range(300):
        threads.update(chat([user("same"), assistant("x"), user(f"{n % 2}")], assistant(None, tool_call("same")), at=n))
    call = threads.call(threads.update(chat([user("same"), assistant(None, tool_call("same")), result("same")], at=400)) or "")
    found = list(threads._groups._candidates(call))
    assert 0 < len(found) <= 4 * grouping.MOST_CANDIDATES
    threads.remove(threads._groups.threads[threads.thread_ids[0]].calls[0].id)
    assert 0 < len(list(threads._groups._candidates(call)))
    many = [assistant(None, *(tool_call(f"c{n}-{m}") for m in range(30))) for n in range(10)]
    for n, answer in enumerate(many):
        for m in range(40):
            threads.update(chat([user(f"q{n} {m}")], answer, at=1000 + m))
    last = threads.update(chat([user("z"), *many, user("end")], at=3000)) or ""
    assert 4 * grouping.MOST_CANDIDATES == len(list(threads._groups._candidates(threads.call(threads.calls(last)[-1].id))))


def test_the_family_of_a_model() -> None:
    """It is the beginning of its name."""
    assert ["gpt-4o", "", "o3-mini"] == [grouping.family(name) for name in ("gpt-4o-mini-2024", None, "o3-mini")]
