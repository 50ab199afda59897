# SPDX-License-Identifier: Apache-2.0
"""What ships for Prometheus and Grafana: it is valid, alerts fire and stay silent, and all that is named exists.

Not for the metrics themselves: see test_metrics.py.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from packetwatch import cli, config
from packetwatch.metricnames import DROP_REASONS, METRICS, MODES, TABLES
from packetwatch.sinks import scrapes
from packetwatch.sinks.ledger import RING

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "monitoring/prometheus/packetwatch.rules.yml"
SCRAPE = ROOT / "monitoring/prometheus/scrape.yml"
RULE_TESTS = sorted(ROOT.glob("monitoring/prometheus/*.test.yml"))
PAGE = ROOT / "docs/monitoring.md"

GROUPS = yaml.safe_load(RULES.read_text())["groups"]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"] if "alert" in rule}
RECORDS = {rule["record"]: rule for group in GROUPS for rule in group["rules"] if "record" in rule}
GROUP_TESTS = [group for path in RULE_TESTS for group in yaml.safe_load(path.read_text())["tests"]]
BOARD = json.loads((ROOT / "monitoring/grafana/packetwatch.json").read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
VARIABLES = {variable["name"]: variable for variable in BOARD["templating"]["list"]}

#: Not in the dashboard, and why.
LEFT_OUT = {"conn_count_total": "the alias of packetwatch_syns_total, for dashboards of the origin"}

#: What a scrape finds: name -> labels.
EXPOSED = {
    sample.name: set(sample.labels)
    for family in scrapes.registry(lambda: {m.name: [(("",) * len(m.labels), 0)] for m in METRICS}).collect()
    for sample in family.samples
}
OURS = {name for name in EXPOSED if not name.startswith("process_")}
KNOWN = {
    **EXPOSED,
    **{name: set() for name in RECORDS},
    "up": set(),
    "node_systemd_unit_state": {"name", "state", "type"},
}
TARGET = {"job", "instance"}  #: labels that Prometheus gives every sample

#: What a matcher may ask a label to equal.
WORDS = {
    "job": {"packetwatch"},
    "mode": set(MODES),
    "name": {path.name for path in ROOT.glob("systemd/*.service")},
    "reason": {*DROP_REASONS, "manual"},
    "state": {"active", "activating", "deactivating", "failed", "inactive", "reloading"},  # node_exporter's
    "table": set(TABLES),
    "where": {RING},
}

# PromQL, as far as names go

TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|\[[^]]*\]|[A-Za-z_:][\w:]*|\d[\w.]*|[=!<>~]+|\S')
LISTS = {"by", "without", "on", "ignoring", "group_left", "group_right"}
WORD_OPERATORS = {"and", "or", "unless", "bool", "offset"}


def names(expression):
    """([(metric, {label: (operator, value)})], labels of by, on and the like) of an expression."""
    tokens = TOKEN.findall(expression)
    selectors, labels = [], set()
    at = 0
    while at < len(tokens):
        token, rest = tokens[at], tokens[at + 1:]
        at += 1
        if token in LISTS and rest[:1] == ["("]:
            end = rest.index(")")
            labels.update(set(rest[1:end]) - {","})
            at += end + 1
        elif re.match("[A-Za-z_:]", token) and token not in WORD_OPERATORS | LISTS:
            if rest[:1] == ["{"]:
                end = rest.index("}")
                selectors.append((token, matchers(rest[1:end])))
                at += end + 1
            elif rest[:1] != ["("] and not LISTS & set(rest[:1]):  # else a function or an aggregation
                selectors.append((token, {}))
        else:
            assert token != "{", f"a selector without a metric's name: {expression}"
    return selectors, labels


def matchers(tokens):
    found = [token for token in tokens if token != ","]
    return {found[i]: (found[i + 1], found[i + 2].strip('"')) for i in range(0, len(found), 3)}


def metrics_of(expression):
    return {metric for metric, _ in names(expression)[0]}


def test_names_are_read():
    expression = (
        'sum by (job, a) (rate(x_total{k="v,}",l=~"a|b"}[5m] offset 1d)) > bool 0 and on (b) '
        'y:z * on (c) group_left (d) w or topk(3, max without (e) (v)) / 1e3 unless u{} - Inf_total'
    )
    selectors, labels = names(expression)
    assert [metric for metric, _ in selectors] == ["x_total", "y:z", "w", "v", "u", "Inf_total"]
    assert selectors[0][1] == {"k": ("=", "v,}"), "l": ("=~", "a|b")}
    assert labels == {"job", "a", "b", "c", "d", "e"}


def filled(query):
    """A query of the dashboard as Grafana would send it."""
    query = query.replace("$__rate_interval", "5m")
    return re.sub(r"\$(\w+)", lambda match: VARIABLES[match[1]]["allValue"], query)


TARGETS = [
    (f"{panel['title']} {target['refId']}", filled(target["expr"]), target.get("legendFormat", ""))
    for panel in PANELS
    for target in panel["targets"]
]
NOTES = [(note["name"], filled(note["expr"]), note["textFormat"])
         for note in BOARD["annotations"]["list"] if "expr" in note]
QUERIES = {variable: re.fullmatch(r"label_values\((.+), (\w+)\)", VARIABLES[variable]["query"]["query"])
           for variable in ("job", "instance", "interface")}
EXPRESSIONS = [
    *((name, rule["expr"]) for name, rule in {**ALERTS, **RECORDS}.items()),
    *((title, expression) for title, expression, _ in TARGETS + NOTES),
    *((f"variable {name}", filled(query[1])) for name, query in QUERIES.items()),
]


def promtool(*arguments):
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def both(cases):
    return {"argvalues": cases, "ids": [case[0] for case in cases]}


# every expression


@pytest.mark.parametrize(("name", "expression"), **both(EXPRESSIONS))
def test_what_is_named_exists(name, expression):
    selectors, labels = names(expression)
    assert selectors
    for metric, asked in selectors:
        assert metric in KNOWN
        assert set(asked) <= KNOWN[metric] | TARGET, metric
        assert all(value in WORDS[label] for label, (operator, value) in asked.items() if operator == "="), asked
    assert labels <= TARGET.union(*(KNOWN[metric] for metric, _ in selectors))


def test_expressions_are_valid(tmp_path):
    rules = [{"record": f"expression:{number}", "expr": expression}
             for number, (_, expression) in enumerate(EXPRESSIONS)]
    path = tmp_path / "expressions.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", path)


# alerts


def test_rules_are_valid():
    promtool("check", "rules", "--lint-fatal", RULES)


@pytest.mark.parametrize("path", RULE_TESTS, ids=lambda path: path.name)
def test_rules_do_what_they_should(path):
    promtool("test", "rules", path)


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_fires_and_stays_silent(alert):
    """Silent while there is all that it looks at: without a sample there is nothing to be silent about."""
    fires, silent = [], []
    for group in GROUP_TESTS:
        there = set().union(*(metrics_of(each["series"]) for each in group["input_series"]))
        there |= {name for name, rule in RECORDS.items() if metrics_of(rule["expr"]) <= there}
        for check in group["alert_rule_test"]:
            if check["alertname"] == alert:
                (fires if check["exp_alerts"] else silent).append(metrics_of(ALERTS[alert]["expr"]) <= there)
    assert fires and any(silent)


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_what_to_do(alert):
    rule = ALERTS[alert]
    summary, description = rule["annotations"]["summary"], rule["annotations"]["description"]
    assert alert.startswith("Packetwatch") and rule["labels"]["severity"] in ("critical", "warning", "info")
    assert len(re.sub(r"\{\{.*?\}\}", "", summary)) < 80 and not summary.endswith(".") and description.endswith(".")
    commands = re.findall("`([^`]+)`", description)
    assert commands
    for command in commands:
        name, *words = shlex.split(command.replace("ADDRESS", "192.0.2.1"))
        if name == "packetwatch":
            cli.parser().parse_args(words)
    keys = {row.key for row in config.describe()}
    assert {f"{section}.{name}" for name, section in re.findall(r"(\w+) in \[(\w+)\]", description)} <= keys


def test_the_page_lists_every_alert():
    rows = dict(re.findall(r"^\| `(Packetwatch\w+)` \| (\w+) \|", PAGE.read_text(), re.M))
    assert rows == {name: rule["labels"]["severity"] for name, rule in ALERTS.items()}


# the dashboard


def test_the_dashboard_shows_every_metric():
    shown = set().union(*(metrics_of(expression) for _, expression, _ in TARGETS))
    assert OURS - shown == set(LEFT_OUT)
    assert {"process_resident_memory_bytes", "process_cpu_seconds_total", "up"} <= shown


def test_the_dashboard_is_nobodys_own():
    """It can be imported anywhere, and again: a uid of its own, no id, the data source is chosen."""
    assert BOARD["uid"] == "packetwatch" and BOARD["id"] is None and BOARD["schemaVersion"] >= 39
    assert VARIABLES["datasource"]["type"] == "datasource" and VARIABLES["datasource"]["query"] == "prometheus"
    sources = {str(each) for each in walk(BOARD, "datasource")}
    ours = {"type": "prometheus", "uid": "${datasource}"}
    assert sources == {str(ours), str({"type": "grafana", "uid": "-- Grafana --"})}
    asked = [*PANELS, *(target for panel in PANELS for target in panel["targets"]), *(VARIABLES[v] for v in QUERIES)]
    assert all(each["datasource"] == ours for each in asked)


def walk(value, key):
    """Everything below that key, wherever it stands."""
    if isinstance(value, dict):
        yield from (value[each] for each in value if each == key)
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(each, key)


def test_rows():
    rows = [panel["title"] for panel in BOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Protection", "Connections by fate", "Scans and blocks", "Losses", "Tables", "Process"]
    assert BOARD["panels"] == sorted(BOARD["panels"], key=lambda p: (p["gridPos"]["y"], p["gridPos"]["x"]))


def test_panels_are_told_apart():
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    assert len({panel["title"] for panel in BOARD["panels"]}) == len(BOARD["panels"])


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_panel(panel):
    assert panel["title"] and panel["description"].endswith((".", "`"))
    assert panel["fieldConfig"]["defaults"]["unit"]
    letters = [target["refId"] for target in panel["targets"]]
    assert letters and len(set(letters)) == len(letters)


def test_panels_do_not_overlap():
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in BOARD["panels"])
        for x, y in itertools.product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        )
    ]
    assert len(set(cells)) == len(cells)
    assert set(cells) == set(itertools.product(range(24), range(max(y for _, y in cells) + 1)))  # nor leave a hole


@pytest.mark.parametrize(("name", "expression", "legend"), **both(TARGETS + NOTES))
def test_legends_have_labels(name, expression, legend):
    labels = TARGET.union(*(KNOWN[metric] for metric in metrics_of(expression)))
    assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= labels


@pytest.mark.parametrize("variable", QUERIES)
def test_variables(variable):
    query, label = QUERIES[variable].groups()
    (metric, _), = names(query)[0]
    assert label == variable and label in KNOWN[metric] | TARGET
    used = [expression for panel in PANELS for expression in walk(panel, "expr") if f"${variable}" in expression]
    assert used


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_query_heeds_the_host(panel):
    for expression in walk(panel, "expr"):
        for metric, asked in names(expression)[0]:
            assert asked["job"] == ("=~", "$job") and asked["instance"] == ("=~", "$instance"), metric
            if "interface" in KNOWN[metric]:
                assert asked["interface"] == ("=~", "$interface"), metric


# scraping


def test_scrape_is_valid():
    assert "is valid prometheus config" in promtool("check", "config", SCRAPE)


def test_scrape_goes_with_the_rules_and_the_settings():
    scrape = yaml.safe_load(SCRAPE.read_text())
    assert scrape["rule_files"] == [RULES.name]
    assert WORDS["job"] <= {job["job_name"] for job in scrape["scrape_configs"]}
    dropped = [each["regex"] for job in scrape["scrape_configs"] for each in job.get("metric_relabel_configs", ())]
    assert dropped == list(LEFT_OUT)


@pytest.mark.parametrize("path", [SCRAPE, PAGE], ids=lambda path: path.name)
def test_settings_shown_are_good(path):
    text = path.read_text()
    lines = re.findall(r"^(?:#   |    )(\[\w+\]|[a-z]+ = .+)$", text, re.M)
    settings = config.load([(path.name, "\n".join(lines))], {}, {})
    assert settings.metrics_listen == (("10.0.0.5", 9773),) and settings.allow
    assert config.texts(config.Settings())["metrics.listen"] in text
