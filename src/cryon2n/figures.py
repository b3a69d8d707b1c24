"""Figures and pictures of the report: one fixed look per method, everything as a data URI.

Plots are SVG (text as paths, so that they look alike everywhere), images JPEG.  Nothing here uses
pyplot or any other global state.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from cryon2n import fourier
from cryon2n.errors import InputError

# Okabe & Ito's colours (2008) as far as they go on white; line styles tell the groups apart without colour.
KNOWN: dict[str, tuple[str, str]] = {
    "raw": ("#777777", "-"),
    "lowpass": ("#56b4e9", "--"),
    "gaussian": ("#0072b2", "--"),
    "wiener": ("#009e73", "--"),
    "nlm": ("#117733", "--"),
    "topaz-unet": ("#e69f00", "-."),
    "topaz-unet-p192": ("#b8860b", ":"),
    "topaz-affine": ("#999933", "-."),
    "topaz-unet-small": ("#cc79a7", "-."),
    "topaz-trained": ("#5d3a9b", "-."),
}
OURS = ("#d55e00", "#882255", "#661100", "#b2182b")
OTHERS = ("#44aa99", "#aa4499", "#332288", "#ddcc77")


@dataclass(frozen=True)
class Look:
    """How a method is drawn in every figure: `color` (hex), `line` (matplotlib's style), `width` (points)."""

    color: str
    line: str
    width: float


def looks(methods: Sequence[str], ours: Sequence[str]) -> dict[str, Look]:
    """Give each method its look; `ours` are the methods that stand out."""
    out, other = {}, 0
    for method in methods:
        if method in ours:
            out[method] = Look(OURS[list(ours).index(method) % len(OURS)], "-", 2.6)
        elif method in KNOWN:
            out[method] = Look(*KNOWN[method], 1.4)
        else:
            out[method] = Look(OTHERS[other % len(OTHERS)], ":", 1.4)
            other += 1
    return out


# ---------------------------------------------------------------------------- data URIs


def data_uri(content: bytes, kind: str) -> str:
    """Return bytes of MIME type `kind` as a ``data:`` URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def file_uri(path: str | Path) -> str:
    """Return a PNG file as a ``data:`` URI; damage raises `InputError`."""
    try:
        content = Path(path).read_bytes()
        Image.open(io.BytesIO(content)).verify()
    except OSError as error:
        raise InputError(f"{path}: cannot read the figure ({error}); make it again") from None
    return data_uri(content, "image/png")


def svg_text(figure: Figure) -> str:
    """Return a figure as SVG, the same text for the same figure."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "cryon2n"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def svg_uri(figure: Figure) -> str:
    """Return a figure as an SVG ``data:`` URI, the same bytes for the same figure."""
    return data_uri(svg_text(figure).encode(), "image/svg+xml")


def to_grey(image: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Map an image (h, w) to uint8: `limits` become black and white."""
    low, high = limits
    scaled = (image - low) * (255 / max(high - low, 1e-12))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def jpeg_uri(image: np.ndarray, limits: tuple[float, float], quality: int = 90) -> str:
    """Return an image (h, w) as a grey JPEG ``data:`` URI, `limits` being black and white."""
    buffer = io.BytesIO()
    Image.fromarray(to_grey(image, limits)).save(buffer, format="JPEG", quality=quality, optimize=True)
    return data_uri(buffer.getvalue(), "image/jpeg")


def grey_limits(image: np.ndarray, percent: float = 0.5) -> tuple[float, float]:
    """Return the `percent` and 100 - `percent` percentiles of an image (h, w)."""
    low, high = np.percentile(image, [percent, 100 - percent])
    return float(low), float(high)


def middle(region: tuple[slice, slice], side: int) -> tuple[slice, slice]:
    """Return the square of at most `side` pixels in the middle of a region (rows, columns)."""
    out = []
    for part in region:
        size = min(side, part.stop - part.start)
        start = part.start + (part.stop - part.start - size) // 2
        out.append(slice(start, start + size))
    return out[0], out[1]


# ---------------------------------------------------------------------------- numbers behind figures


def power_spectrum(image: np.ndarray, pixel_size: float, axis: np.ndarray) -> np.ndarray:
    """Return the rotationally averaged power of an image (h, w) per Fourier bin, at the frequencies `axis`.

    Scaled so that white noise of variance v has power v in every ring (before the taper of the edges).

    Parameters
    ----------
    image : ndarray, shape (h, w)
    pixel_size : float
        In Å.
    axis : ndarray, shape (n,)
        In 1/Å; nan beyond the image's Nyquist frequency.
    """
    spectrum = fourier.windowed_spectrum(image, edge=max(1, min(image.shape) // 32))
    sums = fourier.ring_sums(fourier.cross_power(spectrum, spectrum), image.shape)
    power = sums / fourier.ring_counts(image.shape) / image.size
    return np.interp(axis, fourier.ring_frequencies(image.shape, pixel_size), power, right=np.nan)


def smooth(curve: np.ndarray, width: int = 5) -> np.ndarray:
    """Return a running mean of a curve (n,) over `width` points that leaves out nan and shrinks at the ends."""
    ok = np.isfinite(curve)
    kernel = np.ones(min(width, len(curve)))
    total = np.convolve(np.where(ok, curve, 0.0), kernel, "same")
    count = np.convolve(ok.astype(float), kernel, "same")
    return np.where(ok & (count > 0), total / np.maximum(count, 1), np.nan)


# ---------------------------------------------------------------------------- plots


def _new(width: float, height: float, columns: int = 1, share: bool = False) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = np.atleast_1d(figure.subplots(1, columns, sharey=share))
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    return figure, list(axes)


def _resolution_axis(ax: Axes) -> None:
    """Label frequencies as resolution in Å too: that is what people think in."""
    top = ax.get_xlim()[1]
    steps = [r for r in (200, 100, 50, 30, 20, 15, 10, 8, 6, 5, 4, 3, 2) if 1 / r <= top]
    kept: list[int] = []
    for r in steps:
        if not kept or 1 / r - 1 / kept[-1] > 0.07 * top:
            kept.append(r)
    upper = ax.secondary_xaxis("top")
    upper.set_xticks([1 / r for r in kept], [f"{r} Å" for r in kept], fontsize=8)


def draw_cross_frc(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    raw: tuple[np.ndarray, np.ndarray],
    limit: float | None,
    names: Mapping[str, str],
    look: Mapping[str, Look],
) -> Figure:
    """Draw cross-FRC by method, with the FRC of the raw halves.

    Parameters
    ----------
    curves : mapping of (frequency, cross_frc), each of shape (n_rings,)
        Frequencies in 1/Å.
    raw : (frequency, frc)
    limit : float or None
        Information limit in Å: beyond it the curves are noise, and are drawn pale.
    names, look : mapping
        Display name and look of each method.
    """
    figure, (ax,) = _new(7.6, 4.2)
    stop = raw[0][-1] if limit is None else min(raw[0][-1], 1.35 / limit)
    ax.fill_between(*_shown(raw, stop), color="0.88", lw=0, label="FRC of the raw halves")
    for method, curve in curves.items():
        style = look[method]
        x, y = _shown(curve, stop)
        ax.plot(x, y, style.line, color=style.color, lw=style.width, label=names[method])
    if limit is not None:
        ax.axvspan(1 / limit, stop, color="white", alpha=0.65, lw=0, zorder=3)
        _mark_limit(ax, limit)
    ax.axhline(0.5, color="0.5", lw=0.7, ls=":")
    ax.set(xlim=(0, stop), ylim=(0, 1.03))
    ax.set_xlabel("spatial frequency (1/Å)", fontsize=9)
    ax.set_ylabel("cross-FRC with the other raw half", fontsize=9)
    _resolution_axis(ax)
    figure.legend(*ax.get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside right upper")
    return figure


def _mark_limit(ax: Axes, limit: float) -> None:
    ax.axvline(1 / limit, color="0.4", lw=0.8, zorder=4)
    text = f"information limit {limit:.3g} Å"
    where = {"xycoords": ax.get_xaxis_transform(), "textcoords": "offset points", "zorder": 5}
    where["bbox"] = {"facecolor": "white", "alpha": 0.7, "lw": 0, "pad": 1}
    ax.annotate(text, (1 / limit, 0.98), (4, 0), fontsize=8, color="0.3", rotation=90, va="top", **where)


def _shown(curve: tuple[np.ndarray, np.ndarray], stop: float) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(curve[0]), smooth(np.asarray(curve[1], dtype=np.float64))
    inside = (x > 0) & (x <= stop)
    return x[inside], y[inside]


def draw_spectra(
    axis: np.ndarray,
    spectra: Mapping[str, np.ndarray],
    truth: np.ndarray | None,
    limit: float | None,
    names: Mapping[str, str],
    look: Mapping[str, Look],
) -> Figure:
    """Draw the power spectra of what each method made, and the truth's.

    Parameters
    ----------
    axis : ndarray, shape (n,)
        Frequencies in 1/Å.
    spectra : mapping of ndarray, shape (n,)
    truth : ndarray, shape (n,), or None
    limit : float or None
        Information limit in Å; three times its frequency is shown.
    names, look : mapping
    """
    figure, (ax,) = _new(7.6, 4.2)
    if truth is not None:
        ax.plot(axis[1:], smooth(truth)[1:], color="black", lw=4, alpha=0.25, label="truth")
    for method, power in spectra.items():
        style = look[method]
        ax.plot(axis[1:], smooth(power, 3)[1:], style.line, color=style.color, lw=style.width, label=names[method])
    ax.set_yscale("log")
    # A filter's stop band goes down without end; seven decades below the strongest ring show all that matters.
    top = max(np.nanmax(power[1:]) for power in spectra.values())
    shown = [power[1:][power[1:] > 0] for power in (*spectra.values(), *([] if truth is None else [truth]))]
    low = min((np.nanmin(power) for power in shown if power.size), default=top)
    stop = axis[-1] if limit is None else min(axis[-1], 3 / limit)
    if limit is not None:
        _mark_limit(ax, limit)
    ax.set(xlim=(0, stop), ylim=(max(low / 2, top * 1e-7), top * 3))
    ax.set_xlabel("spatial frequency (1/Å)", fontsize=9)
    ax.set_ylabel("power (white raw noise of a half ≈ 1)", fontsize=9)
    _resolution_axis(ax)
    figure.legend(*ax.get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside right upper")
    return figure


def draw_precision_recall(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]], names: Mapping[str, str], look: Mapping[str, Look]
) -> Figure:
    """Draw precision over recall by method.

    Parameters
    ----------
    curves : mapping of (recall, precision), each of shape (n,)
    names, look : mapping
        Display name and look of each method.
    """
    figure, (ax,) = _new(7.6, 4.2)
    for method, (recall, precision) in curves.items():
        style = look[method]
        ax.plot(recall, precision, style.line, color=style.color, lw=style.width, label=names[method])
    ax.set(xlim=(0, 1.01), ylim=(0, 1.03))
    ax.set_xlabel("recall: particles found", fontsize=9)
    ax.set_ylabel("precision: picks that are particles", fontsize=9)
    figure.legend(*ax.get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside right upper")
    return figure


def draw_training(
    histories: Mapping[str, Mapping[str, np.ndarray]], names: Mapping[str, str], look: Mapping[str, Look]
) -> Figure:
    """Draw loss and validation ΔuMSE over the steps.

    Parameters
    ----------
    histories : mapping of mapping of ndarray, shape (n_rows,)
        By model: ``step``, ``loss``, ``val_delta_umse``.
    names, look : mapping
    """
    figure, axes = _new(7.6, 3.0, 2)
    for ax, column, label in zip(
        axes, ("loss", "val_delta_umse"), ("training loss", "validation ΔuMSE (against raw)"), strict=True
    ):
        for model, history in histories.items():
            style = look[model]
            ax.plot(history["step"], history[column], "o-", ms=2.5, lw=1.4, color=style.color, label=names[model])
        ax.set_xlabel("step", fontsize=9)
        ax.set_ylabel(label, fontsize=9)
    axes[0].legend(fontsize=8, frameon=False)
    return figure


def draw_intervals(
    panels: Sequence[tuple[str, Mapping[str, tuple[float, float, float]]]],
    names: Mapping[str, str],
    look: Mapping[str, Look],
) -> Figure:
    """Draw the headline table: one panel per measure, each method a dot with its interval.

    Parameters
    ----------
    panels : sequence of (title, mapping of (value, low, high))
        nan is left out; a single value far from all others is written at the edge, with an arrow.
    names, look : mapping
        The methods, in the order of the rows.
    """
    figure, axes = _new(7.6, 0.26 * len(names) + 0.8, len(panels), share=True)
    for ax, (title, cells) in zip(axes, panels, strict=True):
        limits = _range_without_outlier([cells[m][0] for m in names if m in cells])
        for row, method in enumerate(names):
            value, low, high = cells.get(method, (np.nan,) * 3)
            if not np.isfinite(value):
                continue
            style = look[method]
            if limits and not limits[0] <= value <= limits[1]:
                right = value > limits[1]
                text, x, side = (f"{value:.3g} →", 0.98, "right") if right else (f"← {value:.3g}", 0.02, "left")
                ax.text(
                    *(x, row, text),
                    transform=ax.get_yaxis_transform(),
                    ha=side,
                    va="center",
                    fontsize=8,
                    color=style.color,
                )
                continue
            ax.plot([low, high], [row, row], color=style.color, lw=style.width, solid_capstyle="butt")
            ax.plot(value, row, "o" if style.width < 2 else "D", ms=5, color=style.color)
        ax.set_title(title, fontsize=9)
        ax.grid(axis="x", color="0.9", lw=0.6)
        ax.set_axisbelow(True)
        ax.locator_params(axis="x", nbins=3)
        ax.ticklabel_format(axis="x", scilimits=(-2, 4))
        ax.xaxis.get_offset_text().set_fontsize(7)
    axes[0].set_yticks(range(len(names)), list(names.values()), fontsize=8)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    return figure


def _range_without_outlier(values: Sequence[float]) -> tuple[float, float] | None:
    """Return a range for all values but the one farthest out, if that one would squeeze the others; else None."""
    finite = np.sort([v for v in values if np.isfinite(v)])
    if len(finite) < 4:
        return None
    for kept, gap in ((finite[:-1], finite[-1] - finite[-2]), (finite[1:], finite[1] - finite[0])):
        span = kept[-1] - kept[0]
        if gap > 4 * span > 0:
            return float(kept[0] - span), float(kept[-1] + span)
    return None
