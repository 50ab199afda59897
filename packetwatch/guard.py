# SPDX-License-Identifier: Apache-2.0
"""Around every command: whatever goes wrong becomes one line and an exit status, never a traceback."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence

from packetwatch.config import ConfigError
from packetwatch.configfiles import TRACE
from packetwatch.operations import FAILED, FAULTY_SETTINGS, Refused
from packetwatch.sinks.records import clean

INTERRUPTED, PIPE_CLOSED = 130, 141  # 128 + SIGINT, 128 + SIGPIPE, as shells have it


def run(act: Callable[[], int]) -> int:
    """Acts; returns the exit status. Nothing gets past it."""
    _prepare_streams()
    try:
        status = act()
        sys.stdout.flush()
        return status
    except SystemExit as end:
        return _flushed(end.code if isinstance(end.code, int) else FAILED)
    except KeyboardInterrupt:
        return _flushed(INTERRUPTED)
    except ConfigError as error:
        return _tell_faults(error)
    except Refused as refused:
        return _tell(refused.error, refused.hint, refused.details, refused.exit_status)
    except BrokenPipeError:
        _give_up_stdout()
        return PIPE_CLOSED
    except OSError as error:
        _give_up_stdout()
        subject = f"{error.filename}: " if error.filename else ""
        return _tell(f"{subject}{error.strerror or error}", "", (), FAILED)
    except Exception as error:
        return _tell_internal(error)


def _prepare_streams() -> None:
    """Streams that are closed are replaced, so that printing never fails for that; no encoding fails either."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def _tell(error: str, hint: str, details: Sequence[str], status: int) -> int:
    """One line: what, and the next step; further lines where there are more faults than one."""
    first, *rest = error.splitlines() or [""]
    lines = [f"packetwatch: {clean(first)}", *map(clean, rest), *map(clean, details)]
    lines[-1] += f" ({clean(hint)})" if hint else ""
    return _flushed(status, *lines)


def _tell_faults(error: ConfigError) -> int:
    count = len(error.faults)
    total = f"packetwatch: {count} fault{'s' if count > 1 else ''} in the settings"
    return _flushed(FAULTY_SETTINGS, *(clean(str(fault)) for fault in error.faults), total)


def _tell_internal(error: Exception) -> int:
    if os.environ.get(TRACE):
        traceback.print_exc()
    first = (str(error).splitlines() or [""])[0]
    hint = f"a fault of packetwatch; {TRACE}=1 shows where"
    return _tell(f"internal error: {type(error).__name__}: {first}", hint, (), FAILED)


def _flushed(status: int, *lines: str) -> int:
    """What was printed goes out before what is told; where neither can be written, the status still tells."""
    try:
        sys.stdout.flush()
    except OSError:
        _give_up_stdout()
        status = status or FAILED
    try:
        if lines:
            print(*lines, sep="\n", file=sys.stderr, flush=True)
    except OSError:
        pass
    return status


def _give_up_stdout() -> None:
    """Python flushes once more at its end, and would complain."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        pass
