"""Conversations: the calls of a list of flows as threads, with tokens, cost, and the reason why a prompt cache was not used.

`calls` reads one flow, and `bodies` its JSON and streams. `grouping` puts calls into threads one by one, `cache` compares a call with the
one before it, `report` makes the JSON of the page and of `azure-openai-proxy inspect`, and `details` the conversation of one thread.
"""
