"""The command ``verify``: every fast form of the network and its training step against the plain one.

The plain one is `reference` in float64.  A form's output, loss, every gradient, the loss of the tenth optimiser step,
and weights and average after it are compared with it; a difference is ``‖x - reference‖ / ‖reference‖``, the largest
over tensors.  Weights and average are checked in float64 only, where reordered sums cannot hide a mistake: Adam divides
each gradient by its own size, so that rounding in a gradient near zero moves a weight as far as a large one does.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from cryon2n import device, files, log, reference
from cryon2n.errors import InputError
from cryon2n.settings import add_settings_arguments, settings_from_arguments
from cryon2n.step import Stepper
from cryon2n.unet import NetSettings, UNet, load_weights

STEPS = 10
RATE, DECAY, CLIP, WEIGHT_DECAY = 2.0**-10, 0.9, 3.0, 0.01
QUANTITIES = ("output", "loss", "gradients", "tenth loss", "weights", "average")
COLUMNS = ("form", "precision", "quantity", "difference", "tolerance", "verdict", "note")


@dataclass(frozen=True)
class Form:
    """A way to compute the same thing.

    Attributes
    ----------
    name : str
    precision : str
        ``float64``, ``float32`` or ``bfloat16`` (autocast over float32 weights).
    channels_last, compiled, graph : bool
    """

    name: str
    precision: str
    channels_last: bool = False
    compiled: bool = False
    graph: bool = False


FORMS = [
    Form(f"{how}{where}", precision, *flags)
    for precision in ("float64", "float32", "bfloat16")
    for where, how, flags in (
        ("", "plain layers", (False, False, False)),
        (", channels last", "layers", (True, False, False)),
        (", channels last", "compiled", (True, True, False)),
        (", channels last, CUDA graph", "compiled", (True, True, True)),
    )
]

# Largest relative difference that is allowed.  float32: rounding of sums of a thousand terms; bfloat16 keeps 8 bits of
# each value (2⁻⁹ = 0.002).
TOLERANCES = {
    "float64": dict.fromkeys(QUANTITIES, 1e-9),
    "float32": {"output": 1e-6, "loss": 1e-6, "gradients": 2e-6, "tenth loss": 1e-5},
    "bfloat16": {"output": 2e-2, "loss": 1e-2, "gradients": 5e-2, "tenth loss": 1e-2},
}


def make_case(settings: NetSettings, weights: reference.Weights | None) -> tuple[reference.Weights, reference.Batch]:
    """Return weights and a batch in float64: a smooth signal with noise of unequal strength in each half."""
    rng = torch.Generator().manual_seed(20)
    if weights is None:
        weights = {}
        for name, p in UNet(settings).state_dict().items():
            # None starts at zero here: a network that returns zero would pass every test.
            weights[name] = torch.randn(p.shape, generator=rng, dtype=torch.float64) * (1.5 / p[0].numel()) ** 0.5
    side = max(UNet(settings).grid * 2, settings.stride * 2 ** (len(settings.channels) - 1) * 4)
    signal = torch.randn(3, 1, side // 8 + 1, side // 8 + 1, generator=rng, dtype=torch.float64)
    signal = nn.functional.interpolate(signal, (side, side), mode="bicubic")
    noise = torch.randn(2, 3, 1, side, side, generator=rng, dtype=torch.float64)
    var_a, var_b = (
        torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64),
        torch.tensor([1.0, 1.5, 0.7], dtype=torch.float64),
    )
    a, b = (signal + n * v.sqrt()[:, None, None, None] for n, v in zip(noise, (var_a, var_b), strict=True))
    return {k: v.double() for k, v in weights.items()}, (a, b, var_a, var_b)


def expected(weights: reference.Weights, batch: reference.Batch, settings: NetSettings) -> dict[str, reference.Weights]:
    """Return what the plain form gives for each of `QUANTITIES`."""
    run = reference.begin(weights, settings, CLIP, WEIGHT_DECAY)
    output = reference.forward(weights, settings, batch[0])
    loss, gradient = reference.gradients(run, batch)
    for _ in range(STEPS):
        tenth = reference.step(run, batch, RATE, DECAY)
    return {
        "output": {"": output},
        "loss": {"": loss},
        "gradients": gradient,
        "tenth loss": {"": tenth},
        "weights": run.weights,
        "average": run.average,
    }


def found(
    form: Form, weights: reference.Weights, batch: reference.Batch, settings: NetSettings, where: torch.device
) -> dict[str, reference.Weights]:
    """Return what a fast form gives for each of `QUANTITIES`."""
    dtype = torch.float64 if form.precision == "float64" else torch.float32
    layout = torch.channels_last if form.channels_last else torch.contiguous_format
    nets = []
    for _ in range(2):
        net = UNet(settings).to(where, dtype).to(memory_format=layout)
        net.load_state_dict(weights)
        nets.append(net)
    net, average = nets
    average.requires_grad_(False)
    autocast = device.autocast(form.precision, where)
    stepper = Stepper(net, average, CLIP, WEIGHT_DECAY, autocast, form.compiled, form.graph)
    batch = tuple(x.to(where, dtype) for x in batch)
    image = batch[0].contiguous(memory_format=layout)
    forward = torch.compile(net) if form.compiled else net
    with torch.no_grad(), autocast:
        output = forward(image).double().cpu()
    names = [name for name, _ in net.named_parameters()]
    stepper(batch, RATE, DECAY)
    loss = stepper.loss.double().cpu().clone()
    # The first step sets the running norm, so that its own gradients are not clipped.
    gradients = {name: p.grad.double().cpu().clone() for name, p in net.named_parameters()}
    for _ in range(STEPS - 1):
        stepper(batch, RATE, DECAY)
    if form.graph and stepper.graph is None:
        raise InputError(f"{form.name}: no CUDA graph was captured")
    return {
        "output": {"": output},
        "loss": {"": loss},
        "gradients": gradients,
        "tenth loss": {"": stepper.loss.double().cpu()},
        "weights": {k: p.detach().double().cpu() for k, p in zip(names, net.parameters(), strict=True)},
        "average": {k: p.detach().double().cpu() for k, p in zip(names, average.parameters(), strict=True)},
    }


def difference(got: reference.Weights, wanted: reference.Weights) -> float:
    """Return the largest ``‖x - y‖ / ‖y‖`` over tensors; not a number if any value is not finite."""
    worst = 0.0
    for name, y in wanted.items():
        x = got[name]
        if not bool(torch.isfinite(x).all()):
            return float("nan")
        worst = max(worst, float((x - y).norm() / y.norm().clamp_min(1e-300)))
    return worst


def why_not(form: Form, where: torch.device, compiled: bool) -> str | None:
    """Return why a form is not checked on a device, or None; `compiled` asks for what a CPU does not use by itself."""
    if form.graph and where.type != "cuda":
        return "CUDA graphs want a GPU"
    if form.compiled and where.type != "cuda" and not compiled:
        return "nothing is compiled on a CPU unless a setting asks for it; --compiled checks it"
    return None


def verify(
    settings: NetSettings,
    weights: reference.Weights | None,
    where: torch.device,
    forms: list[Form],
    compiled: bool = True,
) -> list[dict[str, object]]:
    """Check forms; returns one row (`COLUMNS`) for each form and quantity.

    Parameters
    ----------
    settings : NetSettings
    weights : dict of tensor or None
        None draws them.
    where : torch.device
    forms : list of Form
    compiled : bool
        Check compiled forms on a CPU, too.
    """
    weights, batch = make_case(settings, weights)
    wanted = expected(weights, batch, settings)
    rows = []
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        for form in forms:
            row = {"form": form.name, "precision": form.precision}
            why = why_not(form, where, compiled)
            if why is not None:
                rows.append({**row, "verdict": "skipped", "note": why})
                continue
            began = time.monotonic()
            try:
                got = found(form, weights, batch, settings, where)
            except Exception as error:  # compilers fail in many ways; what cannot run computes nothing wrong
                note = f"{type(error).__name__}: {error}".splitlines()[0][:160]
                rows.append({**row, "verdict": "cannot run", "note": note})
                continue
            for quantity, tolerance in TOLERANCES[form.precision].items():
                d = difference(got[quantity], wanted[quantity])
                verdict = "ok" if d <= tolerance else "FAILS"
                rows.append({**row, "quantity": quantity, "difference": d, "tolerance": tolerance, "verdict": verdict})
            log.say(f"{form.precision}, {form.name}: {time.monotonic() - began:.1f} s")
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
    return [dict.fromkeys(COLUMNS, "") | row for row in rows]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", type=Path, help="check a trained network; default: one with random weights")
    parser.add_argument("--out", type=Path, help="write the table (TSV)")
    parser.add_argument("--precision", nargs="+", choices=list(TOLERANCES), default=list(TOLERANCES))
    parser.add_argument("--warn", action="store_true", help="a difference is a warning, not an error")
    parser.add_argument("--compiled", action="store_true", help="check compiled forms on a CPU, too (a minute)")
    device.add_arguments(parser)
    add_settings_arguments(parser)


def _run(args: argparse.Namespace) -> None:
    where = device.choose(args.device, args.threads)
    settings, weights = settings_from_arguments(NetSettings, args), None
    if args.weights is not None:
        net, _ = load_weights(args.weights)
        settings, weights = net.settings, net.state_dict()
    forms = [f for f in FORMS if f.precision in args.precision]
    if settings.kind != "folded":
        note = f"a network of kind {settings.kind} is there for comparison and has no plain form"
        rows = [dict.fromkeys(COLUMNS, "") | {"form": "all", "precision": "any", "verdict": "skipped", "note": note}]
    else:
        rows = verify(settings, weights, where, forms, args.compiled)
    for row in rows:
        shown = row["note"] or f"{row['quantity']:10} {row['difference']:9.2e}  (at most {row['tolerance']:.0e})"
        print(f"{row['verdict']:10} {row['precision']:9} {row['form']:38} {shown}")
    if args.out is not None:
        files.write_table(args.out, rows, list(COLUMNS))
    bad = sorted({f"{row['form']} in {row['precision']}" for row in rows if row["verdict"] == "FAILS"})
    if bad:
        sentence = (
            f"{', '.join(bad)}: differs from the plain form by more than its tolerance on {device.describe(where)}; "
            "do not train or denoise here that way: take train: compile off, precision float32"
        )
        if not args.warn:
            raise InputError(sentence)
        log.say(f"warning: {sentence}")
        return
    ran = len({(row["form"], row["precision"]) for row in rows if row["verdict"] == "ok"})
    log.say(f"{ran} forms agree with the plain one on {device.describe(where)}; {len(FORMS) - ran} did not run")


COMMANDS = {"verify": (_add_arguments, _run)}
