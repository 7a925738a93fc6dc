"""Trains the same small network twice on handwritten digits: with a compiled spec and with torch.optim.AdamW.

Both runs start from the same weights and see the same batches. For a spec of AdamW the two take the same
hyperparameters and should agree to rounding; any other spec runs with its own defaults beside AdamW.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

try:
    import torch
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from torch import Tensor, nn
except ImportError as error:
    sys.exit(
        f"This example needs {error.name or error}, which is not installed: run `make demo`, or "
        "`pip install --editable '.[demo]'` in the checkout."
    )

import optdsl

ADAMW_SPEC = Path(__file__).resolve().parent.parent / "specs" / "adamw.opt"
HYPERS: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
BATCH = 64

MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Data:
    """Images as rows of 64 numbers in [0, 1], labels 0 to 9."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


@dataclass
class Run:
    """What one training left: the curves (one entry an epoch), the parameters, the seconds it took."""

    name: str
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    parameters: list[Tensor] = field(default_factory=list)
    seconds: float = 0.0


def digits(seed: int) -> Data:
    """Scikit-learn's 1797 digits, a quarter of them kept for testing."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16.0, labels, test_size=0.25, random_state=seed, stratify=labels)
    train_x, test_x, train_y, test_y = (torch.as_tensor(part) for part in parts)
    return Data(train_x.float(), train_y.long(), test_x.float(), test_y.long())


def train(name: str, make: MakeOptimizer, data: Data, epochs: int, seed: int) -> Run:
    """Trains from the weights, and on the batches, that `seed` gives; prints a line now and then."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = make(list(model.parameters()))
    loss_of = nn.CrossEntropyLoss()
    shuffle = torch.Generator().manual_seed(seed)
    run = Run(name)
    started = time.perf_counter()
    for epoch in range(1, epochs + 1):
        for rows in torch.randperm(len(data.train_x), generator=shuffle).split(BATCH):

            def closure(rows: Tensor = rows) -> Tensor:
                optimizer.zero_grad()
                loss = loss_of(model(data.train_x[rows]), data.train_y[rows])
                loss.backward()
                return loss

            optimizer.step(closure)
        with torch.no_grad():
            run.losses.append(loss_of(model(data.train_x), data.train_y).item())
            run.accuracies.append((model(data.test_x).argmax(1) == data.test_y).float().mean().item())
        if epoch == 1 or epoch == epochs or epoch % max(1, epochs // 5) == 0:
            print(
                f"  {name:<20} epoch {epoch:>3}/{epochs}   train loss {run.losses[-1]:.4f}   "
                f"test accuracy {run.accuracies[-1]:.1%}",
                flush=True,
            )
    run.seconds = time.perf_counter() - started
    run.parameters = [p.detach().clone() for p in model.parameters()]
    return run


def largest_difference(ours: Run, theirs: Run) -> float:
    """The largest distance between a parameter of the one network and the same parameter of the other."""
    pairs = zip(ours.parameters, theirs.parameters, strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


def table(ours: Run, theirs: Run, same_method: bool) -> str:
    """The closing summary."""
    lines = [f"{'':<20} {'train loss':>12} {'test accuracy':>14} {'seconds':>9}"]
    lines += [
        f"{run.name:<20} {run.losses[-1]:>12.6f} {run.accuracies[-1]:>14.1%} {run.seconds:>9.2f}"
        for run in (ours, theirs)
    ]
    note = "" if same_method else "  (two different methods, so not near 0)"
    lines.append(f"largest |difference| of a parameter: {largest_difference(ours, theirs):.3g}{note}")
    return "\n".join(lines)


def plot(ours: Run, theirs: Run, out: Path) -> None:
    """Draws both curves to `out`, which is either written whole or left as it was."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy = figure.subplots(1, 2)
    epochs = range(1, len(ours.losses) + 1)
    for axes, curve, label in ((loss, "losses", "train loss"), (accuracy, "accuracies", "test accuracy")):
        axes.plot(epochs, getattr(theirs, curve), color="#f0a860", linewidth=5, label=theirs.name)
        axes.plot(
            epochs, getattr(ours, curve), color="#1f3f77", linewidth=1.6, linestyle="--", label=ours.name
        )
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend()
    loss.set_yscale("log")
    figure.suptitle("Handwritten digits: the compiled spec and torch's own optimizer")
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(unfinished, format=out.suffix[1:] or "png", dpi=120)
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--spec",
        metavar="NAME_OR_PATH",
        default=str(ADAMW_SPEC),
        help="a shipped method (adamw, lion, ...) or an .opt file (default: specs/adamw.opt)",
    )
    parser.add_argument(
        "--lr",
        type=float,
        help="learning rate of both (default: 1e-3 for AdamW, the spec's own for another method)",
    )
    parser.add_argument("--epochs", type=positive, default=30, help="passes over the data (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="for split, weights and batches (default: 0)")
    parser.add_argument(
        "--out", type=Path, default=Path("digits.png"), help="where the curves go (default: digits.png)"
    )
    options = parser.parse_args(argv)
    if not options.out.absolute().parent.is_dir():
        parser.error(f"--out: there is no folder {options.out.parent}")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Compiles the spec, trains both, reports."""
    options = arguments(argv)
    started = time.perf_counter()
    compiled = optdsl.load(options.spec)
    shown = os.path.relpath(options.spec) if os.path.exists(options.spec) else options.spec
    print(f"compiled {shown} to {compiled.__name__} in {time.perf_counter() - started:.2f} s", flush=True)

    hypers = {**HYPERS, "lr": 1e-3 if options.lr is None else options.lr}
    same_method = compiled.__name__ == "AdamW"
    ours_hypers = hypers if same_method else {} if options.lr is None else {"lr": options.lr}
    data = digits(options.seed)
    ours, theirs = (
        train(name, make, data, options.epochs, options.seed)
        for name, make in (
            (f"optdsl {compiled.__name__}", lambda parameters: compiled(parameters, **ours_hypers)),
            ("torch.optim.AdamW", lambda parameters: torch.optim.AdamW(parameters, **hypers)),
        )
    )
    print()
    print(table(ours, theirs, same_method))
    plot(ours, theirs, options.out)
    print(f"curves: {options.out}")


if __name__ == "__main__":
    main()
