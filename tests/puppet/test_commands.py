# SPDX-License-Identifier: Apache-2.0
"""The shell commands that the catalog holds: the check of a file before it is put in place, and reload or restart.

They run as Puppet runs them, on this host's files with others laid over them, in a mount namespace of their own.
"""

from __future__ import annotations

import pathlib
import subprocess

import pytest

from packetwatch import show
from tests.puppet.compiling import DIRECTORY, SETTINGS, compiled
from tests.puppet.gems import CHECKOUT

#: What is below $1 lies over /etc and /usr/bin for the command in $2.
OVER = """
set -e
mount -t tmpfs tmpfs "$1/over"
for each in etc usr/bin; do
    mkdir -p "$1/$each" "$1/over/$each/upper" "$1/over/$each/work"
    cp -a "$1/$each/." "$1/over/$each/upper"
    mount -t overlay overlay -o "lowerdir=/$each,upperdir=$1/over/$each/upper,workdir=$1/over/$each/work" "/$each"
done
cd /
exec /bin/sh -c "$2"
"""


@pytest.fixture(scope="module")
def commands(puppet8, tmp_path_factory):
    code = "include packetwatch packetwatch::allow { 'x': prefixes => '192.0.2.1' }"
    (catalog,) = compiled(puppet8, tmp_path_factory.mktemp("catalog"), [code])
    return {
        "check": catalog[f"File[{SETTINGS}]"]["validate_cmd"],
        "check list": catalog[f"File[{DIRECTORY}/60-puppet-allow-x.conf]"]["validate_cmd"],
        "restart": catalog["Service[packetwatch]"]["restart"],
    }


class Host:
    """Files that lie over those of this host, and commands that see them."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        for each in ("over", "tmp"):
            (directory / each).mkdir()
        self.put(f"{DIRECTORY}/.keep", "")

    def put(self, path: str, text: str, mode: int = 0o644) -> None:
        file = self.directory / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def install(self) -> None:
        (self.directory / "usr/bin").mkdir(parents=True, exist_ok=True)
        (self.directory / "usr/bin/packetwatch").symlink_to(CHECKOUT / "bin/packetwatch")

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        over = ["unshare", "--mount", "--propagation", "private", "sh", "-c", OVER, "sh", str(self.directory), command]
        environment = {"PATH": "/usr/bin:/bin:/usr/sbin", "TMPDIR": str(self.directory / "tmp"), "LANG": "C.UTF-8"}
        return subprocess.run(over, env=environment, capture_output=True, text=True, timeout=60)

    def check(self, command: str, text: str, path: str = SETTINGS) -> subprocess.CompletedProcess[str]:
        """As Puppet does before it puts the text in the file's place."""
        candidate = f"{path}20261124-1-abc"
        self.put(candidate, text)
        done = self.run(command.replace("%", candidate))
        assert not list((self.directory / "tmp").iterdir())
        return done


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


@pytest.fixture
def installed(host):
    host.install()
    return host


FAULTY = "[scan]\nports = 1\n"


def test_nothing_is_checked_before_the_package_is_there(host, commands):
    assert host.check(commands["check"], FAULTY).returncode == 0


def test_a_fault_is_told_with_its_file_and_line(installed, commands):
    installed.put("/etc/packetwatch/packetwatch.conf", "[scan]\nports = 3\n")
    done = installed.check(commands["check"], FAULTY)
    assert done.returncode == 78 and "/50-puppet.conf:2: scan.ports: '1' is out of range" in done.stderr


def test_a_file_takes_the_place_of_the_one_before(installed, commands):
    installed.put(SETTINGS, FAULTY)
    assert installed.check(commands["check"], "[scan]\nports = 5\n").returncode == 0


def test_faults_that_files_have_together_only(installed, commands):
    installed.put("/etc/packetwatch/packetwatch.conf", "[packetwatch]\nstate = /srv/x\n")
    assert installed.check(commands["check"], "[log]\nfile = /srv/y\n").returncode == 0
    done = installed.check(commands["check"], "[log]\nfile = /srv/x\n")
    assert done.returncode == 78 and "are both" in done.stderr


def test_a_list_is_checked_under_its_own_name(installed, commands):
    installed.put(SETTINGS, "[packetwatch]\nallow = 192.0.2.1\n")
    path = f"{DIRECTORY}/60-puppet-allow-x.conf"
    assert installed.check(commands["check list"], "[packetwatch]\nallow = 192.0.2.2\n", path).returncode == 0
    done = installed.check(commands["check list"], "[packetwatch]\nallow = 192.0.2.2/24\n", path)
    assert done.returncode == 78 and "/60-puppet-allow-x.conf:2: " in done.stderr


def test_no_packaged_file_is_needed(installed, commands):
    assert installed.check(commands["check"], "[packetwatch]\nmode = observe\n").returncode == 0


def reload(host, command, answer="", status=0, error=""):
    """Exit status of the refresh, what it told, and what systemctl was asked to do."""
    host.put("/usr/bin/packetwatch", f"#!/bin/sh\n[ \"$*\" = 'reload -o json' ] || exit 99\n"
             f"cat <<'END'\n{answer}\nEND\necho '{error}' >&2\nexit {status}\n", 0o755)
    host.put("/usr/bin/systemctl", '#!/bin/sh\necho "asked: $*"\n', 0o755)
    return host.run(command)


def test_a_reload_is_enough_for_what_it_puts_in_force(host, commands):
    answer = show.as_json({"changed": ["scan.ports"], "restart_needed": []})
    done = reload(host, commands["restart"], answer)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_a_reload_cannot_put_in_force_is_restarted(host, commands):
    answer = show.as_json({"changed": ["ring.size"], "restart_needed": ["ring.size"]})
    done = reload(host, commands["restart"], answer)
    assert (done.returncode, done.stdout) == (0, "asked: restart packetwatch\n")


@pytest.mark.parametrize("status", [1, 3, 78])
def test_a_reload_that_fails_restarts_nothing(host, commands, status):
    done = reload(host, commands["restart"], status=status, error="a fault in the settings")
    assert (done.returncode, done.stdout) == (status, "")
    assert "a fault in the settings" in done.stderr
