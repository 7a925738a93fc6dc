"""Trains a tiny language model with Hugging Face's Trainer and a compiled optimizer; `--resume` goes on.

The model learns to count, from random weights; nothing is downloaded.
"""

import argparse
import sys
from pathlib import Path

try:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed
except ImportError as error:
    sys.exit(
        f"This example needs {error.name or error}: `pip install --editable '.[examples]'` in the checkout."
    )

import optdsl

WORDS, LENGTH = 32, 16


class Counting(torch.utils.data.Dataset):
    """Sequences that count up from each word, modulo the number of words."""

    def __len__(self) -> int:
        return 8 * WORDS

    def __getitem__(self, start: int) -> dict[str, torch.Tensor]:
        sequence = (start + torch.arange(LENGTH)) % WORDS
        return {"input_ids": sequence, "labels": sequence}


def train(out: Path, steps: int = 60, method: str = "lion", resume: bool = False) -> Trainer:
    """Trains for `steps`, with a checkpoint in `out` half way, from which `resume` goes on."""
    set_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, max_position_embeddings=LENGTH, **size))
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(out),
            max_steps=steps,
            save_steps=steps // 2,
            logging_steps=max(steps // 6, 1),
            per_device_train_batch_size=16,
            gradient_accumulation_steps=2,
            max_grad_norm=1.0,
            lr_scheduler_type="cosine",
            warmup_steps=2,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Counting(),
        optimizer_cls_and_kwargs=(optdsl.load(method), {"lr": 3e-3, "weight_decay": 0.1}),
    )
    trainer.train(resume_from_checkpoint=str(out / f"checkpoint-{steps // 2}") if resume else None)
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("checkpoints"), help="where checkpoints go")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument(
        "--method", default="lion", help="a shipped method with a learning rate and weight decay"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint half way")
    options = parser.parse_args()
    trainer = train(options.out, options.steps, options.method, options.resume)
    print(f"{options.method}: loss {trainer.state.log_history[-2]['loss']}")


if __name__ == "__main__":
    main()
