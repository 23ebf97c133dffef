"""A small version of the simulation of agents: `tools/simulate_agents.py`."""

from __future__ import annotations

import pytest
from simulate_agents import STRATEGIES, main, run, workload

from support.processes import ROOT


@pytest.mark.parametrize("seed", [2, 3])
@pytest.mark.slow
def test_affinity_keeps_prompts_in_the_cache(seed: int) -> None:
    """With affinity far more of the input is cached, within five points of the best possible, and no fewer requests are answered."""
    work = workload(sessions=30, hours=1.0, load=0.4, seed=seed)
    without, affine, best = (run(work, strategy) for strategy in STRATEGIES)
    assert without.hit_rate + 0.05 < affine.hit_rate
    assert best.hit_rate - 0.05 <= affine.hit_rate
    assert without.answered <= affine.answered
    assert all(count > 0.1 * affine.answered for count in affine.by_backend)


@pytest.mark.slow
def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """The tool prints a row for each load and strategy."""
    main(["--sessions", "8", "--load", "0.3", "0.4"])
    lines = capsys.readouterr().out.splitlines()
    assert 7 == len(lines)
    assert all(strategy in lines[1 + index] for index, strategy in enumerate((*STRATEGIES, *STRATEGIES)))


@pytest.mark.slow
def test_the_documented_table() -> None:
    """The documents have what the tool prints, here for a load of 50 %."""
    table = (ROOT / "docs" / "retries-and-failover.md").read_text().partition("| 50 % |")[2].splitlines()
    work = workload()
    for strategy, line in zip(STRATEGIES, table, strict=False):
        result = run(work, strategy)
        spread = result.spread.replace("%", "")
        assert line.removeprefix("| |") == f" {strategy} | {result.answered} | {100 * result.hit_rate:.1f} % | {spread} % |"
