"""Fine-tuning tasks: where the examples come from, and how each kind of task encodes, trains on and scores them.

`loading.load_task` reads a task of any kind, and `base` defines the interface of a task. The kinds have rooms:
`classification` (also regression and ranking), `multilabel`, `rewards`, `choices`, `tokens` and `spans`. `sources`
reads files and tensorflow_datasets.
"""
