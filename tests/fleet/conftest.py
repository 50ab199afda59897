# SPDX-License-Identifier: Apache-2.0
"""A Puppet server and two agents, each a booted machine, connected by veth pairs; one agent is the canary."""

from __future__ import annotations

import contextlib
import json
import pathlib

import pytest

from tests.machine.machine import PUPPET, Machine, build_root
from tests.package import builds
from tests.puppet.gems import MODULE
from tests.puppet.host import FAILED, REPO, Puppet

ENVIRONMENT = "/etc/puppet/code/environments/production"
HIERA = """
version: 5
defaults: { datadir: data, data_hash: yaml_data }
hierarchy:
  - { name: "per host", path: "nodes/%{trusted.certname}.yaml" }
  - { name: "everybody", path: "common.yaml" }
"""
SERVER_CONF = """
[main]
certname = puppet
[server]
autosign = true
"""
AGENT_CONF = """
[main]
certname = {name}
server = puppet
[agent]
splay = false
"""


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/fleet/" in item.nodeid:
            item.add_marker(pytest.mark.timeout(1500))  # the first one waits for roots and for the server


class Agent(Puppet):
    """A host whose settings come from the server."""

    def __init__(self, machine: Machine, name: str) -> None:
        super().__init__(machine)
        self.name = name

    def agree(self):
        """One run of the agent: its exit status and what it said."""
        return self.puppet("agent", "--test", "--no-usecacheonfailure")


class Server:
    """The Puppet server's machine and the data it serves."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def serve(self, key: str) -> None:
        self.machine.run(["sh", "-c", ": >/etc/resolv.conf"])
        self.machine.write("/etc/hosts", "127.0.0.1 localhost puppet\n")
        self.machine.write("/etc/puppet/puppet.conf", SERVER_CONF)
        self.machine.copy(MODULE, f"{ENVIRONMENT}/modules/packetwatch")
        self.machine.write(f"{ENVIRONMENT}/hiera.yaml", HIERA)
        self.machine.write(f"{ENVIRONMENT}/manifests/site.pp", "include packetwatch\n")
        self.common = {"manage_repo": True, "repo_url": f"file://{REPO}", "repo_key": key, "allow": ["192.0.2.10"]}
        self.say(package_ensure=builds.OLD)
        self.machine.run(["systemctl", "start", "puppetserver"], timeout=600)

    def say(self, **values) -> None:
        """Into Hiera for everybody. JSON is YAML."""
        self.common.update(values)
        self._write("common", self.common)

    def say_to(self, agent: Agent, **values) -> None:
        self._write(f"nodes/{agent.name}", values)

    def _write(self, name, values) -> None:
        data = {f"packetwatch::{key}": value for key, value in values.items()}
        self.machine.write(f"{ENVIRONMENT}/data/{name}.yaml", json.dumps(data))


def connect(server: Machine, agent: Agent, number: int) -> None:
    """A link of their own between the server and an agent, and its name for the other end."""
    ours, theirs = f"198.51.100.{4 * number + 1}", f"198.51.100.{4 * number + 2}"
    ends = ("link", "add", f"fleet{number}", "netns", str(server.leader), "type", "veth")
    builds.run("ip", *ends, "peer", "name", "fleet", "netns", str(agent.machine.leader))
    for machine, device, address in ((server, f"fleet{number}", ours), (agent.machine, "fleet", theirs)):
        machine.run(["ip", "address", "add", f"{address}/30", "dev", device])
        machine.run(["ip", "link", "set", device, "up"])
    agent.machine.write("/etc/hosts", f"127.0.0.1 localhost {agent.name}\n{ours} puppet\n")
    agent.machine.write("/etc/puppet/puppet.conf", AGENT_CONF.format(name=agent.name))


@pytest.fixture(scope="session")
def fleet(tmp_path_factory):
    """(server, agent, canary), all of them ready; no agent has run yet."""
    repository = tmp_path_factory.mktemp("published") / "repo"
    versions = [builds.build(each, tmp_path_factory.mktemp("build")) for each in (builds.OLD, builds.NEW)]
    builds.publish(versions, repository, f"file://{REPO}", tmp_path_factory.mktemp("gnupg"))
    with contextlib.ExitStack() as stack:
        root = build_root(PUPPET["bookworm"], "bookworm")
        server = Server(stack.enter_context(Machine(root)))
        agents = [Agent(stack.enter_context(Machine(root)), name) for name in ("web", "canary")]
        for number, agent in enumerate(agents):
            agent.prepare(pathlib.Path())
            agent.machine.copy(repository, REPO)
            connect(server.machine, agent, number)
        server.serve((repository / "packetwatch.asc").read_text())
        server.say_to(agents[1], mode="observe", allow=["2001:db8:9::/48"])
        yield server, *agents


@pytest.fixture
def converged(fleet):
    """All agents have what the server says."""
    for agent in fleet[1:]:
        code, said = agent.agree()
        assert code not in FAILED and code != 1, said
    return fleet
