"""``cryon2n bench WHAT``: the performance figures, each from one command.  Thin, like `cli`."""

import argparse
import importlib

# what: (module, what it measures)
BENCHES = {
    "train": ("bench_train", "the ladder from Topaz's recipe to ours: each rung's time per pixel"),
    "loaders": ("bench_loaders", "the three loaders, alone and under training, against other programs' ways"),
}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name, (module, text) in BENCHES.items():
        importlib.import_module(f"cryon2n.{module}").add_arguments(kinds.add_parser(name, help=text, description=text))


def _run(args: argparse.Namespace) -> None:
    importlib.import_module(f"cryon2n.{BENCHES[args.what][0]}").run(args)


COMMANDS = {"bench": (_add_arguments, _run)}
