# SPDX-License-Identifier: Apache-2.0
"""What is in the packages: the same bytes again, everything the docs promise, nothing that does not belong there."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess

import pytest

from packetwatch import __version__
from tests.package import builds
from tests.package.builds import NEW, OLD, ROOT, control, run

#: In both packages.
PROMISED = """
etc/logrotate.d/packetwatch
etc/packetwatch/packetwatch.conf
etc/packetwatch/packetwatch.conf.d
usr/bin/packetwatch
usr/lib/packetwatch/bpf/packetwatch.c
usr/lib/packetwatch/packetwatch/__main__.py
usr/lib/systemd/catalog/packetwatch.catalog
usr/lib/systemd/system/packetwatch.service
usr/lib/sysusers.d/packetwatch.conf
usr/lib/tmpfiles.d/packetwatch.conf
usr/share/bash-completion/completions/packetwatch
usr/share/doc/packetwatch/README.md
usr/share/doc/packetwatch/install.md
usr/share/doc/packetwatch/operations.md
usr/share/man/man5/packetwatch.conf.5.gz
usr/share/man/man8/packetwatch.8.gz
usr/share/packetwatch/grafana/packetwatch.json
usr/share/packetwatch/prometheus/packetwatch.rules.yml
usr/share/packetwatch/prometheus/scrape.yml
usr/share/packetwatch/puppet/modules/packetwatch/manifests/init.pp
usr/share/packetwatch/puppet/modules/packetwatch/metadata.json
""".split()
CONFFILES = ["/etc/logrotate.d/packetwatch", "/etc/packetwatch/packetwatch.conf"]
FOREIGN = re.compile(r"__pycache__|\.pyc$|/spec/|/\.|Gemfile|/tests/")


def content(package):
    """Paths without a leading slash, and directories without the last one."""
    if package.suffix == ".deb":
        lines = run("sh", "-c", 'dpkg-deb --fsys-tarfile "$1" | tar -t', "sh", package).splitlines()
    else:
        lines = run("rpm", "-qlp", package).splitlines()
    return {line.removeprefix("./").strip("/") for line in lines}


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(params=("deb", "rpm"))
def package(request, new):
    return getattr(new, request.param)


def test_the_same_commit_gives_the_same_bytes(new, tmp_path):
    """With another umask and another time zone, too."""
    command = ["make", "-s", "-C", ROOT, "deb", "rpm", f"VERSION={NEW}", f"PACKAGES={tmp_path}"]
    away = {**os.environ, "TZ": "Asia/Tokyo"}
    subprocess.run(["sh", "-c", 'umask 077; exec "$@"', "sh", *command], check=True, env=away)
    for first in new[1:]:
        assert digest(first) == digest(tmp_path / first.name)


def test_content(package):
    assert set(PROMISED) - content(package) == set()
    assert [path for path in content(package) if FOREIGN.search(path)] == []


def test_every_module_and_source_is_there(package):
    ours = {str(path.relative_to(ROOT)) for top in ("packetwatch", "bpf") for path in (ROOT / top).rglob("*.[pch]*")}
    ours = {path for path in ours if path.endswith((".py", ".c", ".h"))}
    assert {f"usr/lib/packetwatch/{path}" for path in ours} <= content(package)


def test_size(package):
    assert package.stat().st_size < 1_000_000


def test_conffiles(new):
    assert run("dpkg-deb", "-I", new.deb, "conffiles").split() == CONFFILES
    assert run("rpm", "-qcp", new.rpm).split() == CONFFILES


def test_needs(new):
    """The names of each family; what the list of `make deps` has is what the package asks for."""
    listed = [line for line in (ROOT / "deps/debian.run").read_text().split("\n") if line and line[0] != "#"]
    assert set(listed) <= set(re.findall(r"[a-z][\w.+-]+", control(new.deb)["Depends"]))
    listed = [line for line in (ROOT / "deps/el.run").read_text().split("\n") if line and line[0] != "#"]
    weak = run("rpm", "-qp", "--recommends", new.rpm).split()
    assert sorted(weak) == ["libpcap", "python3-prometheus_client"]
    assert control(new.deb)["Recommends"] == "libpcap0.8 | libpcap0.8t64"
    assert set(listed) <= {*run("rpm", "-qp", "--requires", new.rpm).split(), *weak}


def test_version(new, tmp_path):
    """Between releases X~gitN; the command says the same, and it sorts before the release."""
    name = run("make", "-s", "--no-print-directory", "deb", f"PACKAGES={tmp_path}").strip()
    assert re.fullmatch(re.escape(__version__) + r"(~git\d+)?", control(name)["Version"])
    assert control(new.deb)["Version"] == NEW
    assert run("rpm", "-qp", "--qf", "%{VERSION}-%{RELEASE}", new.rpm) == f"{NEW}-1"
    run("dpkg", "--compare-versions", NEW, "lt", NEW.partition("~")[0])
    run("dpkg", "--compare-versions", OLD, "lt", NEW)


def test_licences(new):
    told = "Apache-2.0 AND GPL-2.0-only"
    assert control(new.deb)["License"] == run("rpm", "-qp", "--qf", "%{LICENSE}", new.rpm) == told


def test_lintian(new):
    out = run("lintian", "--pedantic", "--display-info", "--fail-on", "error,warning,info,pedantic", new.deb)
    assert [line for line in out.splitlines() if line and line[0] != "N"] == []


def test_rpmlint(new):
    out = run("rpmlint", "--config", "rpm/rpmlint.toml", new.rpm)
    assert "0 errors, 0 warnings" in out


def test_exceptions_have_reasons():
    """Above each exception, or the group it begins, stands a comment."""
    for path, pattern in (("debian/lintian-overrides", "packetwatch:"), ("rpm/rpmlint.toml", '    "')):
        lines = (ROOT / path).read_text().splitlines()
        bare = [line for before, line in zip(lines, lines[1:]) if line.startswith(pattern) and not before.strip()]
        first = [n for n, line in enumerate(lines) if line.startswith(pattern)][0]
        assert bare == [] and lines[first - 1].strip().startswith("#")


def test_the_unit_and_its_files_are_those_of_the_checkout(package, tmp_path):
    """Packaging changes the version in __init__.py, and nothing else."""
    extract = {".deb": 'dpkg-deb -x "$1" "$2"', ".rpm": 'cd "$2" && rpm2cpio "$1" | cpio -id --quiet'}[package.suffix]
    run("sh", "-c", extract, "sh", package, tmp_path)
    for path in (tmp_path / "usr/lib/packetwatch").rglob("*"):
        ours = ROOT / path.relative_to(tmp_path / "usr/lib/packetwatch")
        if path.is_file() and path.name not in ("__init__.py", "restart-steps.conf"):
            assert path.read_bytes() == ours.read_bytes()
    assert f'__version__ = "{NEW}"' in (tmp_path / "usr/lib/packetwatch/packetwatch/__init__.py").read_text()
    unit = "packetwatch.service"
    assert (tmp_path / "usr/lib/systemd/system" / unit).read_text() == (ROOT / "systemd" / unit).read_text()


def test_logrotate_takes_the_snippet(tmp_path):
    """Debug mode reads, judges and changes nothing. The user exists only on a host."""
    text = (ROOT / "systemd/packetwatch.logrotate").read_text().replace("su packetwatch adm", "su root root")
    snippet = tmp_path / "snippet"
    snippet.write_text(text)
    done = subprocess.run(["logrotate", "--debug", snippet], capture_output=True, text=True)
    assert done.returncode == 0 and "error" not in done.stderr.lower(), done.stderr


def test_stand_ins_provide_what_the_rpm_asks_for(new):
    """Nothing is missing in the list, and nothing stands there that nobody asks for."""
    asked = {name.split()[0] for name in run("rpm", "-qp", "--requires", new.rpm).splitlines()}
    asked = {name for name in asked if not name.startswith(("rpmlib(", "config("))}
    assert asked == {name.split()[0] for name in builds.PROVIDED}
