"""The command line: ``cryon2n STAGE …``.  Thin on purpose: every stage's module holds its own arguments.

A stage's command, its rule in ``workflow/rules`` and its log share one name (``split-halves`` here is
``split_halves`` there; both spellings are taken).
"""

import argparse
import atexit
import importlib
import os
import sys
import threading

from cryon2n import __version__, gpus, log, readahead, wake
from cryon2n.errors import InputError

# Threads of torch that wait for the next piece of work soon go to sleep: by default they turn in circles, and where
# other programs share the cores that took up to seven times as long (docs/performance-notes.md).  torch reads this when
# it is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# NumPy's matrix products are small here.  Of all cores' threads the last is waited for: beside threads that hash, a
# movie's alignment on a GPU took several times as long (docs/performance-notes.md).  NumPy reads this when
# it is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# command: (module, what it does).  In the order of the data's way.
STAGES = {
    "plan": ("plan", "say what a config will do: movies, patches, GB, loader; nothing is written"),
    "simulate-references": ("phantom_stage", "simulate gain, dark and metadata of an EMPIAR-like entry"),
    "simulate-movie": ("phantom_stage", "simulate one raw counted movie and its clean truth"),
    "empiar": ("empiar_sheet", "show an EMPIAR entry, or write its movie sheet"),
    "fetch-movie": ("download", "download one file of an EMPIAR entry, resumed and verified"),
    "check-gain": ("gain", "tell which orientation of a gain reference fits a movie's counts"),
    "split-halves": ("split_stage", "align a movie's frames and sum its even and its odd frames"),
    "import": ("import_folder", "find and verify the halves in another program's folder, write their sheet"),
    "import-halves": ("halves_import", "take halves that another program made"),
    "audit-halves": ("audit", "check that the halves' noises are independent and alike"),
    "plot-halves": ("halves_figure", "draw a micrograph's halves, motion, FRC and spectra"),
    "write-shards": ("shards_write", "write the patches that training reads"),
    "shards": ("shards_tools", "verify patch shards, say what they are, or export them"),
    "train-unet": ("train", "train a denoiser on patch shards"),
    "denoise": ("denoise_command", "denoise micrographs of any program, as many as you like, with trained weights"),
    "denoise-micrograph": ("denoise", "denoise the halves of a micrograph with trained weights, for the scores"),
    "tune-filter": ("filters", "choose a classical filter's setting on the validation micrographs"),
    "filter-micrograph": ("filters", "denoise a micrograph with a tuned classical filter"),
    "train-topaz": ("topaz", "train Topaz by its own recipe on the training halves"),
    "denoise-topaz": ("topaz", "denoise a micrograph with the installed Topaz"),
    "denoise-outside": ("outside", "take what another program denoised, or run it, as a method like the others"),
    "write-probes": ("probes", "make inputs that show what a denoiser invents: a strange molecule, scrambled phases"),
    "probe-method": ("hallucination_probe", "measure what a method invents, copies, keeps constant or blurs"),
    "score-method": ("compare", "score one method on the test micrographs"),
    "pick-topaz": ("topaz_pick", "pick particles in what each method made with Topaz's pretrained detector"),
    "score-picking": ("picking_score", "pick particles in what each method made: precision, recall, F1, AP"),
    "write-panel": ("hallucination_panel", "pool what probe-method measured of all methods, and give each its lights"),
    "summarise": ("compare", "pool the scores of all methods, with confidence intervals"),
    "compare": ("compare_folders", "score any methods' results on the same micrographs: tables, figures, a page"),
    "write-cost": ("compare_cost", "put together what the methods cost: seconds, memory, energy"),
    "compare-doc": ("compare_doc", "write the comparison of one or more data sets as a page (Markdown)"),
    "write-crate": ("crate", "write the record of a whole run: an RO-Crate (JSON-LD)"),
    "verify": ("verify", "check every fast form of network and training step against the plain one"),
    "bench": ("bench", "measure this machine: the training ladder, the loaders"),
    "write-report": ("report", "write the report and the gallery"),
}


def command() -> int:
    """Run one stage as a process of its own, whose end is the end of it."""
    try:
        code = main()
    except SystemExit as end:  # of argparse
        if not isinstance(end.code, int | None):
            raise
        code = end.code or 0
    except BrokenPipeError:  # `cryon2n plan | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        return code
    # All is written and nothing waits: what Python and CUDA would take apart now, piece by piece, goes anyway, and
    # took a third of a second.
    atexit._run_exitfuncs()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except BrokenPipeError:
            code = code or 1
    os._exit(code)


def main(argv: list[str] | None = None) -> int:
    """Run one stage and return the exit code: 0 well, 2 bad input, 1 anything else."""
    argv = sys.argv[1:] if argv is None else argv
    name = argv[0].replace("_", "-") if argv else "--help"
    if name in ("-V", "--version"):
        print(f"cryon2n {__version__}")
        return 0
    if name not in STAGES:
        return _help(name)
    if name == "denoise":
        readahead.start(argv[1:])
        wake.start(argv[1:])
    module = importlib.import_module(f"cryon2n.{STAGES[name][0]}")
    parser = argparse.ArgumentParser(prog=f"cryon2n {name}", description=STAGES[name][1])
    add_arguments, run = module.COMMANDS[name]
    add_arguments(parser)
    args = parser.parse_args(argv[1:])
    log.set_stage(name)
    several = getattr(args, "devices", None) or getattr(args, "processes", 1) > 1
    if getattr(args, "device", "cpu") != "cpu" and not several:
        gpus.take()
    try:
        code = run(args)  # None, or the exit code of a command that tells more than well or not
    except InputError as error:
        log.say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        log.say("interrupted")
        return 130
    return code or 0


def _help(name: str) -> int:
    width = max(map(len, STAGES))
    lines = [f"  {stage:{width}}  {text}" for stage, (_, text) in STAGES.items()]
    usage = "\n".join(["usage: cryon2n STAGE ...   (cryon2n STAGE --help for its arguments)", "", *lines])
    if name in ("-h", "--help", "help"):
        print(usage)
        return 0
    print(f"cryon2n: error: unknown stage {name!r}\n{usage}", file=sys.stderr)
    return 2
