"""Load test of limits and budgets: two replicas with real Redis and PostgreSQL, 50 clients, 20,000 requests.

No client may exceed a limit by more than its parallel requests, budgets end at the crossing request, and the sums of each client equal the
ledger. With --kill, Redis is killed after a third of the requests and started again after two thirds: every request is answered, and until
then each process counts alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from mitmproxy.certs import CertStore

from azure_openai_proxy.accounting.ledger.database import parse
from azure_simulator import Simulator
from support import postgres, redis
from support.ledger import rows
from support.load import wait_until
from support.processes import RECORDER, SCRIPT, Mitmdump
from support.replicas import PARALLEL, Key, Load, create

BUDGET = 0.002  # USD, of some thirty calls


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--kill", action="store_true", help="kill and restart Redis in the middle")
    asked = parser.parse_args()
    if reason := postgres.missing() or redis.missing():
        print(reason)
        return 1
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        CertStore.from_store(folder / "confdir", "mitmproxy", 2048)
        azure, server = stack.enter_context(Simulator()), stack.enter_context(redis.RedisServer())
        ledger = stack.enter_context(postgres.Postgres()).create()
        *clients, last = create(ledger, asked.clients, BUDGET)
        options = {"azure_openai_endpoint": azure.http_url, "azure_openai_token": azure.key, "azure_openai_shared_state": server.url}
        env = {"AZURE_OPENAI_LEDGER": ledger}
        both = [
            stack.enter_context(
                Mitmdump(folder / str(number), folder / "confdir", options=options, env=env, scripts=(SCRIPT, RECORDER / "patient.py"))
            )
            for number in range(2)
        ]
        at = {asked.requests // 3: server.kill, 2 * asked.requests // 3: server.start} if asked.kill else {}
        load = Load(both, clients, asked.requests, at)
        began = time.monotonic()
        load.run()
        print(f"{len(load.answers)} requests in {time.monotonic() - began:.0f} s: {dict(load.statuses)}")
        times = 2 if asked.kill else 1
        load.check_limits(times)
        wait_until(lambda: _calls(ledger, last) == len(load.answers))
        load.check_ledger(ledger, BUDGET, times)
    print(f"{asked.clients} clients with {PARALLEL} requests at a time: limits, budgets and the ledger agree")
    return 0


def _calls(ledger: str, but: Key) -> int:
    return sum(row["client"] != but.name for row in rows(parse(ledger)))


if __name__ == "__main__":
    sys.exit(main())
