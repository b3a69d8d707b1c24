"""The command ``denoise-micrograph``: the halves of a micrograph denoised with a trained network, for the scores.

For micrographs of one's own there is ``denoise`` (`denoise_command`).
"""

import argparse
import json
from pathlib import Path

import torch

from cryon2n import device, files, log, metering, pair
from cryon2n.denoise_tiles import denoise_image
from cryon2n.methods import EIGHTFOLD
from cryon2n.unet import load_weights


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", type=Path, required=True, help="weights (safetensors) that train-unet wrote")
    parser.add_argument(
        "--halves", type=Path, nargs="+", required=True, help="records of halves: a, b, whole and noise are denoised"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="gets one file per micrograph (data guide)"
    )
    parser.add_argument(
        "--symmetries", type=int, choices=[1, 8], default=1, help="8: mean over turned and mirrored versions"
    )
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    device.add_arguments(parser)


def _run(args: argparse.Namespace) -> None:
    where = device.choose(args.device, args.threads)
    meter = metering.Meter(where.type == "cuda")  # before anything is loaded: what the network takes counts
    net, card = load_weights(args.weights, where)
    net = net.to(memory_format=torch.channels_last)
    weights = files.sha256_of(args.weights)
    trained_on = set(json.loads(card.get("trained_on", "[]")))
    method = args.weights.parent.name + (EIGHTFOLD if args.symmetries > 1 else "")
    how = {"precision": args.precision, "symmetries": args.symmetries}
    for path in args.halves:
        halves = pair.load_pair(path)
        if halves.name in trained_on:
            log.say(f"note: {halves.name} is one of the training micrographs; scores on it would not be honest")
        with meter:
            estimates = pair.estimate_all(halves, lambda x: meter.lap(denoise_image(net, x, **how)))
        pair.write_estimates(halves, estimates, args.out, method)
        made = {"method": method, "micrograph": halves.name, "weights_sha256": weights}
        record = {**made, "device": device.describe(where), **meter.cost()}
        files.write_json(args.out / f"{halves.name}.json", record)
        log.say(f"{halves.name}: done")


COMMANDS = {"denoise-micrograph": (_add_arguments, _run)}
