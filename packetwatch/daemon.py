# SPDX-License-Identifier: Apache-2.0
"""The resident as a process: from settings to a loop, and out of it again. What it does stands in resident.py."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import selectors
import signal
import socket
import time
from typing import Any, Optional

from packetwatch import clock, config, configfiles, control, handover, heap, loader, lookup
from packetwatch import notify, pending, privileges, program, servers, sessions, state
from packetwatch.netlink import Monitor
from packetwatch.answers import Answers
from packetwatch.changes import Changes
from packetwatch.clock import SECOND
from packetwatch.resident import Reload, Resident, tell
from packetwatch.settings import Settings, changed, dump, needs_restart
from packetwatch.sinks import log, metrics, writer
from packetwatch.sinks.journal import JournalWriter
from packetwatch.sinks.jsonlines import JsonForm
from packetwatch.store import NoStore, PinStore, Store, SystemdStore

TICK_S = 0.35  #: how long a record may wait on an idle host
_FILES_WAIT_S = 0.2  # for the names of servers, which are read in milliseconds where disks answer
_CONFIG_STATUS = 78
_HOUR_NS = 3600 * SECOND


class StartError(Exception):
    """The resident cannot start; `hint` is the next step, `status` the exit status."""

    def __init__(self, message: str, hint: str, status: int = 1) -> None:
        super().__init__(message)
        self.hint = hint
        self.status = status


def run(inputs: configfiles.Inputs, child: Optional[loader.Loader]) -> int:
    """Runs until SIGTERM or SIGINT; returns the exit status. child: the loader, where it was started already."""
    heap.keep()
    daemon = Daemon(inputs, child)
    try:
        daemon.open()
        daemon.loop()
        return 0
    except config.ConfigError as fault:
        for each in fault.faults:
            tell(str(each))
        return _CONFIG_STATUS
    except (StartError, loader.LoadError, state.StateError, metrics.MetricsUnavailable) as fault:
        if daemon.stopping:
            return 0  # whoever stops a start may have stopped the loader first
        tell(f"{fault}; {fault.hint}" if fault.hint else str(fault))
        return getattr(fault, "status", 1)
    except control.Refused as fault:
        tell(f"{fault.error}; {fault.hint}" if fault.hint else fault.error)
        return fault.exit_status
    except OSError as fault:
        tell(f"{fault.filename or 'packetwatch'}: {fault.strerror or fault}")
        return 1
    finally:
        daemon.close()


class Daemon:
    """Opens everything in the order in which it can fail, then loops."""

    def __init__(self, inputs: configfiles.Inputs, child: Optional[loader.Loader]) -> None:
        self.inputs = inputs
        self._loader = child
        self.selector = selectors.DefaultSelector()
        self._rings = select.epoll()  #: edge-triggered: else a stream of records would never let the loop wait
        self.stopping = self.reloading = False
        self.under_systemd = "NOTIFY_SOCKET" in os.environ
        self._watchdog_ns = notify.watchdog_interval_ns()
        self._feed_ns = (self._watchdog_ns or _HOUR_NS) // 4
        self._fed_ns = self._next_ns = self._awake_ns = 0
        self._told_status = ""
        self._look = True
        self._look_fault = ""  #: why interfaces and lists could not be followed; it is tried again
        self._writable: set[int] = set()
        self._server: Optional[control.Server] = None
        self._exporter: Optional[metrics.Exporter] = None
        self._lookup: Optional[lookup.Lookup] = None
        self._answers_kept: dict[str, Any] = {}
        self._answers_fault = ""
        self._signals()

    def open(self) -> None:
        settings, fault = self._settings()
        self._begun_with = settings
        directory = state.Directory(settings.state)
        saved, aside = directory.load()
        self.store = self._store(settings)
        opened = self._open_kernel(settings)
        self.resident = Resident(settings, opened, self.store, directory)
        if fault:
            self.resident.reload = Reload(False, 0, fault)
        if "mode" in self.inputs.flags:
            saved = saved._replace(mode=None)  # what is said on this command line is newer
        self.resident.restore(saved)
        waiting, lost = directory.load_as(pending.FILE, pending.decode)
        self.changes = Changes(self.resident, self._take_back)
        if self.changes.restore(waiting) and waiting is not None and waiting.settings is not None:
            settings = self._set_back(waiting.settings)
        for text in filter(None, (aside, lost)):
            tell(text)
        self._open_outside(settings)
        directory.hold()
        self._start(opened)
        self.changes.settle()

    # start

    def _settings(self) -> tuple[Settings, str]:
        """The settings, or the last good ones and what is wrong with these."""
        try:
            return configfiles.read(self.inputs), ""
        except config.ConfigError as fault:
            if not self.under_systemd:
                raise
            good = self._last_good()
            if good is None:
                raise
            for each in fault.faults:
                tell(str(each))
            text = "faulty configuration: running with the last good settings"
            tell(text)
            return good, text

    def _last_good(self) -> Optional[Settings]:
        try:
            kept = state.Directory(configfiles.state_path(self.inputs)).load_inputs()
            if not kept:
                return None
            settings, left_out = configfiles.kept("last-good.json", str(kept["settings"]))
            for fault in left_out:
                tell(f"left out, as this version does not know it: {fault}")
            return settings
        except (state.StateError, config.ConfigError, KeyError):
            return None

    def _store(self, settings: Settings) -> Store:
        if settings.pin:
            try:
                return PinStore(settings.pin)
            except OSError as fault:
                raise StartError(f"pin folder {settings.pin}: {fault.strerror}", "name one below /sys/fs/bpf") from None
        if self.under_systemd:
            return SystemdStore()
        return NoStore()

    def _open_kernel(self, settings: Settings) -> handover.Opened:
        parameters = program.Parameters(
            settings.table_trackers, settings.table_blocks, settings.ring_size, settings.loader_headers
        )

        def load() -> handover.Fresh:
            missing = privileges.missing()
            if missing:
                raise StartError(
                    f"not permitted: {', '.join(missing)} missing", "run as root (sudo), or as the service does", 4
                )
            loaded = self._loader.load(parameters) if self._loader is not None else loader.load(parameters)
            return handover.Fresh(loaded.prog, loaded.maps, loaded.handshakes, loaded.refused)

        try:
            return handover.open_kernel(parameters, self.store, load)
        finally:
            if self._loader is not None:
                self._loader.close()

    def _open_outside(self, settings: Settings) -> None:
        answers = Answers(self.resident, self.changes, self.reload, self._outside)
        self._server = control.Server(settings.socket, answers)
        self._server.register(self.selector)
        self.resident.drain.audience = self._server
        self._log = self._open_log(settings)
        self._open_lookup(settings)
        try:
            self._exporter = metrics.Exporter(self.snapshot)
            self._exporter.listen(settings.metrics_listen)
        except metrics.MetricsUnavailable as fault:
            if self._exporter is not None:
                raise
            tell(f"{fault}; {fault.hint}")
        self._monitor = Monitor()
        self._sessions = sessions.Sessions()
        self.selector.register(self._monitor.fileno(), selectors.EVENT_READ, self._on_netlink)
        if self._sessions.fileno() is not None:
            self.selector.register(self._sessions.fileno() or 0, selectors.EVENT_READ, self._on_sessions)
        for ring in self.resident.kernel.rings:
            self._rings.register(ring.fd, select.EPOLLIN | select.EPOLLET)
        self.selector.register(self._rings, selectors.EVENT_READ, lambda events: self._rings.poll(0))

    def _open_lookup(self, settings: Settings) -> None:
        answers = servers.decoded(self.resident.directory.load_servers())
        self._answers_kept = servers.encoded(answers)
        self._lookup = lookup.Lookup(answers)
        self._lookup.want(servers.wanted(settings))
        self.selector.register(self._lookup.fileno(), selectors.EVENT_READ, self._on_lookup)
        self._lookup.start(_FILES_WAIT_S)
        self.resident.servers = self._lookup.servers()

    def _open_log(self, settings: Settings) -> str:
        """The form in force."""
        form = log.choose_form(settings.log_format, os.environ)
        to: Any = JournalWriter() if form == "journal" else writer.open_stream()
        sinks = [log.LogSink(form, to, settings.log_connections, settings.log_anonymize)]
        if settings.log_file:
            sinks.append(self._open_file(settings))
        self.resident.drain.sinks = sinks
        self.resident.drain.tail_form = JsonForm(settings.log_anonymize)
        return form

    @staticmethod
    def _open_file(settings: Settings) -> log.LogSink:
        try:
            file = writer.FileWriter(settings.log_file)
        except OSError as fault:
            raise StartError(f"log.file {settings.log_file}: {fault.strerror}", "choose a writable path") from None
        return log.LogSink("json", file, settings.log_connections, settings.log_anonymize)

    def _start(self, opened: handover.Opened) -> None:
        r = self.resident
        r.apply_settings()
        r.attachments.mends = self._watchdog_ns is None
        r.prepare(opened, self._sessions.hosts() if r.settings.allow_sessions else set())
        privileges.keep(privileges.NEEDED)
        if self._exporter is not None:
            self._exporter.serve()
        self._look = False
        if r.reload.ok or r.reload.differs:
            self._keep_settings(r.settings)
        r.say("start", mode=r.mode, message=self._greeting())
        r.drain.run()
        self._awake_ns = clock.boot_ns() + SECOND
        notify.ready(self._status())

    def _greeting(self) -> str:
        r = self.resident
        watched = ", ".join(a.name for a in r.attachments.by_index.values())
        reasons = sorted({entry.reason for entry in r.lists.allow_entries()})
        never = ", ".join(reasons) or "nobody"
        will = "are" if watched else "will be"
        how = f"scanners {will} blocked" if r.mode == "enforce" else "nothing is blocked"
        watched = watched or "no interface yet"
        stop = "" if self.under_systemd else "; Ctrl-C stops it"
        return f"watching {watched}; mode {r.mode}: {how}; never blocked: {never}; {self.store.keeps}{stop}"

    def _keep_settings(self, settings: Settings) -> None:
        try:
            self.resident.directory.save_inputs({"settings": dump(settings)})
        except OSError as fault:
            tell(f"the settings could not be kept in {settings.state}: {fault.strerror}")

    # loop

    def loop(self) -> None:
        while not self.stopping:
            for key, events in self.selector.select(self._pause_s()):
                key.data(events)
            if self.resident.drain.run():
                self._awake_ns = clock.boot_ns() + SECOND
                self._next_ns = min(self._next_ns, self._awake_ns)
            self._wait_for_readers()
            if self.reloading:
                self._reload_on_signal()
            if clock.boot_ns() >= self._due_ns():
                self._keep_house()
            if self._look:
                self._look_around()

    def _due_ns(self) -> int:
        """When housekeeping is due: a change that waits for its confirmation has come since that was last said."""
        return min(self._next_ns, self.changes.due_ns or self._next_ns)

    def _pause_s(self) -> float:
        """Until housekeeping, or the next look where records come: the kernel half wakes only for the first."""
        now = clock.boot_ns()
        left, drain = max(0, self._due_ns() - now) / SECOND, self.resident.drain
        if drain.has_waiting():
            return 0.0  # said since the last batch
        # A record that came while others were being read has woken nobody.
        return min(TICK_S, left) if now < self._awake_ns or drain.has_backlog() else left

    def _wait_for_readers(self) -> None:
        """A sink with something left is asked for as soon as its reader takes more."""
        wanted = {fd for fd in (sink.waits_on() for sink in self.resident.drain.sinks) if fd >= 0}
        for fd in self._writable - wanted:
            self.selector.unregister(fd)
        for fd in wanted - self._writable:
            self.selector.register(fd, selectors.EVENT_WRITE, lambda events: self.resident.drain.flush())
        self._writable = wanted

    def _forget_readers(self) -> None:
        """Before a sink's descriptor may be closed."""
        for fd in self._writable:
            self.selector.unregister(fd)
        self._writable = set()

    def _keep_house(self) -> None:
        """Once a second, and a little less often at rest."""
        now = clock.boot_ns()
        self.resident.housekeeping()
        self.changes.expire(now)
        self.resident.drain.flush()
        if self._server is not None:
            self._server.expire(now)
        ailments = self.resident.ailments()
        if ailments or self._look_fault or self.resident.attachments.taken:
            self._look = True  # netlink may not have told, yet or ever
        if not ailments and self._watchdog_ns is not None and now - self._fed_ns >= self._feed_ns:
            notify.watchdog()
            self._fed_ns = now
        text = ailments[0] if ailments else self._status()
        if text != self._told_status:
            notify.status(text)
            self._told_status = text
        self._next_ns = self.resident.next_look_ns(now, self._feed_ns)

    def _status(self) -> str:
        r = self.resident
        watched = ", ".join(f"{a.name} ({a.mode})" for a in r.attachments.by_index.values())
        faulty = "" if r.reload.ok else "; " + r.reload.error.partition(":")[0]
        return f"{r.mode}, " + (f"watching {watched}" if watched else "waiting for an interface") + faulty

    def _look_around(self) -> None:
        self._look = False
        try:
            self.resident.look_around(self._sessions.hosts() if self.resident.settings.allow_sessions else set())
            self._look_fault = ""
        except OSError as fault:
            text = f"interfaces and lists could not be followed: {fault.strerror or fault}"
            if text != self._look_fault:
                tell(text)
            self._look_fault = text

    def _on_netlink(self, events: int) -> None:
        self._look = bool(self._monitor.drain()) or self._look

    def _on_sessions(self, events: int) -> None:
        self._look = self._sessions.drain() or self._look

    def _on_lookup(self, events: int) -> None:
        assert self._lookup is not None
        self._lookup.drain()
        for text in self._lookup.news():
            tell(text)
        self.resident.servers = self._lookup.servers()
        self._look = True
        answers = servers.encoded(self._lookup.answers())
        if answers != self._answers_kept:
            self._keep_answers(answers)

    def _keep_answers(self, answers: dict[str, Any]) -> None:
        directory, fault = self.resident.directory, ""
        try:
            directory.save_servers(answers)
            self._answers_kept = answers
        except OSError as error:
            fault = f"addresses of servers cannot be kept in {directory.path}: {error.strerror}"
        if fault and fault != self._answers_fault:
            tell(fault)
        self._answers_fault = fault

    # signals

    def _signals(self) -> None:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        self._wakeup = (ours, theirs)
        signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        self.selector.register(ours, selectors.EVENT_READ, lambda events: ours.recv(64))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_hangup)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)

    def _on_stop(self, *_: object) -> None:
        self.stopping = True

    def _on_hangup(self, *_: object) -> None:
        self.reloading = True

    def _reload_on_signal(self) -> None:
        self.reloading = False
        try:
            self.reload()
        except control.Refused as fault:
            tell(f"reload failed, the running settings stay: {fault.error}")

    # reload

    def reload(self) -> dict[str, Any]:
        """Atomic: the new settings, or on any fault the old ones and Refused with all faults."""
        notify.reloading("reloading")
        try:
            return self._reload()
        finally:
            notify.ready(self._status())

    def _reload(self) -> dict[str, Any]:
        r = self.resident
        try:
            new = configfiles.read(self.inputs)
            self._take(new)
        except config.ConfigError as fault:
            with contextlib.suppress(StartError):
                self._reopen()  # a file that was rotated must not go on growing
            self._refuse_reload("\n".join(map(str, fault.faults)), _CONFIG_STATUS)
        except metrics.MetricsUnavailable as fault:
            self._refuse_reload(f"{fault}; {fault.hint}", 1)
        except StartError as fault:
            self._refuse_reload(f"{fault}; {fault.hint}", 1)
        except OSError as fault:
            self._refuse_reload(f"{fault.filename or 'the lists'}: {fault.strerror}", 1)
        if self._lookup is not None:
            self._lookup.want(servers.wanted(new), again=True)
        r.reload = Reload(True, time.time_ns(), "", tuple(self._pending))
        self._keep_settings(new)
        return {"changed": self._changed, "restart_needed": list(self._pending)}

    def _refuse_reload(self, text: str, status: int) -> None:
        r = self.resident
        r.reload = r.reload._replace(ok=False, error="the last reload failed: " + text.splitlines()[0])
        raise control.Refused(text, "the running settings stay in force", status)

    def _take(self, new: Settings) -> None:
        """What can fail comes first; each step has an undo in the old settings."""
        r, old = self.resident, self.resident.settings
        self._changed, self._pending = changed(old, new), needs_restart(self._begun_with, new)
        if self._exporter is not None:
            self._exporter.listen(new.metrics_listen)
        try:
            r.settings = r.lists.settings = new
            r.apply_lists()
            self._take_log(old, new)
            r.budget.daily_bytes = new.log_daily_size
            r.apply_settings()
        except (OSError, StartError):
            r.settings = r.lists.settings = old
            r.apply_lists()
            r.apply_settings()
            if self._exporter is not None:
                self._exporter.listen(old.metrics_listen)
            raise
        self._look_around()

    def _take_back(self, before: Settings) -> None:
        """The settings before a reload; where the log or the metrics cannot have theirs, the rest. Raises OSError."""
        r, files = self.resident, self.resident.settings
        settings = pending.rolled_back(files, before)
        try:
            self._take(settings)
        except (StartError, metrics.MetricsUnavailable) as fault:
            tell(f"{fault}; log and metrics stay as they are")
            same = {name: getattr(files, name) for name in ("log_file", "log_format", "metrics_listen")}
            self._take(dataclasses.replace(settings, **same))
        self._note_difference(files)
        self._keep_settings(r.settings)

    def _set_back(self, before: Settings) -> Settings:
        """The same at a start, before anything is open."""
        r, files = self.resident, self.resident.settings
        r.settings = r.lists.settings = pending.rolled_back(files, before)
        r.budget.daily_bytes = r.settings.log_daily_size
        self._note_difference(files)
        return r.settings

    def _note_difference(self, files: Settings) -> None:
        r = self.resident
        differs = tuple(changed(r.settings, files))
        text = f"the last reload was rolled back: the files differ in {', '.join(differs)}" if differs else ""
        error = "; ".join(filter(None, (r.reload.error, text)))
        r.reload = r.reload._replace(ok=not error, error=error, differs=differs)

    def _take_log(self, old: Settings, new: Settings) -> None:
        sinks = self.resident.drain.sinks
        self._forget_readers()
        if old.log_file != new.log_file:
            fresh = [self._open_file(new)] if new.log_file else []
            for sink in sinks[1:]:
                sink.close(clock.boot_ns())
            self.resident.drain.count_refused()
            sinks[1:] = fresh
        else:
            self._reopen()
        if old.log_format != new.log_format:
            form = log.choose_form(new.log_format, os.environ)
            to: Any = JournalWriter() if form == "journal" else writer.open_stream()
            sinks[0].close(clock.boot_ns())
            self.resident.drain.count_refused()
            sinks[0] = log.LogSink(form, to, new.log_connections, new.log_anonymize)
            self._log = form
        for sink in self.resident.drain.sinks:
            sink.configure(new.log_connections, new.log_anonymize)
        self.resident.drain.tail_form = JsonForm(new.log_anonymize)

    def _reopen(self) -> None:
        for sink in self.resident.drain.sinks[1:]:
            assert isinstance(sink.writer, writer.FileWriter)
            try:
                sink.writer.reopen()
            except OSError as fault:
                place = self.resident.settings.log_file
                raise StartError(f"log.file {place}: {fault.strerror}", "choose a writable path") from None
            finally:
                self.resident.drain.count_refused()

    # what others see

    def _outside(self) -> dict[str, Any]:
        addresses = self._exporter.addresses() if self._exporter is not None else []
        return {
            "log_format": self._log,
            "metrics": [f"[{h}]:{p}" if ":" in h else f"{h}:{p}" for h, p in addresses],
            "watchdog": {"enabled": self._watchdog_ns is not None, "interval_s": (self._watchdog_ns or 0) / SECOND},
            "keeps": self.store.keeps,
            "program": self.resident.digest,
            "names": self._lookup.names() if self._lookup is not None else [],
        }

    def snapshot(self) -> metrics.Snapshot:
        """For a scrape; called from the metrics thread, which only reads."""
        r = self.resident
        total = r.ledger.total()
        return metrics.Snapshot(
            accounts=r.ledger.accounts(),
            total=total,
            attached={n: n in {a.name for a in r.attachments.by_index.values()} for n in r.attachments.wanted},
            modes={a.name: a.mode for a in r.attachments.by_index.values()},
            mode=r.mode,
            blocks={"scan": total.counters.blocked, "manual": r.blocks_by_hand},
            blocked=r.blocked_now(),
            tables=r.tables(),
            sinks={sink.name: (sink.written, sink.refused) for sink in r.drain.sinks},
            reload_ok=r.reload.ok,
            reload_time_s=r.reload.wall_ns / SECOND,
            program=r.digest,
        )

    # the end

    def close(self) -> None:
        """A stop detaches; a failed start under systemd leaves what the store holds."""
        resident = getattr(self, "resident", None)
        if resident is not None and self.stopping:
            notify.stopping("stopping")
            if not self.store.outlasts:
                resident.attachments.detach_all()
                resident.handshakes.detach()
            resident.finish()
            self.store.end()
        if self._loader is not None:
            self._loader.close()
        if self._lookup is not None:
            self._lookup.close()
        if self._exporter is not None:
            self._exporter.close()
        if self._server is not None:
            self._server.close()
