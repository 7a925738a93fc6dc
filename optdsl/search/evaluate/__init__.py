"""What a rule is worth on a task: stacked training runs, tuned and paired with AdamW."""
