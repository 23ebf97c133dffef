"""State that replicas share through Redis or Valkey (the extra `redis`): limits, budgets, and the state of backends.

`link` keeps a connection to the server, a `redis_connection`, and `deadlines` limits the time that a request waits. `scripts` has the Lua
scripts, `limits` the counters of limits, `budgets` the sums of budgets, `backends` the events about backends; `state` starts and ends them
as the settings say.
"""
