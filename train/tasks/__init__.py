"""What models are fine-tuned on: where examples come from, and what differs from one kind of task to the next.

`loading.load_task` reads a task of any kind; `base` says what fine-tuning needs of one. A kind has a module of its own:
`classification` (and regression), `choices`, `token_labels`, `spans`. `sources` reads files and tensorflow_datasets.
"""
