"""Trains a small network with Lightning's Trainer and a compiled optimizer; `--resume` goes on."""

import argparse
import sys
from pathlib import Path

try:
    import lightning
    import torch
    from lightning.pytorch.callbacks import ModelCheckpoint
    from torch import nn
except ImportError as error:
    sys.exit(
        f"This example needs {error.name or error}: `pip install --editable '.[examples]'` in the checkout."
    )

import optdsl


class Sine(lightning.LightningModule):
    """A network that learns a sine."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.method = method
        self.layers = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 1))

    def training_step(self, batch: list[torch.Tensor], number: int) -> torch.Tensor:
        x, y = batch
        loss = nn.functional.mse_loss(self.layers(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = optdsl.load(self.method)(self.parameters(), lr=2e-2, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs)
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def train(out: Path, epochs: int = 30, method: str = "adamw", resume: bool = False) -> Sine:
    """Trains for `epochs`, with a checkpoint in `out` half way, from which `resume` goes on."""
    lightning.seed_everything(0, verbose=False)
    x = torch.linspace(-3, 3, 256).unsqueeze(1)
    data = torch.utils.data.TensorDataset(x, x.sin())
    model = Sine(method)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        default_root_dir=out,
        gradient_clip_val=1.0,
        callbacks=[ModelCheckpoint(out, "{epoch}", every_n_epochs=epochs // 2, save_top_k=-1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = torch.utils.data.DataLoader(data, batch_size=32)
    trainer.fit(model, loader, ckpt_path=out / f"epoch={epochs // 2 - 1}.ckpt" if resume else None)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("checkpoints"), help="where the checkpoint goes")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument(
        "--method", default="adamw", help="a shipped method with a learning rate and weight decay"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint half way")
    options = parser.parse_args()
    model = train(options.out, options.epochs, options.method, options.resume)
    print(f"{options.method}: loss {model.trainer.callback_metrics['loss']:.5f}")


if __name__ == "__main__":
    main()
