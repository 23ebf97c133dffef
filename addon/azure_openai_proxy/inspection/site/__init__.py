"""The inspector's page in mitmweb: threads of calls, their conversations, differences, search, replay, sharing and breakpoints.

`server` responds to the page's requests, `index` keeps the threads up to date while a page is open, `static/` is the page itself.
"""
