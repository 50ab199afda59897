# SPDX-License-Identifier: Apache-2.0
"""A fleet under a real Puppet server: canary first, versions and settings by Hiera, and back."""

from __future__ import annotations

from tests.machine.service import SCANNER
from tests.package import builds
from tests.puppet.host import CHANGED, FAILED, UNCHANGED


def test_the_first_run_installs_and_the_second_changes_nothing(fleet):
    for agent in fleet[1:]:
        code, said = agent.agree()
        assert code == CHANGED, said
        assert agent.is_active() and agent.version() == builds.OLD
    for agent in fleet[1:]:
        code, said = agent.agree()
        assert code == UNCHANGED, said


def test_the_canary_observes_and_the_others_enforce(converged):
    _, web, canary = converged
    for agent in (web, canary):
        agent.scan()
    assert not web.reaches(SCANNER)
    assert canary.reaches(SCANNER) and canary.status()["ledger"]["connections_dropped"] == 0
    would = canary.ask("block", "list", "--would", "--since", "24h")
    assert [row["prefix"] for row in would] == [SCANNER]


def test_lists_of_all_levels_add_up(converged):
    _, web, canary = converged
    allowed = [{row["prefix"] for row in agent.ask("allow", "list")} for agent in (web, canary)]
    assert "192.0.2.10" in allowed[0] & allowed[1]
    assert "2001:db8:9::/48" in allowed[1] - allowed[0]


def test_a_version_in_hiera_is_the_fleets_at_its_next_run(converged):
    """Up and back, with the program in the kernel never let go."""
    server, *agents = converged
    links = [agent.link() for agent in agents]
    for version in (builds.NEW, builds.OLD):
        server.say(package_ensure=version)
        for agent, link in zip(agents, links):
            code, said = agent.agree()
            assert code == CHANGED, said
            assert agent.version() == agent.status()["version"] == version and agent.link() == link


def test_a_faulty_value_fails_the_run_and_leaves_the_service_alone(converged):
    server, *agents = converged
    pids = [agent.pid for agent in agents]
    server.say(allow=["192.0.2.10", "10.0.0.1/8"])
    try:
        for agent, pid in zip(agents, pids):
            code, said = agent.agree()
            assert code in FAILED and "10.0.0.0/8" in said
            assert agent.pid == pid and agent.is_active() and agent.status()["config"]["ok"]
    finally:
        server.say(allow=["192.0.2.10"])
    for agent in agents:
        assert agent.agree()[0] == UNCHANGED


def test_the_fact_tells_the_server_how_each_host_is(converged):
    _, web, canary = converged
    assert [agent.fact()["mode"] for agent in (web, canary)] == ["enforce", "observe"]
