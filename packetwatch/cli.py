# SPDX-License-Identifier: Apache-2.0
"""The command line: a table of commands, and the parser made from it.

Not for how answers look (show.py, overview.py) or what goes wrong (guard.py). Only `run` imports the resident.
"""

from __future__ import annotations

import argparse
import difflib
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, Optional

from packetwatch import __version__, config, configfiles, guard, overview, show
from packetwatch.address import Prefix, parse_prefix, prefix_text
from packetwatch.client import TIMEOUT_S, Client, ControlError
from packetwatch.config import ConfigError
from packetwatch.configfiles import Inputs
from packetwatch.kinds import SECOND_NS, duration
from packetwatch.operations import DONE, FAILED, FAULTY_SETTINGS, NOT_RUNNING, USAGE
from packetwatch.sinks.records import clean

RELOAD_S = 60.0

Args = argparse.Namespace
Argument = tuple[tuple[str, ...], Mapping[str, Any]]


class Command(NamedTuple):
    """One row of the table."""

    words: str  #: as typed; the operation asked for is the same with a dot
    help: str
    arguments: Sequence[Argument]
    act: Callable[[Args], int]


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line: the usage of `run` alone fills a screen."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {clean(message)} (see {self.prog} --help)\n")


_NEVER_MEANT = "--force"  #: by who wrote something else: it shuts the operator out


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs one command; returns the exit status."""
    return guard.run(lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(argv: Sequence[str]) -> int:
    top = parser()
    if argv and argv[0].startswith("-") and argv[0] not in top._option_string_actions:
        top.error(_misplaced(argv[0].partition("=")[0]))
    args, rest = top.parse_known_args(argv)
    if rest:
        known = [flag for action in args.parser._actions for flag in action.option_strings if flag != _NEVER_MEANT]
        close = difflib.get_close_matches(rest[0].partition("=")[0], known, 1)
        args.parser.error(f"{rest[0]} is not understood" + (f"; did you mean {close[0]}?" if close else ""))
    status: int = args.command.act(args)
    return status


def _misplaced(flag: str) -> str:
    """What is wrong with a flag before the command."""
    if any(flag in names for command in COMMANDS for names, _ in command.arguments):
        return f"{flag} comes after the command: packetwatch COMMAND {flag} ..."
    return f"{flag} is not understood"


def parser() -> Parser:
    """From the table; a command of two words becomes one below a group."""
    top = Parser("packetwatch", description="Records new TCP connections and stops port scanners.", allow_abbrev=False)
    top.add_argument("--version", action="version", version=f"packetwatch {__version__}")
    below = {"": top.add_subparsers(dest="word", metavar="COMMAND", required=True)}
    for command in COMMANDS:
        group, _, word = command.words.rpartition(" ")
        if group not in below:
            own = below[""].add_parser(group, help=GROUPS[group], description=GROUPS[group], allow_abbrev=False)
            below[group] = own.add_subparsers(dest="word", metavar="COMMAND", required=True)
        one = below[group].add_parser(word, help=command.help, description=command.help, allow_abbrev=False)
        for names, options in command.arguments:
            one.add_argument(*names, **options)
        one.set_defaults(command=command, parser=one)
    return top


# arguments


def _given(*names: str, **options: Any) -> Argument:
    return names, options


def _prefix(text: str) -> str:
    try:
        return prefix_text(parse_prefix(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _prefixes(text: str) -> list[Prefix]:
    try:
        return [parse_prefix(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _block_duration(text: str) -> Any:
    return _read(lambda text: config.read("block.duration", text), text)


def _wait(text: str) -> Any:
    return _read(duration("1s", "1h").read, text)


def _span(text: str) -> Any:
    return _read(duration("1s", "3650d").read, text)


def _read(read: Callable[[str], Any], text: str) -> Any:
    try:
        return read(text)
    except config.Bad as bad:
        raise argparse.ArgumentTypeError(str(bad) + (f" ({bad.hint})" if bad.hint else "")) from None


def _flag_of(row: config.Row) -> Argument:
    """A switch may stand without its yes."""
    about = f"{row.help} {row.type[0].upper()}{row.type[1:]}; default: {row.default or 'none'}."
    bare: dict[str, Any] = {"nargs": "?", "const": "yes"} if row.kind.words == ("yes", "no") else {}
    return _given(row.flag, dest=row.key, action="append", metavar=row.name.upper(), help=_escaped(about), **bare)


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


CONFIG = _given(
    "--config", metavar="PATH", help=f"settings file, with PATH.d/*.conf beside it; default: {configfiles.MAIN}")
OUTPUT = _given("-o", "--output", choices=("text", "json"), default="text", help="form of what is printed")
SOCKET = _given("--socket", metavar="PATH", help="socket of the monitor; default: that of the settings")
PREFIX = _given("prefix", type=_prefix, metavar="PREFIX", help="ADDRESS or ADDRESS/LENGTH")
CONFIRM = _given(
    "--confirm", type=_wait, metavar="DURATION",
    help="roll it back after this time, as in 2m, unless packetwatch confirm is given; 1s to 1h")
ASKING = (SOCKET, CONFIG, OUTPUT)


# what commands do


def _inputs(args: Args, flags: Mapping[str, Sequence[str]]) -> Inputs:
    path: Optional[str] = args.config
    return Inputs(None if path is None else os.path.abspath(path), dict(os.environ), flags)


def _client(args: Args, timeout_s: float = TIMEOUT_S) -> Client:
    flags = {} if args.socket is None else {"socket": [args.socket]}
    return Client(configfiles.socket_path(_inputs(args, flags)), timeout_s)


def _asking(
    text: Callable[[Any], str],
    fields: Callable[[Args], Mapping[str, Any]] = lambda args: {},
    timeout_s: float = TIMEOUT_S,
) -> Callable[[Args], int]:
    """A command that is one request: ``fields`` of it from the arguments, its result to ``text``."""

    def act(args: Args) -> int:
        request = {"do": args.command.words.replace(" ", "."), **fields(args)}
        _print(args, _client(args, timeout_s).call(request), text)
        return DONE

    return act


def _changing(
    text: Callable[[Any], str],
    fields: Callable[[Args], Mapping[str, Any]] = lambda args: {},
    timeout_s: float = TIMEOUT_S,
) -> Callable[[Args], int]:
    """The same for a change; some can wait for their confirmation, or end the wait of another."""

    def asked(args: Args) -> Mapping[str, Any]:
        span = getattr(args, "confirm", None)
        return {**fields(args), **({} if span is None else {"confirm_s": span // SECOND_NS})}

    def act(args: Args) -> int:
        where = [(flag, path) for flag, path in (("--socket", args.socket), ("--config", args.config)) if path]
        command = "packetwatch confirm" + "".join(f" {flag} {shlex.quote(path)}" for flag, path in where)
        return _asking(lambda answer: "\n".join([text(answer), *show.waiting(answer, command)]), asked, timeout_s)(args)

    return act


def _print(args: Args, result: Any, text: Callable[[Any], str]) -> None:
    print(show.as_json(result) if args.output == "json" else text(result))


def _act_run(args: Args) -> int:
    from packetwatch import loader

    flags = _settings_given(args)
    child = loader.Loader() if _is_cold(flags) else None  # comes up while all that follows is imported
    from packetwatch import daemon  # the resident and all it needs: no other command pays for it

    return daemon.run(_inputs(args, flags), child)


def _is_cold(flags: Mapping[str, Sequence[str]]) -> bool:
    """Whether no process before has left anything to adopt. Where this errs, the start is a little slower."""
    return "LISTEN_FDS" not in os.environ and not any(map(os.path.isdir, flags.get("pin", ())))


def _settings_given(args: Args) -> dict[str, Sequence[str]]:
    given = vars(args)
    return {row.key: given[row.key] for row in config.describe() if given[row.key] is not None}


def _act_replay(args: Args) -> int:
    from packetwatch import replay, replayed  # as with run

    settings = configfiles.read(_inputs(args, _settings_given(args)))
    usual = "text" if args.output == "text" and os.isatty(1) else "json"
    form = settings.log_format if settings.log_format in ("text", "json") else usual
    local = tuple(prefix for given in args.local or () for prefix in given)
    accounts = replay.run(replay.Judging(settings, local, form), args.file, args.from_log)
    rule = replayed.rule(config.texts(settings), bool(local))
    if args.output == "json":
        print(replayed.as_json(accounts, rule))
    else:
        for line in replayed.as_text(accounts, rule):
            print(clean(line), file=sys.stderr)
    faults = [*filter(None, (each.fault for each in accounts)), *replayed.mismatches(accounts)]
    for fault in faults:
        print(f"packetwatch: {clean(fault)}", file=sys.stderr)
    return FAILED if faults else DONE


def _act_tail(args: Args) -> int:
    for line in _client(args).stream({"do": "tail"}):
        print(clean(line.decode().rstrip("\n")) if args.output == "json" else show.record(line), flush=True)
    raise ControlError("packetwatch has ended, and with it the records", exit_status=NOT_RUNNING)


def _act_check(args: Args) -> int:
    inputs = _inputs(args, {})
    files = [path for path, _ in configfiles.files(inputs.config_path, [])]
    try:
        settings, faults = configfiles.read(inputs), []
    except ConfigError as error:
        if args.output == "text":
            raise
        settings, faults = config.Settings(), error.faults
    answer = {
        "ok": not faults,
        "files": files,
        "faults": [fault._asdict() for fault in faults],
        "settings": None if faults else config.texts(settings),
    }
    _print(args, answer, lambda answer: config.dump(settings).rstrip("\n") if args.dump else show.checked(answer))
    return FAULTY_SETTINGS if faults else DONE


def _act_version(args: Args) -> int:
    _print(args, {"version": __version__}, lambda answer: f"packetwatch {__version__}")
    return DONE


def _mode_fields(args: Args) -> Mapping[str, Any]:
    if args.keep and args.mode is None:
        args.parser.error("--keep goes with a mode")
    if args.confirm is not None and args.mode != "enforce":
        args.parser.error("--confirm goes with enforce")
    return {**({} if args.mode is None else {"mode": args.mode}), **({"keep": True} if args.keep else {})}


def _list_fields(args: Args) -> Mapping[str, Any]:
    since = {} if args.since is None else {"since_s": args.since // SECOND_NS}
    return {**since, **({"would": True} if args.would else {})}


def _add_fields(args: Args) -> Mapping[str, Any]:
    seconds = None if args.duration is None else args.duration // SECOND_NS
    return {"prefix": args.prefix, "duration_s": seconds, "reason": args.reason, "force": args.force}


def _remove_fields(args: Args) -> Mapping[str, Any]:
    if (args.prefix is None) != args.all:
        args.parser.error("name either a PREFIX or --all")
    return {"all": True} if args.all else {"prefix": args.prefix}


def _confirm_fields(args: Args) -> Mapping[str, Any]:
    return {"revert": True} if args.revert else {}


def _prefix_field(args: Args) -> Mapping[str, Any]:
    return {"prefix": args.prefix}


GROUPS = {
    "block": "Sources that are blocked.",
    "allow": "Sources that are never judged or blocked.",
}

COMMANDS = (
    Command("run", "Watch and block until told to stop.", (CONFIG, *map(_flag_of, config.describe())), _act_run),
    Command("status", "Whether protection works, and what was seen.", ASKING, _asking(overview.status)),
    Command("tail", "Records as they come, until it is interrupted.", ASKING, _act_tail),
    Command(
        "reload", "Read the settings anew; with a fault in them the running ones stay.", (CONFIRM, *ASKING),
        _changing(show.reloaded, timeout_s=RELOAD_S)),
    Command(
        "confirm", "Keep the change that waits for it.",
        (_given("--revert", action="store_true", help="roll the change back at once instead"), *ASKING),
        _asking(show.confirmed, _confirm_fields, RELOAD_S)),
    Command(
        "mode", "Say which mode is in force, or change it.",
        (
            _given("mode", nargs="?", choices=("enforce", "observe"), help="the mode to change to"),
            _given("--keep", action="store_true", help="block at once what observe would have blocked"),
            CONFIRM,
            *ASKING,
        ),
        _changing(show.mode, _mode_fields)),
    Command(
        "block list", "What is blocked, by whom and until when.",
        (
            _given("--would", action="store_true", help="what observe would have blocked"),
            _given("--since", type=_span, metavar="DURATION", help="only what was blocked in this time, as in 24h"),
            *ASKING,
        ),
        _asking(show.blocks, _list_fields)),
    Command(
        "block add", "Block a source.",
        (
            PREFIX,
            _given(
                "--duration", type=_block_duration, metavar="DURATION",
                help="how long, as in 30m or forever; default: block.duration of the settings"),
            _given("--reason", default="", help="for the record"),
            _given("--force", action="store_true", help="even if it covers a source that is always allowed"),
            CONFIRM,
            *ASKING,
        ),
        _changing(show.blocked, _add_fields)),
    Command(
        "block remove", "Unblock a source, or all.",
        (
            _given("prefix", type=_prefix, metavar="PREFIX", nargs="?", help="ADDRESS or ADDRESS/LENGTH"),
            _given("--all", action="store_true", help="every source that a scan or a command has blocked"),
            *ASKING,
        ),
        _changing(show.unblocked, _remove_fields)),
    Command(
        "why", "What is known of a source, and why it is, was or was not blocked.",
        (_given("prefix", type=_prefix, metavar="ADDRESS", help="the source"), *ASKING),
        _asking(show.why, _prefix_field)),
    Command("allow list", "What is allowed, and why.", ASKING, _asking(show.allowed)),
    Command("allow add", "Allow a source.", (PREFIX, *ASKING), _changing(show.allow_added, _prefix_field)),
    Command(
        "allow remove", "Take back what allow add did.", (PREFIX, CONFIRM, *ASKING),
        _changing(show.allow_removed, _prefix_field)),
    Command(
        "check", "Find every fault in the settings.",
        (_given("--dump", action="store_true", help="print all settings as they take effect"), CONFIG, OUTPUT),
        _act_check),
    Command(
        "replay", "Judge captures or recorded connections as they would have been judged.",
        (
            _given("file", nargs="+", metavar="FILE", help="pcap or pcapng; - is standard input"),
            _given(
                "--local", action="append", type=_prefixes, metavar="ADDRESS[,ADDRESS...]",
                help="addresses of the one host that was captured; else each destination is a host of its own"),
            _given(
                "--from-log", action="store_true",
                help="the files are recorded connections: JSON lines, or what journalctl -o json prints"),
            CONFIG, OUTPUT, *map(_flag_of, config.describe()),
        ),
        _act_replay),
    Command("version", "Print the version.", (OUTPUT,), _act_version),
)
