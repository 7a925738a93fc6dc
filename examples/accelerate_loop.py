"""Trains a small network by a loop of Hugging Face's Accelerate and a compiled optimizer; `--resume` goes on.

Four batches are accumulated for each step, the joint norm of gradients is limited, the learning rate falls.
"""

import argparse
import sys
from pathlib import Path

try:
    import torch
    from accelerate import Accelerator
    from accelerate.utils import set_seed
    from torch import nn
except ImportError as error:
    sys.exit(
        f"This example needs {error.name or error}: `pip install --editable '.[examples]'` in the checkout."
    )

import optdsl


def disc(count: int = 512) -> torch.utils.data.TensorDataset:
    """Points of the plane, and whether they are near the origin."""
    x = torch.randn(count, 2, generator=torch.Generator().manual_seed(0))
    return torch.utils.data.TensorDataset(x, (x.norm(dim=1) < 1.2).long())


def train(out: Path, epochs: int = 20, method: str = "adamw", resume: bool = False) -> nn.Module:
    """Trains for `epochs`, with a checkpoint in `out` half way, from which `resume` goes on."""
    set_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=4, cpu=True)
    model = nn.Sequential(nn.Linear(2, 64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, 2))
    optimizer = optdsl.load(method)(model.parameters(), lr=3e-2, weight_decay=0.01)
    loader = torch.utils.data.DataLoader(disc(), batch_size=16, shuffle=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader) // 4)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    if resume:
        accelerator.load_state(str(out))
    for epoch in range(epochs // 2 if resume else 0, epochs):
        if epoch == epochs // 2 and not resume:
            accelerator.save_state(str(out))
        total = 0.0
        for x, y in loader:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(x), y)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            total += loss.item()
        if (epoch + 1) % max(epochs // 5, 1) == 0:
            print(f"epoch {epoch + 1}: loss {total / len(loader):.3f}", flush=True)
    return accelerator.unwrap_model(model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("checkpoints"), help="where the checkpoint goes")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument(
        "--method", default="adamw", help="a shipped method with a learning rate and weight decay"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint half way")
    options = parser.parse_args()
    train(options.out, options.epochs, options.method, options.resume)


if __name__ == "__main__":
    main()
