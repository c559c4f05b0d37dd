"""Check an audit log: whether its lines are those that were written.

Also `python -m runtime.audit`.
"""

from __future__ import annotations

from importlib import import_module

if __name__ == "__main__":
    # The imports below take a while.
    import_module("flawline.interrupts").end_quietly()

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from flawline.commands import program_of
from flawline.runtime.audit.bundle_log import outside_change
from flawline.runtime.audit.check import AuditReport, check_log
from flawline.runtime.audit.entry import Entry, changes
from flawline.runtime.audit.log import AUDIT_LOG, AuditError
from flawline.runtime.bundle_files import require_bundle_folder
from flawline.runtime.command_parser import Parser, path_argument, text_argument
from flawline.runtime.console import run_command, terminal_line

EXAMPLES = (
    "flawline audit bundles/part",
    "flawline audit bundles/part/audit.jsonl --list",
    "flawline audit audit.jsonl --contains HASH    that was noted earlier",
)


def _audit(args: argparse.Namespace) -> None:
    path: Path = args.log
    bundle = None
    if path.is_dir():
        require_bundle_folder(path)
        bundle = path
        path = path / AUDIT_LOG
        if not path.exists():
            raise AuditError(
                f"bundle {bundle} has no audit log: it was built by an older version, or the log "
                f"was removed; the next change begins one"
            )
    report = check_log(path)
    if args.contains is not None and args.contains not in report.hashes:
        raise AuditError(
            f"audit log {path}: no line has the hash {args.contains}, so that the log was cut or "
            f"replaced after it was noted; compare it with a copy"
        )
    if args.list:
        for entry in report.entries:
            print(terminal_line(_describe(entry)))
    for line in _summary(path, report):
        print(terminal_line(line))
    outside = None if bundle is None else outside_change(bundle)
    if outside is not None:
        print(terminal_line(f"note: {outside}"))


def _describe(entry: Entry) -> str:
    """Describe an entry in one line."""
    line = f"{entry.time} {entry.user}@{entry.host} {entry.what}"
    differences = list(changes(entry.old or {}, entry.new or {}))
    if differences:
        line += ": " + ", ".join(differences)
    if entry.note is not None:
        line += f" ({entry.note})"
    return line


def _summary(path: Path, report: AuditReport) -> list[str]:
    counts = Counter(entry.what for entry in report.entries)
    total = len(report.entries)
    line = f"{path}: ok, {total} {'entry' if total == 1 else 'entries'}"
    if report.entries:
        listed = ", ".join(f"{what} {count}" for what, count in counts.items())
        line += f" from {report.entries[0].time} to {report.entries[-1].time} ({listed})"
    lines = [line]
    if report.hashes:
        lines.append(f"last hash {report.hashes[-1]}")
    if report.cut:
        lines.append(
            "note: the last line was cut off while it was written; the next change adds a line "
            "that says so"
        )
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=program_of("audit"),
        description="Check that each line of an audit log follows the line before it, and print "
        "the hash of the last one.",
        examples=EXAMPLES,
    )
    parser.add_argument("log", type=path_argument, help="the log, or a bundle with one")
    parser.add_argument("--list", action="store_true", help="print each change in one line")
    parser.add_argument(
        "--contains",
        type=text_argument,
        metavar="HASH",
        help="also require the line of this hash, which was noted earlier and elsewhere",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, or those of the process; return its exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: _audit(args))


if __name__ == "__main__":
    sys.exit(main())
