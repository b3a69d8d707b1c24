"""The command ``write-panel``: pool the readings of all methods, and give each a green, amber or red light."""

import argparse
from pathlib import Path

import pandas as pd

from cryon2n import files, log, pooling
from cryon2n.hallucination import READING_COLUMNS
from cryon2n.hallucination_lights import PANEL_COLUMNS, findings, panel_rows


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--readings", type=Path, nargs="+", required=True, metavar="TSV", help="of probe-method, all methods")
    add("--panel", type=Path, required=True, metavar="TSV", help="written: every measure of every method, with lights")


def _run(args: argparse.Namespace) -> None:
    table = pd.concat([pooling.read_frame(path, READING_COLUMNS) for path in args.readings], ignore_index=True)
    rows = panel_rows(table)
    files.write_table(args.panel, rows, PANEL_COLUMNS)
    for method, found in findings(rows).items():
        text = ", ".join(f"{name} ({light})" for name, light in found.items())
        log.say(f"{method}: {text or 'nothing found'}")


COMMANDS = {"write-panel": (_add_arguments, _run)}
