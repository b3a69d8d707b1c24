"""The training step: loss, schedule, clipping, and the step as a whole against its plain form."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cryon2n import reference, verify
from cryon2n.cli import main
from cryon2n.step import FAN_IN, Stepper, average_decay, clip_outliers, learning_rate, n2n_loss, rate_groups
from cryon2n.train import TrainSettings
from cryon2n.unet import NetSettings, UNet

CPU = torch.device("cpu")
SMALL = NetSettings(stride=2, channels=(8, 12), blocks=1)


def test_the_loss_weighs_both_directions_by_the_noise_of_their_targets():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 1, 8, 8, generator=generator) for _ in "ab")
    va, vb = torch.tensor([1.0, 0.2]), torch.tensor([1.0, 1.8])
    loss = n2n_loss(lambda x: 0.5 * x, a, b, va, vb)
    expected = []
    for k, (of_b, of_a) in enumerate([(1, 1), (np.sqrt(1 / 1.8), np.sqrt(1 / 0.2))]):  # the mean variance is 1
        expected += [((0.5 * a[k] - b[k]) ** 2).mean() * of_b, ((0.5 * b[k] - a[k]) ** 2).mean() * of_a]
    assert loss.item() == pytest.approx(float(np.mean(expected)), rel=1e-6)


def test_both_directions_of_unequal_halves_add_equal_noise_to_the_gradient():
    generator = torch.Generator().manual_seed(2)
    va, vb = torch.full((64,), 1.96), torch.full((64,), 0.04)  # one frame against 49
    signal = torch.randn(64, 1, 32, 32, generator=generator)
    noise_a, noise_b = (v[0].sqrt() * torch.randn(signal.shape, generator=generator) for v in (va, vb))
    spread = []
    for a, b in ((signal, signal + noise_b), (signal + noise_a, signal)):  # noise in one direction's target alone
        gradients = []
        for k in range(64):
            gain = torch.ones((), requires_grad=True)
            part = [x[k : k + 1] for x in (a, b, va, vb)]
            direction = 0 if a is signal else 1

            def forward(x, gain=gain, direction=direction):
                return torch.stack([x[i] * (gain if i == direction else gain.detach()) for i in range(2)])

            (gradient,) = torch.autograd.grad(n2n_loss(forward, *part), gain)
            gradients.append(gradient.item())
        spread.append(np.std(gradients))
    assert spread[0] == pytest.approx(spread[1], rel=0.35)  # 64 draws each; by the variance it would be 7 to 1


def test_equal_halves_give_the_plain_mean_squared_error():
    a, b, v = torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8), torch.full((3,), 0.8)
    loss = n2n_loss(lambda x: x, a, b, v, v)
    assert loss.item() == pytest.approx((a - b).square().mean().item(), rel=1e-6)


def test_the_best_constant_factor_is_the_wiener_one():
    # f(x) = c x on signal variance S and noise V has its least loss at c = S / (S + V), whatever the target's noise.
    generator = torch.Generator().manual_seed(1)
    s = torch.randn(4, 1, 128, 128, generator=generator) * 0.7
    a, b = (s + torch.randn(s.shape, generator=generator) for _ in "ab")
    c = torch.tensor(0.0, requires_grad=True)
    loss = n2n_loss(lambda x: c * x, a, b, torch.ones(4), torch.ones(4))
    (gradient,) = torch.autograd.grad(loss, c)
    power = (a.square().mean() + b.square().mean()) / 2
    assert float(-gradient / (2 * power)) == pytest.approx(0.49 / 1.49, abs=0.02)


def test_the_rate_rises_linearly_and_falls_as_a_cosine():
    s = TrainSettings(steps=1000, rate=2e-3, warmup=0.1)
    assert learning_rate(0, s) == pytest.approx(2e-5)
    assert learning_rate(49, s) == pytest.approx(1e-3)
    assert learning_rate(99, s) == learning_rate(100, s) == pytest.approx(2e-3)
    assert learning_rate(550, s) == pytest.approx(1e-3)
    assert learning_rate(325, s) == pytest.approx(1e-3 * (1 + math.cos(math.pi / 4)))
    assert 0 < learning_rate(999, s) < 1e-7
    rates = [learning_rate(k, s) for k in range(1000)]
    assert max(rates) == 2e-3 and (np.diff(rates[100:]) <= 0).all()


def test_the_average_is_short_at_first_and_never_longer_than_asked():
    s = TrainSettings(steps=1000, average=0.02)  # a window of 20 steps
    assert average_decay(0, s) == pytest.approx(0.1)
    assert average_decay(10**6, s) == pytest.approx(0.95)
    assert average_decay(5, TrainSettings(average=0.0)) == 0


def test_outlying_gradients_are_clipped_and_do_not_lift_their_own_limit():
    running = torch.tensor(-1.0)
    steady = [torch.tensor([3.0, 4.0])]
    assert clip_outliers(steady, running, 3.0) == 5 and running == 5  # the first norm starts the mean
    spike = [torch.tensor([300.0, 400.0])]
    assert clip_outliers(spike, running, 3.0) == 500  # what it was, for the log
    torch.testing.assert_close(spike[0], torch.tensor([9.0, 12.0]))  # cut to 3 x 5
    torch.testing.assert_close(running, torch.tensor(5 + 0.02 * (15 - 5)))


def test_the_rate_falls_with_the_fan_in():
    net = torch.nn.Sequential(torch.nn.Conv2d(8, 4, 3, bias=False), torch.nn.Conv2d(96, 4, 3, bias=False))
    shares = {group["params"][0].shape[1]: group["share"] for group in rate_groups(net)}
    assert shares == {8: 1.0, 96: FAN_IN / (96 * 9)}


# ---------------------------------------------------------------------------- the plain form


def test_the_plain_layers_are_what_their_names_say():
    x = torch.randn(2, 3, 6, 8, dtype=torch.float64)
    torch.testing.assert_close(reference.double(x), F.interpolate(x, scale_factor=2, mode="bilinear"))
    torch.testing.assert_close(reference.halve(x), F.avg_pool2d(x, 2))
    image = torch.randn(2, 1, 8, 12, dtype=torch.float64)
    folded = reference.unfold_space(image, 4)
    # Channel 4 · 1 + 2 of the first cell is the pixel in row 1, column 2.
    assert folded.shape == (2, 16, 2, 3) and folded[1, 6, 0, 0] == image[1, 0, 1, 2]
    assert torch.equal(reference.fold_space(folded, 4), image)


def test_one_step_of_the_plain_optimiser_by_hand():
    # One weight, net(x) = w x: the loss' gradient is known, and Adam's first step is the rate times its sign.
    settings = NetSettings(stride=1, channels=(1,), blocks=1, lowpass=0)
    weights = {name: torch.zeros_like(p).double() for name, p in UNet(settings).state_dict().items()}
    for name in ("stem.weight", "head.weight"):
        weights[name][0, 0, 1, 1] = 1.0
    a = torch.full((1, 1, 4, 4), 2.0, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    run = reference.begin(weights, settings, 3.0, 0.1)
    # Positive input passes the rectifier: output = input = 2, targets 5 and inputs 5 the other way: loss 9 each.
    loss = reference.step(run, (a, a + 3, one, one), 1e-2, 0.5)
    assert float(loss) == pytest.approx(9.0)
    # d/dw of ((2w - 5)² + (5w - 2)²) / 2 at w = 1 is 2·(-3) + 5·3 = 9 > 0: the weight falls, after the decay.
    head = float(run.weights["head.weight"][0, 0, 1, 1])
    assert head == pytest.approx(1 * (1 - 1e-2 * 0.1) - 1e-2, abs=1e-9)
    assert float(run.average["head.weight"][0, 0, 1, 1]) == pytest.approx(0.5 + 0.5 * head, abs=1e-12)


@pytest.mark.parametrize("form", [f for f in verify.FORMS if not f.compiled], ids=lambda f: f"{f.precision} {f.name}")
def test_layers_and_step_agree_with_the_plain_form(form):
    rows = verify.verify(SMALL, None, CPU, [form])
    assert [row["quantity"] for row in rows] == list(verify.TOLERANCES[form.precision])
    assert {row["verdict"] for row in rows} == {"ok"}, rows


@pytest.mark.parametrize("fault", ["activation", "decay", "rate", "average", "loss"])
def test_a_planted_fault_is_found(fault, monkeypatch):
    if fault == "activation":
        monkeypatch.setattr(reference, "SLOPE", 0.1001)
    elif fault == "decay":
        monkeypatch.setattr(verify, "WEIGHT_DECAY", 0.0)
        begin = reference.begin
        monkeypatch.setattr(reference, "begin", lambda w, s, clip, _: begin(w, s, clip, 0.01))
    elif fault == "rate":
        monkeypatch.setattr(reference, "FAN_IN", 400)
        monkeypatch.setattr("cryon2n.step.FAN_IN", 50)
    elif fault == "average":
        monkeypatch.setattr(torch, "_foreach_mul_", lambda *args: None)
    else:
        monkeypatch.setattr("cryon2n.step.n2n_loss", lambda f, a, b, *_: (f(a) - b).square().mean())
    form = verify.FORMS[0]
    assert form.precision == "float64"
    verdicts = {row["quantity"]: row["verdict"] for row in verify.verify(SMALL, None, CPU, [form])}
    expected = {
        "activation": set(verify.QUANTITIES),
        "decay": {"tenth loss", "weights", "average"},
        "rate": {"tenth loss", "weights", "average"},
        "average": {"average"},
        "loss": {"loss", "gradients", "tenth loss", "weights", "average"},
    }[fault]
    assert {q for q, v in verdicts.items() if v == "FAILS"} >= expected, verdicts
    if fault != "activation":
        assert verdicts["output"] == "ok"


def test_verify_says_what_it_checked_and_what_it_could_not(capsys, tmp_path):
    arguments = ["verify", "--device", "cpu", "--precision", "float64", "--set", "stride=2", "--set", "channels=[4]"]
    assert main([*arguments, "--out", str(tmp_path / "forms.tsv")]) == 0
    out = capsys.readouterr().out
    assert "CUDA graphs want a GPU" in out and "FAILS" not in out
    table = (tmp_path / "forms.tsv").read_text().splitlines()
    assert table[0].split("\t") == list(verify.COLUMNS) and len(table) == 1 + 2 * len(verify.QUANTITIES) + 2
    capsys.readouterr()
    assert main([*arguments, "--compiled"]) == 0
    assert capsys.readouterr().out.count("compiled, channels last  ") == len(verify.QUANTITIES)


def test_a_fault_is_an_error_that_says_what_to_do(capsys, monkeypatch):
    monkeypatch.setattr(reference, "SLOPE", 0.2)
    arguments = ["--device", "cpu", "--precision", "float64", "--set", "stride=2", "--set", "channels=[4]"]
    assert main(["verify", *arguments]) == 2
    assert "take train: compile off" in capsys.readouterr().err
    assert main(["verify", "--warn", *arguments]) == 0  # as in the workflow, whose report says it
    assert "warning: " in capsys.readouterr().err


def test_a_network_for_comparison_has_no_plain_form(capsys):
    assert main(["verify", "--device", "cpu", "--set", "kind=topaz"]) == 0
    assert "has no plain form" in capsys.readouterr().out


def test_a_stepper_goes_on_from_its_state_bit_by_bit():
    weights, batch = verify.make_case(SMALL, None)

    def stepper():
        nets = [UNet(SMALL).double() for _ in range(2)]
        for net in nets:
            net.load_state_dict(weights)
        return Stepper(*nets, 3.0, 0.01, torch.autocast("cpu", enabled=False))

    whole = stepper()
    for k in range(6):
        whole(batch, 1e-3 * (k + 1), 0.9)
    first = stepper()
    for k in range(3):
        first(batch, 1e-3 * (k + 1), 0.9)
    second = stepper()
    second.net.load_state_dict(first.net.state_dict())
    second.average.load_state_dict(first.average.state_dict())
    second.load_state_dict(first.state_dict())
    for k in range(3, 6):
        second(batch, 1e-3 * (k + 1), 0.9)
    for x, y in zip(whole.net.parameters(), second.net.parameters(), strict=True):
        assert torch.equal(x, y)
    for x, y in zip(whole.averages, second.averages, strict=True):
        assert torch.equal(x, y)
